"""The engine with a tower that works beside its steps, as on a GPU: same answers, same failures."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvila_core import NVILA, DeviceLost, Engine, NotFinite, SamplingParams
from nvila_core.engine.background_tower import MAX_PASSES
from nvila_core.media.preprocess import Processor
from tests.nvila_core.engine.test_engine_property import Stock, check_answers, mixes, some

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)


class LaterTower:
    """A tower whose passes take a few steps; on a CPU, so that its numbers are real.

    Args:
        model: its tower and projector are used.
        looks: how often a pass is looked at before it is done, at most.
        seed: of the number for each pass.
    """

    max_tiles = 5

    def __init__(self, model: NVILA, looks: int = 0, seed: int = 0) -> None:
        self.model, self.looks, self.random = model, looks, Random(seed)
        self.flying: list[LaterPass] = []
        self.started: list[int] = []
        self.most = 0
        self.refusal: Exception | None = None

    def has_room(self) -> bool:
        return len(self.flying) < MAX_PASSES

    def start(self, tiles: Sequence[NDArray[np.uint8]], processor: Processor) -> "LaterPass":
        assert self.has_room()
        assert 0 < len(tiles) <= self.max_tiles
        if self.refusal is not None:
            raise self.refusal
        self.started.append(len(tiles))
        self.flying.append(LaterPass(self, np.stack(tiles), processor))
        self.most = max(self.most, len(self.flying))
        return self.flying[-1]


class LaterPass:
    """A pass that reads its pixels at once, and computes when it is taken."""

    def __init__(self, tower: LaterTower, tiles: NDArray[np.uint8], processor: Processor) -> None:
        self.tower, self.pixels = tower, processor.normalise(tiles)
        self.left = tower.random.randint(0, tower.looks)
        self.error: Exception | None = None

    def is_done(self) -> bool:
        self.left -= 1
        return self.left < 0

    def take(self) -> tuple[list[Tensor], list[bool]]:
        self.tower.flying.remove(self)
        if self.error is not None:
            raise self.error
        features = self.tower.model.encode_tiles(self.pixels)
        return [one.clone() for one in features], [bool(one.isfinite().all()) for one in features]


@pytest.fixture(scope="module")
def stock(tiny_folder: Path) -> Stock:
    return Stock(tiny_folder)


@pytest.fixture
def slow_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each engine a tower whose passes take up to three looks."""
    monkeypatch.setattr(
        "nvila_core.engine.engine.make_tower", lambda model: LaterTower(model, looks=3)
    )
    monkeypatch.setattr("nvila_core.engine.engine.TOWER_POLL_SECONDS", 0.0)


@pytest.fixture
def model(tiny_folder: Path) -> NVILA:
    return NVILA.from_pretrained(tiny_folder)


def run(engine: Engine) -> None:
    while engine.step():
        pass


def flights(engine: Engine) -> list[LaterPass]:
    tower: Any = engine.encoder.tower
    return list(tower.flying)


