"""Standing questions one by one, through the client, over a real server."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from streamer.domain.stream import Stream, StreamState, StreamStatus
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_WATCHES
from streamer.response_format import ChoiceFormat, JsonFormat, TextFormat
from streamer.service import Service
from tests.support.videos import write_video


@pytest.fixture
def yard(client: Service) -> Stream:
    watches = [client.watch("Who is there?", window=5.0), client.watch("Is it raining?")]
    return client.attach("rtsp://cam.invalid/live", "yard", watches=watches, probe=False)


def refused(call: Callable[[], object]) -> StreamerError:
    with pytest.raises(StreamerError) as caught:
        call()
    return caught.value


def test_one_is_added_changed_and_removed_beside_the_others(client: Service, yard: Stream) -> None:
    first, second = yard.watches
    third = client.watches.add(yard.id, client.watch("Is the gate open?", max_tokens=4))
    assert client.stream("yard").watches == [first, second, third]
    changed = client.watches.edit("yard", second.id, prompt="Does it snow?", window=30)
    assert changed == second.model_copy(update={"prompt": "Does it snow?", "window": 30.0})
    assert client.watches.get("yard", second.id) == changed
    assert client.watches.remove("yard", first.id) == first
    assert client.stream("yard").watches == [changed, third]
    # and what is not said stays as it is
    assert client.watches.edit("yard", third.id) == third


def test_a_new_format_replaces_the_old_one(client: Service, yard: Stream) -> None:
    watch_id = yard.watches[0].id
    choice = ChoiceFormat(choices=["yes", "no"])
    changed = client.watches.edit("yard", watch_id, response_format=choice)
    assert changed.response_format == choice
    changed = client.watches.edit("yard", watch_id, prompt="Anyone?")
    assert changed.response_format == choice
    for other in (JsonFormat(json_schema={"type": "object"}), TextFormat()):
        changed = client.watches.edit("yard", watch_id, response_format=other)
        assert (changed.response_format, changed.prompt) == (other, "Anyone?")


def test_what_makes_no_sense_changes_nothing(client: Service, yard: Stream) -> None:
    watches, known = client.watches, yard.watches[0]
    blank = known.model_copy(update={"id": "wch_1", "prompt": " "})
    schema = {"type": "object", "patternProperties": {"(?=a)": {}}}
    for code, call in (
        (ErrorCode.UNKNOWN_STREAM, lambda: watches.add("nobody", client.watch("?"))),
        (ErrorCode.UNKNOWN_STREAM, lambda: watches.edit("nobody", known.id, prompt="?")),
        (ErrorCode.UNKNOWN_STREAM, lambda: watches.remove("nobody", known.id)),
        (ErrorCode.UNKNOWN_STREAM, lambda: watches.get("nobody", known.id)),
        (ErrorCode.UNKNOWN_WATCH, lambda: watches.edit("yard", "wch_0", prompt="?")),
        (ErrorCode.UNKNOWN_WATCH, lambda: watches.remove("yard", "wch_0")),
        (ErrorCode.UNKNOWN_WATCH, lambda: watches.get("yard", "wch_0")),
        (ErrorCode.PROMPT_EMPTY, lambda: watches.add("yard", blank)),
        (ErrorCode.PROMPT_EMPTY, lambda: watches.edit("yard", known.id, prompt=" ")),
        (ErrorCode.INVALID_REQUEST, lambda: watches.add("yard", known)),
        (ErrorCode.INVALID_REQUEST, lambda: watches.edit("yard", known.id, window=0)),
        (
            ErrorCode.INVALID_REQUEST,
            lambda: watches.edit("yard", known.id, response_format=JsonFormat(json_schema=schema)),
        ),
    ):
        error = refused(call)
        assert error.code is code, error.message
        assert len(error.message.splitlines()) == 1
        assert client.stream("yard").watches == yard.watches
    assert "streamer watch list" in refused(lambda: watches.remove("yard", "wch_0")).message


def test_there_is_a_most(client: Service, yard: Stream) -> None:
    for number in range(MAX_WATCHES - len(yard.watches)):
        client.watches.add("yard", client.watch(f"Question {number}?"))
    error = refused(lambda: client.watches.add("yard", client.watch("One more?")))
    assert error.code is ErrorCode.INVALID_REQUEST
    assert "remove one" in error.message
    # and a whole list is held to the same limit
    many = [client.watch("?") for _ in range(MAX_WATCHES + 1)]
    assert refused(lambda: client.edit("yard", watches=many)).code is ErrorCode.INVALID_REQUEST
    client.watches.remove("yard", yard.watches[0].id)
    client.watches.add("yard", client.watch("One more?"))
    assert len(client.stream("yard").watches) == MAX_WATCHES


def test_a_recording_that_was_read_is_asked_no_more(client: Service, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=1)
    clip = client.attach(str(tmp_path / "v.mp4"), "clip", probe=False)
    (watch,) = clip.watches
    more = client.watches.add("clip", client.watch("And who?"))
    client.registry.save_status(clip.id, StreamStatus(state=StreamState.ENDED))
    for call in (
        lambda: client.watches.add("clip", client.watch("And when?")),
        lambda: client.watches.edit("clip", watch.id, prompt="When?"),
        lambda: client.edit("clip", watches=[client.watch("When?")]),
    ):
        error = refused(call)
        assert error.code is ErrorCode.INVALID_REQUEST
        assert "attach it again" in error.message
    assert client.watches.remove("clip", watch.id) == watch
    assert client.stream("clip").watches == [more]


def test_of_many_who_edit_at_once_none_undoes_another(client: Service, yard: Stream) -> None:
    first, second = yard.watches
    extra = [client.watches.add("yard", client.watch(f"Old {n}?")) for n in range(4)]
    new = [client.watch(f"New {n}?") for n in range(4)]
    calls: list[Callable[[], object]] = [
        *(lambda w=w: client.watches.add("yard", w) for w in new),
        *(lambda w=w: client.watches.remove("yard", w.id) for w in extra),
        lambda: client.watches.edit("yard", first.id, prompt="Anyone?"),
        lambda: client.watches.edit("yard", first.id, window=3),
        lambda: client.watches.edit("yard", first.id, max_tokens=7),
        lambda: client.edit("yard", paused=True),
    ]
    start = threading.Barrier(len(calls))
    outcomes: list[object] = []

    def run(call: Callable[[], object]) -> None:
        start.wait(120)
        outcomes.append(call())

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == len(calls)
    stream = client.stream("yard")
    changed = {"prompt": "Anyone?", "window": 3.0, "max_tokens": 7}
    assert stream.watches[:2] == [first.model_copy(update=changed), second]
    assert sorted(w.id for w in stream.watches[2:]) == sorted(w.id for w in new)
    assert stream.paused
