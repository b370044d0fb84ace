import time

import hypothesis
import pytest
import redis
from hypothesis import strategies as st

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.sampled_frame import SampledFrame
from streamer.frames.store import FrameStore, Retention

NOW = 1_800_000_000.0


@pytest.fixture
def store(redis_client):
    return FrameStore(redis_client, Retention(age=60.0, max_frames=100))


@pytest.fixture
def brief(redis_client):
    """A store whose frames expire after 50 ms."""
    return FrameStore(redis_client, Retention(age=0.05, max_frames=100))


def add(store, time, stream_id="str_1", jpeg=b"jpeg"):
    measures = Measures(640, 480, change=0.25)
    return store.put(stream_id, jpeg, measures, time=time, pts=time - NOW, decode_ms=3.5)


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
    store = FrameStore(redis_client, Retention(age=60.0, max_frames=3))
    refs = [add(store, NOW + i) for i in range(8)]
    assert store.newest("str_1", 50) == refs[5:]
    assert store.count("str_1") == 3
    assert len(redis_client.keys(redis_keys.jpeg("str_1", "*"))) == 3
    with pytest.raises(StreamerError):
        store.load(refs[4:6])


def test_every_key_has_a_time_to_live(store, redis_client):
    add(store, NOW)
    assert redis_client.pttl(redis_keys.ROOM) != -1
    redis_client.delete(redis_keys.ROOM)  # as after a second
    keys = redis_client.keys("*")
    assert len(keys) == 4
    assert all(0 < redis_client.pttl(key) <= 60_000 for key in keys)


def test_a_longer_life_holds_for_the_index_too(store, redis_client):
    add(FrameStore(redis_client, Retention(age=500.0, max_frames=100)), NOW)
    add(store, NOW + 1)
    assert redis_client.pttl(redis_keys.frame_index("str_1")) > 400_000


def test_expired_frames_are_not_listed_and_loading_them_says_why(store, brief):
    gone = add(brief, NOW)
    kept = add(store, NOW + 1)
    time.sleep(0.1)
    assert store.newest("str_1", 10) == [kept]
    assert store.between("str_1", 0, NOW + 10) == [kept]
    assert store.span("str_1") == (kept.time, kept.time)
    with pytest.raises(StreamerError, match="1 of the 2 frames") as caught:
        store.load([gone, kept])
    assert caught.value.code is ErrorCode.FRAMES_EXPIRED


def test_adding_tidies_expired_frames_away(store, brief):
    for i in range(6):
        add(brief, NOW + i)
    time.sleep(0.1)
    for i in range(3):
        add(store, NOW + 10 + i)
    assert store.count("str_1") == 3


def test_span_and_discard(store, redis_client):
    refs = [add(store, NOW + i) for i in range(300)][-100:]
    assert store.span("str_1") == (refs[0].time, refs[-1].time)
    store.discard("str_1")
    assert store.span("str_1") is None
    redis_client.delete(redis_keys.ROOM)  # as after a second
    assert redis_client.keys("*") == []


def test_loading_nothing_is_nothing(store):
    assert store.load([]) == []


def test_a_clock_that_is_set_back_hides_no_frame(store):
    # given frames, a clock set back by an hour, and the same number of frames again
    before = [add(store, NOW + i) for i in range(40)]
    after = [add(store, NOW - 3600 + i) for i in range(40)]

    # then a range finds the frames captured in it by the time before and after the step
    assert store.between("str_1", NOW - 3570, NOW) == after[30:]
    assert store.between("str_1", NOW + 30, NOW + 60) == before[30:]
    assert store.newest("str_1") == after[-1:]
    # when the clock is right again
    later = [add(store, NOW + 120 + i) for i in range(10)]
    assert store.between("str_1", NOW + 125, NOW + 200) == later[5:]
    assert store.between("str_1", NOW - 3600, NOW + 200) == before + after + later


@hypothesis.settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    # Ids ignore a clock that is set back by less than a second.
    st.lists(
        st.tuples(
            st.one_of(st.integers(-90_000, -1_600), st.integers(-500, 90_000)), st.integers(1, 5)
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(-200, 200),
    st.integers(1, 200),
)
def test_a_range_finds_what_was_captured_in_it_however_the_clock_was_set(
    store, redis_client, steps, low, length
):
    redis_client.flushall()
    now, frames = NOW, []
    for step, count in steps:
        now += step / 1000
        for _ in range(count):
            now += 0.5
            frames.append(add(store, now))

    found = store.between("str_1", NOW + low, NOW + low + length)

    assert found == [f for f in frames if NOW + low <= f.time < NOW + low + length]


def group(*times):
    """Return sampled frames, each with its place as its picture."""
    measures = Measures(640, 480, change=0.25)
    return [
        SampledFrame(b"%d" % place, measures, time, time - NOW) for place, time in enumerate(times)
    ]


def test_frames_that_are_stored_together_come_back_in_their_order(store):
    first = add(store, NOW - 1)
    refs = store.put_all("str_1", group(NOW, NOW + 1, NOW + 1, NOW + 2))
    assert store.newest("str_1", 9) == [first, *refs]
    assert [ref.time - NOW for ref in refs] == [0, 1, 1, 2]
    assert store.load(refs) == [b"0", b"1", b"2", b"3"]
    # and of more than the stream may have, the newest stay
    small = FrameStore(store._redis, Retention(age=60.0, max_frames=3))
    refs = small.put_all("str_2", group(*(NOW + n for n in range(5))))
    assert small.newest("str_2", 9) == refs[2:]


def test_frames_that_are_repeated_keep_their_ids_when_one_between_them_has_gone(
    store: FrameStore, redis_client: redis.Redis
) -> None:
    # given frames of which one has been deleted since, as thinning does
    frames = group(*(NOW + n for n in range(4)))
    refs = store.put_all("str_1", frames, token=7)
    redis_client.xdel(redis_keys.frame_index("str_1"), refs[2].id)
    # when the client repeats them, because the reply was lost
    again = store.put_all("str_1", frames, token=7)
    # then each of the others has the id that it had
    assert [ref.id for ref in again] == [refs[0].id, refs[1].id, "", refs[3].id]
    assert store.count("str_1") == 3


def test_a_shift_of_the_clock_is_noted_again_when_the_last_frame_before_it_goes(redis_client):
    # given a store of one frame, and a capture clock that was set back by an hour
    store = FrameStore(redis_client, Retention(age=60.0, max_frames=1))
    add(store, NOW)
    refs = store.put_all("str_1", group(NOW - 3600, NOW - 3599, NOW - 3598))
    # then the frame that is left is found by the time at which it was captured
    assert store.between("str_1", NOW - 3600, NOW - 3590) == refs[-1:]
    assert store.between("str_1", NOW - 10, NOW + 10) == []