class TestAnyMix:
    """Requests that come, share tiles, are preempted and are cancelled while passes run."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def tower(cls) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "nvila_core.engine.engine.make_tower", lambda model: LaterTower(model, looks=3)
            )
            patch.setattr("nvila_core.engine.engine.TOWER_POLL_SECONDS", 0.0)
            yield

    @some(6)
    @mixes
    def test_every_answer_is_the_one_given_alone(self, stock: Stock, **mix: Any) -> None:
        check_answers(stock, **mix)

    @pytest.mark.slow
    @some(300)
    @mixes
    def test_every_answer_of_many_mixes(self, stock: Stock, **mix: Any) -> None:
        check_answers(stock, **mix)


@pytest.mark.usefixtures("slow_tower")
def test_requests_decode_while_tiles_are_encoded(model: NVILA, pictures: Any) -> None:
    # given a request that decodes, and one with pictures
    engine = Engine(model, step_tiles=2)
    talk = engine.submit(["Go on"], SamplingParams(max_tokens=60, ignore_eos=True))
    engine.step()
    look = engine.submit([pictures.image(), "What is it?"], GREEDY)
    # when the tower has a pass in flight
    tower: Any = engine.encoder.tower
    tower.looks = 10**6
    engine.step()
    assert flights(engine)
    (decoding,) = [r for r in engine.scheduler.running if not r.tile_hashes]
    before = len(decoding.sequence.token_ids)
    for _ in range(5):
        engine.step()
    # then the other has got a token in each step, and the pictures none
    assert len(decoding.sequence.token_ids) == before + 5
    assert not look.done
    assert tower.most <= MAX_PASSES
    # and when the passes are done, both answer
    tower.looks = 0
    for each in flights(engine):
        each.left = 0
    run(engine)
    assert len(talk.result(0).token_ids) == 60
    assert look.result(0).usage.cached_tiles == 0


@pytest.mark.usefixtures("slow_tower")
def test_a_tile_in_flight_is_not_encoded_again(model: NVILA, pictures: Any) -> None:
    # given two requests with one picture, without a cache
    engine = Engine(model, tile_cache_bytes=0)
    picture = pictures.image()
    asks = [[picture, "What is it?"], ["First this:", picture, "And that?"]]
    handles = [engine.submit(ask, GREEDY) for ask in asks]
    # when both run
    run(engine)
    # then its tiles went through the tower once, and both answers are right
    tower: Any = engine.encoder.tower
    tiles = handles[0].result(0).usage.tiles
    assert sum(tower.started) == engine.stats()["encoded_tiles"] == tiles
    reference = NVILA.generate
    for ask, handle in zip(asks, handles, strict=True):
        assert handle.result(0).token_ids == reference(model, ask, GREEDY).token_ids


@pytest.mark.usefixtures("slow_tower")
def test_what_ends_while_its_tiles_are_encoded_frees_its_memory(
    model: NVILA, pictures: Any
) -> None:
    # given a request whose pass is in flight
    engine = Engine(model)
    picture = pictures.image()
    cancelled = engine.submit([picture, "What is it?"], GREEDY)
    engine.step()
    assert flights(engine)
    # when it is cancelled, and another asks about the same picture
    cancelled.cancel()
    other = engine.submit([picture, "And now?"], GREEDY)
    run(engine)
    # then the other uses the features of the pass
    assert cancelled.result(0).finish_reason == "cancelled"
    assert other.result(0).token_ids == model.generate([picture, "And now?"], GREEDY).token_ids
    assert engine.stats()["encoded_tiles"] == other.result(0).usage.tiles
    assert engine.stats()["kv_tokens"] == 0


@pytest.mark.usefixtures("slow_tower")
def test_an_engine_that_stops_waits_for_the_tower(model: NVILA, pictures: Any) -> None:
    # given an engine with a pass in flight
    engine = Engine(model)
    picture = pictures.image()
    handle = engine.submit([picture, "What is it?"], GREEDY)
    engine.step()
    assert flights(engine)
    # when it stops
    engine.stop()
    # then nothing is in flight, and it can run again
    assert handle.done
    assert not flights(engine)
    engine.start()
    again = engine.submit([picture, "What is it?"], GREEDY)
    answer = again.result(60)
    engine.stop()
    assert answer.token_ids == model.generate([picture, "What is it?"], GREEDY).token_ids


@pytest.mark.usefixtures("slow_tower")
def test_a_pass_that_fails_fails_its_requests_alone(model: NVILA, pictures: Any) -> None:
    # given two pictures in passes of their own, and a text
    engine = Engine(model, step_tiles=1)
    first = engine.submit([pictures.image(60, 60), "One?"], GREEDY)
    engine.step()
    failing = flights(engine)[0]
    second = engine.submit([pictures.image(64, 64), "Two?"], GREEDY)
    text = engine.submit(["Three?"], GREEDY)
    # when the pass of the first breaks down
    failing.error = ValueError("broke down")
    run(engine)
    # then the others answer
    with pytest.raises(ValueError, match="broke down"):
        first.result(0)
    assert len(second.result(0).token_ids) == len(text.result(0).token_ids) == 6


@pytest.mark.usefixtures("slow_tower")
def test_features_that_are_not_finite_fail_their_requests_alone(
    model: NVILA, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a pass of two requests, of which one is damaged
    engine = Engine(model)
    asks = [[pictures.image(60, 60), "One?"], [pictures.image(60, 60), "Two?"]]
    handles = [engine.submit(ask, GREEDY) for ask in asks]
    encode, left = model.encode_tiles, ["the first tile"]

    def damage(pixels: Tensor) -> Tensor:
        features = encode(pixels)
        if left:
            features[0, 0, 0] = float("inf")
            left.clear()
        return features

    monkeypatch.setattr(model, "encode_tiles", damage)
    run(engine)
    # then it alone fails, and its features are not kept
    with pytest.raises(NotFinite, match="features of a picture"):
        handles[0].result(0)
    assert handles[1].result(0).token_ids == model.generate(asks[1], GREEDY).token_ids
    assert len(engine.tile_cache) == handles[1].result(0).usage.tiles


@pytest.mark.usefixtures("slow_tower")
def test_a_tower_without_memory_for_a_pass_encodes_in_the_step(model: NVILA, pictures: Any) -> None:
    # given a tower that cannot start a pass
    engine = Engine(model)
    tower: Any = engine.encoder.tower
    tower.refusal = torch.OutOfMemoryError("no room")
    ask = [pictures.image(), "What is it?"]
    # when a request has pictures, then it is answered nevertheless
    handle = engine.submit(ask, GREEDY)
    run(engine)
    assert handle.result(0).token_ids == model.generate(ask, GREEDY).token_ids


@pytest.mark.usefixtures("slow_tower")
def test_a_device_lost_by_the_tower_ends_every_request(model: NVILA, pictures: Any) -> None:
    # given requests with a pass in flight
    engine = Engine(model)
    handle = engine.submit([pictures.image(), "What is it?"], GREEDY)
    engine.step()
    # when the device is lost
    flights(engine)[0].error = torch.AcceleratorError("an illegal access")
    # then the engine says so
    with pytest.raises(DeviceLost):
        run(engine)
    engine.stop()
    assert handle.done


def test_a_prompt_that_waits_for_the_tower_lets_texts_pass_but_no_pictures(
    model: NVILA, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a tower that is busy, and an engine of small steps
    monkeypatch.setattr(
        "nvila_core.engine.engine.make_tower", lambda model: LaterTower(model, looks=10**6)
    )
    engine = Engine(model, max_num_batched_tokens=16)
    looks = [engine.submit([pictures.image(), f"What is it, {n}?"], GREEDY) for n in range(4)]
    text = engine.submit(["Just text?"], GREEDY)
    # when it runs for a while
    for _ in range(30):
        engine.step()
    # then the text is answered, and one prompt with pictures holds blocks, the others none
    assert text.done
    assert not any(look.done for look in looks)
    assert len(engine.scheduler.running) == 1
    assert engine.stats()["waiting"] == 3
    engine.stop()
