import threading

import pytest

from streamer import redis_keys
from streamer.domain.error_info import ErrorInfo
from streamer.domain.stream import Stream, StreamSpec, StreamState, StreamStatus
from streamer.domain.timestamp import to_datetime
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.sources.streams import StreamRegistry
from tests.support.redis_commands import commands_of

URL = "rtsp://admin:s3cret@camera/live"


@pytest.fixture
def registry(redis_client):
    return StreamRegistry(redis_client)


def spec(name="yard", **kwargs):
    return StreamSpec(name=name, url="rtsp://admin:***@camera/live", live=True, **kwargs)


def test_a_stream_is_found_by_id_and_by_name(registry):
    attached = registry.create(spec(watches=[Watch(prompt="What is there?")]), URL)
    assert isinstance(attached, Stream)
    assert attached.state is StreamState.CONNECTING
    assert registry.get(attached.id) == registry.get("yard") == attached
    assert registry.find(attached.id) == spec(
        id=attached.id, created_at=attached.created_at, watches=attached.watches
    )


def test_the_password_is_kept_apart(registry, redis_client):
    attached = registry.create(spec(), URL)
    assert registry.secret_url(attached.id) == URL
    assert b"s3cret" not in redis_client.hget(redis_keys.STREAMS, attached.id)
    assert "s3cret" not in registry.get("yard").model_dump_json()


def test_unknown_streams_say_where_to_look(registry):
    with pytest.raises(StreamerError, match="streamer streams") as caught:
        registry.get("nobody")
    assert caught.value.code is ErrorCode.UNKNOWN_STREAM
    assert registry.find("nobody") is None
    assert not registry.exists("nobody")


def test_a_name_is_taken_once_however_many_try(registry):
    outcomes = []

    def attach():
        try:
            outcomes.append(registry.create(spec(), URL))
        except StreamerError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=attach) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(ErrorCode.NAME_TAKEN) == 7
    assert len(registry.list()) == 1


def test_a_detached_stream_leaves_nothing_and_frees_its_name(registry, redis_client):
    attached = registry.create(spec(), URL)
    registry.save_status(attached.id, StreamStatus(state=StreamState.RUNNING))
    assert registry.delete("yard").state is StreamState.RUNNING
    redis_client.delete(redis_keys.ROOM)  # as after a second
    left = {redis_keys.EVENTS, redis_keys.DETACHED_COUNTERS}  # neither is about one stream
    assert {key.decode() for key in redis_client.keys("*")} == left
    with pytest.raises(StreamerError):
        registry.secret_url(attached.id)
    registry.create(spec(), URL)


def test_a_late_status_does_not_bring_a_detached_stream_back(registry, redis_client):
    attached = registry.create(spec(), URL)
    registry.delete(attached.id)
    assert not registry.save_status(attached.id, StreamStatus(state=StreamState.RUNNING))
    redis_client.delete(redis_keys.ROOM)  # as after a second
    assert redis_client.keys("*") == [redis_keys.EVENTS.encode()]


def test_status_is_part_of_the_stream(registry):
    attached = registry.create(spec(), URL)
    status = StreamStatus(
        state=StreamState.RECONNECTING,
        error=ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message="No frame for 10 s."),
    )
    status.counters.decoded = 7
    assert registry.status(attached.id).state is StreamState.CONNECTING
    assert registry.save_status(attached.id, status)
    found = registry.get("yard")
    assert found.state is StreamState.RECONNECTING
    assert found.error == status.error
    assert found.counters.decoded == 7
    assert registry.status(attached.id).model_dump_json() == status.model_dump_json()


def test_list_is_in_order_of_attachment(registry):
    assert registry.list() == []
    names = [f"camera-{i}" for i in (3, 1, 2)]
    for second, name in enumerate(names):
        registry.create(spec(name, created_at=to_datetime(1_800_000_000 + second)), URL)
    assert [stream.name for stream in registry.list()] == names


def test_update_changes_what_it_names_and_nothing_else(registry):
    attached = registry.create(spec(), URL)
    registry.create(spec("street"), URL)
    changed = registry.update("yard", name="garden", watches=[Watch(prompt="Anyone?")])
    assert changed.watches[0].prompt == "Anyone?"
    assert registry.get("garden") == changed
    assert changed.model_dump(exclude={"name", "watches"}) == attached.model_dump(
        exclude={"name", "watches"}
    )
    with pytest.raises(StreamerError):
        registry.get("yard")
    with pytest.raises(StreamerError) as caught:
        registry.update(attached.id, name="street")
    assert caught.value.code is ErrorCode.NAME_TAKEN
    assert registry.get("garden").id == attached.id


def test_a_changed_url_or_password_is_seen_by_its_version(registry):
    attached = registry.create(spec(), URL)
    other = URL.replace("s3cret", "another")
    registry.update(attached.id, secret_url=other)
    assert registry.secret_url(attached.id) == other
    assert registry.find(attached.id).url_version == 1
    registry.update(attached.id, watches=[])
    assert registry.find(attached.id).url_version == 1


@pytest.mark.parametrize(
    "change",
    [{"name": "no blanks"}, {"live": "maybe"}, {"colour": "red"}, {"sampling": {"fps": 0}}],
)
def test_an_update_that_makes_no_sense_changes_nothing(registry, change):
    attached = registry.create(spec(), URL)
    with pytest.raises(StreamerError, match=next(iter(change))) as caught:
        registry.update("yard", **change)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert registry.get("yard") == attached


def test_of_many_who_edit_at_once_none_undoes_another(registry):
    registry.create(spec(), URL)

    def add(number):
        watch = Watch(prompt=f"Question {number}?")
        registry.edit("yard", lambda old: {"watches": [*old.watches, watch]})

    threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.get("yard").watches) == 8


def test_update_of_a_detached_stream_is_refused(registry):
    attached = registry.create(spec(), URL)
    with pytest.raises(StreamerError) as caught:
        registry.edit(attached.id, lambda old: registry.delete(attached.id) and {"watches": []})
    assert caught.value.code is ErrorCode.UNKNOWN_STREAM
    with pytest.raises(StreamerError):
        registry.update(attached.id, watches=[])
    assert registry.list() == []


def test_retention_of_streams_is_read_at_once(client) -> None:
    client.registry.create(StreamSpec(name="a", url="rtsp://a/", live=True), "rtsp://a/")
    spec = StreamSpec(name="b", url="rtsp://b/", live=True, retention_days=30)
    client.registry.create(spec, "rtsp://b/")
    assert client.registry.retention_days() == {spec.id: 30.0}

    client.edit("b", retention_days=2)

    assert client.registry.retention_days() == {spec.id: 2.0}


def test_a_free_name_takes_few_round_trips_however_many_are_taken(registry, redis_client):
    # given names of which some in between are free again
    assert registry.free_name("yard") == "yard"
    taken = {f"yard-{n}": "id" for n in range(2, 1000) if n != 700} | {"yard": "id"}
    redis_client.hset(redis_keys.NAMES, mapping=taken)

    # when a free one is looked for
    found = []
    sent = commands_of(redis_client, lambda: found.append(registry.free_name("yard")))

    # then it is one of those, after a handful of commands
    assert found[0] in {"yard-700", "yard-1000"}
    assert len(sent) <= 12
    assert registry.free_name("gate") == "gate"
