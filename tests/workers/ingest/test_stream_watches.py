"""Watches that are edited one by one: what happens to the windows that are being gathered."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.frame import FrameRef
from streamer.domain.request import ClipRequest
from streamer.domain.stream import StreamCounters, StreamSpec
from streamer.queues.models import FILES, WATCHES
from streamer.redis_client.outage import Outage
from streamer.service import Service
from tests.support.ingest_bench import Bench, watch
from workers.ingest.clips import LiveClips, RecordingClips, max_clips_in_flight
from workers.ingest.stream_watches import StreamWatches
from workers.ingest.windows import MAX_DRIFT

Eventually = Callable[..., None]


def frame(spec: StreamSpec, at: float) -> FrameRef:
    size = {"width": 32, "height": 24}
    return FrameRef(
        stream_id=spec.id, id=f"{round(at * 1000)}-0", time=at, pts=at, change=0.1, **size
    )


@pytest.fixture
def gather(bench: Bench) -> Callable[[StreamSpec], StreamWatches]:
    """Make what the ingest worker gathers a stream's frames with."""

    def make(spec: StreamSpec) -> StreamWatches:
        jobs, counters = bench.context.jobs, StreamCounters()
        if spec.live:
            # when windows end depends on the stream's id: none takes the place of another
            settings = bench.settings.model_copy(update={"max_pending_clips": 16})
            live = LiveClips(jobs, settings, counters, Outage())
            return StreamWatches(spec, live.submit, resumed=True)
        clips = RecordingClips(
            jobs,
            bench.context.windows,
            counters,
            room=lambda: max_clips_in_flight(spec, bench.settings),
            wait=lambda: pytest.fail("no room"),
            insist=lambda call: call(),
        )
        return StreamWatches(spec, clips.submit)

    return make


@pytest.mark.parametrize("live", [True, False])
def test_a_new_question_is_asked_about_all_of_the_open_window(
    bench: Bench, gather: Callable[[StreamSpec], StreamWatches], live: bool
) -> None:
    # given half a window
    spec = bench.attach("rtsp://cam.invalid/x", watch(4.0), watch(4.0), live=live, fps=1)
    watches = gather(spec)
    watches.add(frame(spec, 0), 0.0)
    watches.add(frame(spec, 1), 0.0)
    # when one of two watches is edited
    asked = spec.watches[0].model_copy(update={"prompt": "Anyone?", "max_tokens": 5})
    edited = spec.model_copy(update={"watches": [asked, spec.watches[1]]})
    watches.follow(edited)
    for second in (2, 3, 4):
        watches.add(frame(spec, second), 0.0)
    # then it is asked about its whole window, like the other
    requests = bench.requests(WATCHES if live else FILES)
    assert [(r.prompt, r.max_tokens) for r in requests] == [("Anyone?", 5), ("What is there?", 128)]
    assert [r.watch_id for r in requests] == [each.id for each in spec.watches]
    assert [[f.pts for f in r.frames] for r in requests] == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    "change", [{"window": 2.0}, {"max_frames": 3}], ids=["another window", "fewer frames"]
)
def test_a_window_that_is_cut_differently_starts_over(
    bench: Bench, gather: Callable[[StreamSpec], StreamWatches], change: dict[str, float]
) -> None:
    spec = bench.attach("rtsp://cam.invalid/x", watch(4.0), live=True, fps=1)
    watches = gather(spec)
    watches.add(frame(spec, 0), 0.0)
    watches.follow(spec.model_copy(update={"watches": [spec.watches[0].model_copy(update=change)]}))
    for second in range(1, 6):
        watches.add(frame(spec, second), 0.0)
    assert bench.requests(WATCHES)[0].frames[0].pts == 1


