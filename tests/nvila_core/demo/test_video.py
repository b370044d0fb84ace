"""The street video and its recording."""

from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType

from nvila_core.demo.sampling import overlap
from nvila_core.demo.video import StreetVideo, write_video


def test_a_street_is_the_same_for_the_same_seed_and_never_ambiguous() -> None:
    # given
    video = StreetVideo(3, seconds=60)

    # then
    assert np.array_equal(video.frame_at(7.3), StreetVideo(3, seconds=60).frame_at(7.3))
    for t in range(60):
        actors = video.scene.visible(float(t))
        names = [(actor.kind, actor.colour) for actor in actors]
        assert len(names) == len(set(names)) <= 4
        boxes = [actor.box(float(t)) for actor in actors]
        assert all(overlap(a, b) < 0.2 for i, a in enumerate(boxes) for b in boxes[:i])


def test_something_happens_most_of_the_time() -> None:
    video = StreetVideo(1, seconds=120)
    seen = [video.truth_at(float(t)).seen for t in range(5, 120)]
    assert sum(bool(s) for s in seen) > 0.9 * len(seen)
    assert sum(any(thing.motion != "still" for thing in s) for s in seen) > 0.6 * len(seen)
    assert len({thing.name for s in seen for thing in s}) >= 6


def test_ground_truth_of_one_frame_and_of_a_window() -> None:
    video = StreetVideo(1, seconds=30)
    assert video.truth_at(10.0).frames == 4
    assert video.truth_at(10.0, frames=1).frames == 1
    assert video.truth_at(10.0).sign_number == video.sign_number


def test_the_recording_can_be_streamed(tmp_path: Path) -> None:
    # given
    video = StreetVideo(2, seconds=2.5, fps=8)

    # when
    write_video(tmp_path / "street.mp4", video)

    # then
    with av.open(str(tmp_path / "street.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height) == (640, 480)
        assert stream.average_rate == 8
    assert all(frame.pict_type != PictureType.B for frame in frames)
    assert [i for i, frame in enumerate(frames) if frame.key_frame] == [0, 8, 16]
    difference = frames[5].to_ndarray(format="rgb24").astype(int) - video.frame_at(5 / 8)
    assert np.abs(difference).mean() < 6
