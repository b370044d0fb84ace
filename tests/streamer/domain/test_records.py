"""Records that are built from others: requests from watches, results and queries from requests."""

import pytest

from streamer.domain.error_info import ErrorInfo
from streamer.domain.frame import FrameRef
from streamer.domain.kinds import RequestKind
from streamer.domain.query import Query, QueryStatus
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.stream import StreamCounters, StreamSpec
from streamer.domain.timestamp import to_datetime
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.response_format import ChoiceFormat

CHOICE = ChoiceFormat(choices=["yes", "no"])
FRAME = FrameRef(stream_id="str_1", id="1-0", time=1.0, pts=0.0, width=8, height=8, change=0.0)


def clip(live: bool = True, **fields: object) -> ClipRequest:
    watch = Watch(prompt="Anyone?", response_format=CHOICE, max_tokens=5)
    stream = StreamSpec(name="yard", url="rtsp://cam/x", live=live, watches=[watch])
    start, end = to_datetime(0.0), to_datetime(10.0)
    return ClipRequest.for_watch(stream, watch, start=start, end=end, frames=[FRAME], **fields)


@pytest.mark.parametrize(
    ("live", "kind"), [(True, RequestKind.WATCH), (False, RequestKind.FILE)], ids=["live", "file"]
)
def test_a_request_for_a_watch_asks_in_its_format(live: bool, kind: RequestKind) -> None:
    request = clip(live, id="req_1", data={"media_start": 0.0})
    assert (request.id, request.kind, request.stream_name) == ("req_1", kind, "yard")
    assert (request.prompt, request.response_format) == ("Anyone?", CHOICE)
    assert (request.max_tokens, request.frames) == (5, [FRAME])
    assert (request.start, request.end) == (to_datetime(0.0), to_datetime(10.0))
    assert request.data == {"media_start": 0.0}


def test_requests_without_an_id_get_one_each() -> None:
    assert clip().id != clip().id


def test_a_result_repeats_what_was_asked_and_adds_what_came_out() -> None:
    request = clip(data={"media_start": 0.0})
    result = Result.answering(request, text="yes", tiles=3)
    for field in ("stream_id", "stream_name", "watch_id", "start", "end", "prompt", "data"):
        assert getattr(result, field) == getattr(request, field)
    assert (result.request_id, result.frames, result.kind) == (request.id, 1, "caption")
    assert (result.text, result.tiles, result.error) == ("yes", 3, None)


def test_the_kind_of_a_result_follows_from_its_request_and_its_error() -> None:
    query = clip().model_copy(update={"kind": RequestKind.QUERY})
    error = ErrorInfo(code=ErrorCode.TIMEOUT, message="No answer within 60 s.")
    assert Result.answering(query, text="yes").kind == "answer"
    for request in (query, clip()):
        assert Result.answering(request, error=error).kind == "error"


def test_a_query_is_what_its_request_asked() -> None:
    request = clip()
    query = Query.of(request)
    assert (query.id, query.status, query.result) == (request.id, QueryStatus.QUEUED, None)
    for field in ("stream_id", "stream_name", "prompt", "start", "end", "created_at"):
        assert getattr(query, field) == getattr(request, field)


@pytest.mark.parametrize(
    "raw",
    [
        *('{"position": 1e400}', '{"position":-1.5E+400}', '{"position": 10E0400}'),
        *('{"packets": 12345678901234567890}', '{"packets":-9223372036854775809}'),
        *('{"position": NaN}', '{"position": Infinity}', '{"bit_rate": -Infinity}'),
        *('{"codec": "\\u0000"}', '{"codec": "\\ud800"}', '{"codec": "\\uDfff"}'),
        '{"dropped": {"late": 99999999999999999999}}',
    ],
)
def test_a_stored_record_with_what_cannot_be_stored_again_is_refused(raw: str) -> None:
    with pytest.raises(StreamerError) as caught:
        StreamCounters.read(raw.encode())

    assert caught.value.code == ErrorCode.RECORD_UNREADABLE


@pytest.mark.parametrize(
    "codec",
    ["7e123", "1" * 30, "e+400", "a:123e456", "\uac00\ud55c", "é", "\\u00e9", "Info", "NaNo"],
)
def test_texts_that_look_like_such_numbers_are_read(codec: str) -> None:
    stored = StreamCounters(codec=codec, position=1e16, packets=10**18)

    assert StreamCounters.read(stored.model_dump_json()) == stored
