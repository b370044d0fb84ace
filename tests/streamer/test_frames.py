import time

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from streamer import redis_keys
from streamer.domain import FrameRef
from streamer.errors import ErrorCode, StreamerError
from streamer.frames import FrameStore

NOW = 1_800_000_000.0


@pytest.fixture
def store(redis_client):
    return FrameStore(redis_client, ttl=60.0, max_frames=100)


def add(store, time, stream_id="str_1", jpeg=b"jpeg", **kwargs):
    return store.add(
        stream_id,
        jpeg=jpeg,
        time=time,
        pts=time - NOW,
        width=640,
        height=480,
        change=0.25,
        decode_ms=3.5,
        **kwargs,
    )


def test_a_frame_comes_back_as_it_went_in(store):
    ref = add(store, NOW + 0.1234, jpeg=b"\xff\xd8 bytes \x00")
    assert store.newest("str_1") == [ref]
    assert ref.time == NOW + 0.1234
    assert (ref.width, ref.height, ref.change, ref.decode_ms) == (640, 480, 0.25, 3.5)
    assert store.load([ref]) == [b"\xff\xd8 bytes \x00"]


def test_newest_are_oldest_first_and_of_their_stream_only(store):
    refs = [add(store, NOW + i) for i in range(5)]
    add(store, NOW + 9, stream_id="str_2")
    assert store.newest("str_1", 3) == refs[2:]
    assert store.newest("str_1", 50) == refs
    assert store.newest("nobody") == []


def test_between_is_half_open(store):
    refs = [add(store, NOW + i) for i in range(5)]
    assert store.between("str_1", NOW + 1, NOW + 3) == refs[1:3]
    assert store.between("str_1", NOW + 0.5, NOW + 1.5) == refs[1:2]
    assert store.between("str_1", 0, NOW + 100) == refs
    assert store.between("str_1", NOW + 3, NOW + 1) == []


def test_frames_of_the_same_millisecond_and_a_clock_that_steps_back_keep_their_order(store):
    # given two frames in one millisecond, then a clock set back by a minute
    times = [NOW, NOW, NOW - 60, NOW + 1]
    refs = [add(store, t, jpeg=str(i).encode()) for i, t in enumerate(times)]
    # then all are kept, in order of arrival, with their own times and pictures
    assert store.newest("str_1", 10) == refs
    assert [ref.time for ref in refs] == times
    assert len({ref.id for ref in refs}) == 4
    assert store.load(refs) == [b"0", b"1", b"2", b"3"]


def test_ids_grow_even_after_every_frame_is_gone_from_the_index(store, redis_client):
    ref = add(store, NOW)
    redis_client.xdel(redis_keys.frame_index("str_1"), ref.id)
    later = add(store, NOW - 5)
    assert later.id > ref.id


def test_only_the_newest_frames_are_kept_pictures_too(redis_client):
    store = FrameStore(redis_client, ttl=60.0, max_frames=3)
    refs = [add(store, NOW + i) for i in range(8)]
    assert store.newest("str_1", 50) == refs[5:]
    assert store.count("str_1") == 3
    assert len(redis_client.keys(redis_keys.jpeg("str_1", "*"))) == 3
    with pytest.raises(StreamerError):
        store.load(refs[4:6])


def test_every_key_has_a_time_to_live(store, redis_client):
    add(store, NOW)
    keys = redis_client.keys("*")
    assert len(keys) == 2
    assert all(0 < redis_client.pttl(key) <= 60_000 for key in keys)


def test_a_recordings_longer_life_holds_for_the_index_too(store, redis_client):
    add(store, NOW, ttl=500.0)
    add(store, NOW + 1)
    assert redis_client.pttl(redis_keys.frame_index("str_1")) > 400_000


def test_expired_frames_are_not_listed_and_loading_them_says_why(store):
    gone = add(store, NOW, ttl=0.05)
    kept = add(store, NOW + 1)
    time.sleep(0.1)
    assert store.newest("str_1", 10) == [kept]
    assert store.between("str_1", 0, NOW + 10) == [kept]
    assert store.span("str_1") == (kept.time, kept.time)
    with pytest.raises(StreamerError, match="1 of the 2 frames") as caught:
        store.load([gone, kept])
    assert caught.value.code is ErrorCode.FRAMES_EXPIRED


def test_adding_tidies_expired_frames_away(store):
    for i in range(6):
        add(store, NOW + i, ttl=0.05)
    time.sleep(0.1)
    for i in range(3):
        add(store, NOW + 10 + i)
    assert store.count("str_1") == 3


def test_span_and_discard(store, redis_client):
    refs = [add(store, NOW + i) for i in range(300)][-100:]
    assert store.span("str_1") == (refs[0].time, refs[-1].time)
    store.discard("str_1")
    assert store.span("str_1") is None
    assert redis_client.keys("*") == []


def test_loading_nothing_is_nothing(store):
    assert store.load([]) == []


def refs_at(times):
    return [
        FrameRef(stream_id="s", id=f"{i}-0", time=t, pts=t, width=1, height=1, change=0)
        for i, t in enumerate(times)
    ]


def test_pick_is_even_in_time_not_in_number():
    # given a burst of frames, then one a second
    refs = refs_at([0.0, 0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 3.0, 4.0])
    # then the burst counts for one
    assert [r.time for r in FrameStore.pick(refs, 5)] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_pick_of_one_is_the_newest_and_of_none_is_none():
    refs = refs_at([0.0, 1.0, 2.0])
    assert FrameStore.pick(refs, 1) == refs[-1:]
    assert FrameStore.pick(refs, 0) == []
    assert FrameStore.pick([], 4) == []


@given(
    times=st.lists(st.floats(0, 1e9, allow_nan=False), max_size=40).map(sorted),
    count=st.integers(2, 50),
)
@hypothesis_settings(deadline=None)
def test_pick_keeps_both_ends_the_order_and_the_number(times, count):
    refs = refs_at(times)
    picked = FrameStore.pick(refs, count)
    assert len(picked) == min(count, len(refs))
    positions = [refs.index(ref) for ref in picked]
    assert positions == sorted(set(positions))
    if refs:
        assert picked[0] == refs[0]
        assert picked[-1] == refs[-1]