def test_a_recording_is_asked_about_in_full_after_its_window_was_made_longer(
    bench: Bench, gather: Callable[[StreamSpec], StreamWatches]
) -> None:
    """The longer window may begin where a short one did, and needs its own request."""
    spec = bench.attach("v.mp4", watch(1.0), fps=1)
    watches = gather(spec)
    watches.add(frame(spec, 0), 0.0)
    watches.add(frame(spec, 1), 0.0)
    (short,) = bench.requests(FILES)
    bench.answer(short)
    longer = spec.watches[0].model_copy(update={"window": 4.0})
    watches.follow(spec.model_copy(update={"watches": [longer]}))
    for second in (2, 3, 4):
        watches.add(frame(spec, second), 0.0)
    (long,) = bench.requests(FILES)
    assert long.start == short.start
    assert long.id != short.id
    assert [f.pts for f in long.frames] == [2, 3]


def test_editing_one_watch_leaves_the_others_undisturbed(
    bench: Bench, loopback: LoopbackCamera, eventually: Eventually
) -> None:
    bench = bench.with_settings(max_pending_clips=1000)
    spec = bench.attach(loopback.url, watch(0.4), watch(0.4), live=True, fps=10, name="yard")
    steady, other = spec.watches

    def asked(watch_id: str) -> list[ClipRequest]:
        return [r for r in bench.requests(WATCHES) if r.watch_id == watch_id]

    with Service(bench.settings) as client, bench.run(spec) as slot:
        eventually(lambda: asked(steady.id) and asked(other.id))
        client.watches.edit("yard", other.id, prompt="Anyone?")
        eventually(lambda: asked(other.id)[-1].prompt == "Anyone?")
        client.watches.remove("yard", other.id)
        new = client.watches.add("yard", client.watch("And now?", window=0.3))
        eventually(lambda: asked(new.id))
        count = len(asked(other.id))
        more = max(len(asked(steady.id)) + 2, 8)
        eventually(lambda: len(asked(steady.id)) >= more)
        assert len(asked(other.id)) == count
        slot.stop()
    windows = asked(steady.id)[:-1]
    assert {r.prompt for r in windows} == {steady.prompt}
    # Its windows are where they would have been: back to back, or whole multiples of 0.4 s apart.
    # The first ones are cut, so that streams take turns. On a busy machine frames come late, and so
    # are dates: the time of the stream does not depend on that, but for a window that begins later
    # because one before was dated late.
    assert len(windows) > 3
    epochs, until = epochs_of(windows), windows[0].end
    for n, (before, after) in enumerate(pairwise(windows)):
        until = max(until, before.end)
        if n >= 2 and after.start > until:
            passed = (after.start.timestamp() - epochs[n + 1]) - (
                before.end.timestamp() - epochs[n]
            )
            assert passed / 0.4 == pytest.approx(round(passed / 0.4), abs=0.01)


def epochs_of(windows: list[ClipRequest]) -> list[float]:
    """Return the wall clock of stream time 0 by which each window is dated."""
    epochs: list[float] = []
    for request in windows:
        earliest = min(frame.time - frame.pts for frame in request.frames)
        kept = epochs and abs(earliest - epochs[-1]) <= MAX_DRIFT
        epochs.append(epochs[-1] if kept else earliest)
    return epochs


def test_clips_in_flight_are_counted_only_when_they_may_fill_the_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a recording of which three clips may be in flight
    spec = bench.attach("file:///x.mp4", watch(1.0), live=False, fps=1)
    jobs, waits, counted = bench.context.jobs, [], []
    count = jobs.in_flight

    def in_flight(owner: str) -> int:
        counted.append(count(owner))
        return counted[-1]

    def answer_two() -> None:
        waits.append(len(bench.requests(FILES)))
        for request in bench.requests(FILES)[:2]:
            jobs.cancel(request.id)

    monkeypatch.setattr(jobs, "in_flight", in_flight)
    clips = RecordingClips(
        jobs,
        bench.context.windows,
        StreamCounters(),
        room=lambda: 3,
        wait=answer_two,
        insist=lambda call: call(),
    )
    watches = StreamWatches(spec, clips.submit)

    # when five windows are asked about, and two clips end while the fourth waits
    for second in range(6):
        watches.add(frame(spec, second), 0.0)

    # then the first clip, and the one that found no room, were counted, and no more was in flight
    assert counted == [0, 3, 1]
    assert waits == [3]
    assert count(spec.id) == len(bench.requests(FILES)) == 3
