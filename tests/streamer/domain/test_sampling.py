from typing import Any

import pytest

from streamer.domain.sampling import Sampling
from streamer.domain.stream import StreamSpec
from streamer.errors import ErrorCode, StreamerError
from streamer.validation import validated


@pytest.mark.parametrize(
    ("given", "complete", "max_fps"),
    [
        ({}, {"mode": "fps", "fps": 1.0}, 1.0),
        ({"fps": 0.2}, {"mode": "fps", "fps": 0.2}, 0.2),
        ({"mode": "keyframes"}, {"mode": "keyframes", "min_interval": 0.2}, 5.0),
        ({"mode": "keyframes", "min_interval": 4}, {"mode": "keyframes", "min_interval": 4}, 0.25),
        (
            {"mode": "change", "threshold": 0.5},
            {"mode": "change", "threshold": 0.5, "min_interval": 0.2, "max_interval": 10.0},
            5.0,
        ),
    ],
)
def test_each_mode_has_its_own_fields(
    given: dict[str, Any], complete: dict[str, object], max_fps: float
) -> None:
    sampling = Sampling(**given)
    assert sampling.model_dump() == complete
    assert sampling.max_fps == pytest.approx(max_fps)
    # then it survives serialisation
    spec = StreamSpec(name="cam", url="rtsp://h/x", live=True, sampling=sampling)
    assert StreamSpec.model_validate_json(spec.model_dump_json()).sampling == sampling


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fps": 0}, "'fps'"),
        ({"fps": 61}, "'fps'"),
        ({"mode": "sometimes"}, "'mode'"),
        (
            {"mode": "keyframes", "fps": 2},
            "'fps' does not go with the sampling mode 'keyframes', which takes min_interval.",
        ),
        (
            {"threshold": 0.2},
            "'threshold' does not go with the sampling mode 'fps', which takes fps.",
        ),
        ({"mode": "keyframes", "max_interval": 9}, "'max_interval' does not go with"),
        ({"mode": "change", "threshold": 1.5}, "'threshold'"),
        ({"mode": "change", "threshold": 0}, "'threshold'"),
        (
            {"mode": "change", "min_interval": 20},
            "'max_interval' (10 s) is shorter than 'min_interval' (20 s).",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(StreamerError) as caught:
        validated(Sampling, **given)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert said in caught.value.message
