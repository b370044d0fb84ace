"""NaN and infinities stay with the request that made them, and nothing of them is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from nvila_core import NVILA, Engine, NotFinite, SamplingParams
from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from nvila_core.cli import main
from nvila_core.engine.engine import BLOCK_SIZE
from nvila_core.engine.kv_cache import KVCache

POISON = "~"
"""A character whose embedding a test replaces."""

SHARED = "The camera looks at a street corner in the rain. " * 2
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def poisoned(folder: Path, value: float = float("nan")) -> NVILA:
    """Load a model of which one character, which it never draws, is embedded as `value`."""
    model = NVILA.from_pretrained(folder)
    table = model.language.embedding_table
    head = nn.Linear(table.shape[1], table.shape[0], bias=False)
    head.load_state_dict({"weight": table.clone()})
    model.language.lm_head = head  # tied to the table, every request would see the poison
    with torch.no_grad():
        head.weight[model.tokenizer.encode(POISON)] = 0
        table[model.tokenizer.encode(POISON)] = value
    return model


@pytest.fixture(scope="module")
def reference(tiny_folder: Path) -> NVILA:
    """The poisoned model, to answer alone what is not poisoned."""
    return poisoned(tiny_folder)


def run(engine: Engine) -> None:
    while engine.step():
        pass


texts = st.sampled_from(["", "One.", "A lorry turns.", "Who crosses the street there, and when?"])
requests = st.tuples(
    st.booleans(),  # begins with the shared text
    texts,
    st.sampled_from(["", "", POISON]),
    texts,
    st.integers(0, 2),  # priority
    st.integers(0, 3),  # steps before the next one arrives
    st.sampled_from([None, None, 1, 2]),  # cancelled after so many further arrivals
)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    mix=st.lists(requests, min_size=2, max_size=8),
    positions=st.integers(300, 700),
    max_num_batched_tokens=st.sampled_from([17, 60, 512]),
    value=st.sampled_from([float("nan"), float("inf"), float("-inf")]),
)
@example(  # the blocks of a poisoned prompt, cancelled before its first token, go to the next
    mix=[
        (False, "", POISON, "Who crosses the street there, and when?", 0, 4, 1),
        (False, "One.", "", "", 0, 0, None),
        (False, "A lorry turns.", "", "", 0, 0, None),
    ],
    positions=300,
    max_num_batched_tokens=17,
    value=float("nan"),
)
@example(  # requests of different lengths are padded to one
    mix=[(False, "", POISON, "", 0, 0, None), *([(True, "One.", "", "", 0, 1, None)] * 3)],
    positions=700,
    max_num_batched_tokens=512,
    value=float("inf"),
)
def test_neighbours_of_a_poisoned_request_answer_as_without_it(
    tiny_folder: Path,
    reference: NVILA,
    mix: list[tuple[bool, str, str, str, int, int, int | None]],
    positions: int,
    max_num_batched_tokens: int,
    value: float,
) -> None:
    # given an engine with little memory, and requests some of which compute NaN
    engine = Engine(
        poisoned(tiny_folder, value),
        kv_cache_tokens=positions,
        max_num_batched_tokens=max_num_batched_tokens,
        tile_cache_bytes=0,
    )
    handles: list[Any] = []
    prompts = [f"{SHARED * shared}{a}{poison}{b}?" for shared, a, poison, b, *_ in mix]
    # when they arrive one after another, and some are cancelled
    for prompt, (*_, priority, steps, _) in zip(prompts, mix, strict=True):
        for handle, (*_, after) in zip(handles, mix, strict=False):
            if after is not None and len(handles) - handles.index(handle) == after:
                handle.cancel()
        handles.append(engine.submit([prompt], GREEDY, priority=priority))
        for _ in range(steps):
            engine.step()
    run(engine)
    # then only the poisoned ones fail, and each of the others answers as it does alone
    for prompt, handle in zip(prompts, handles, strict=True):
        if POISON in prompt and not handle.cancelled:
            with pytest.raises(NotFinite, match="not numbers"):
                handle.result(0)
        elif POISON not in prompt:
            answer = handle.result(0).token_ids
            assert answer == reference.generate([prompt], GREEDY).token_ids[: len(answer)]
            assert handle.cancelled or len(answer) == GREEDY.max_tokens
    # and nothing in memory is left that could hurt a later one
    assert engine.stats()["kv_tokens"] == 0
    assert all(bool(part.isfinite().all()) for part in (*engine.cache.keys, *engine.cache.values))
    padding = engine.cache.padding_block
    assert not engine.cache.keys[0][padding].any()
    assert not engine.cache.values[0][padding].any()


def test_a_failed_step_leaves_no_unchecked_values(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a language model that breaks down after it has stored NaN
    model = poisoned(tiny_folder)
    engine = Engine(model)
    forward_step = model.language.forward_step

    def compute_and_fail(*arguments: Any) -> Any:
        forward_step(*arguments)
        raise ValueError("broke down")

    monkeypatch.setattr(model.language, "forward_step", compute_and_fail)
    handle = engine.submit([f"a long question {POISON}"], GREEDY)
    # when
    run(engine)
    # then the request fails with that error, and its blocks are clean
    with pytest.raises(ValueError, match="broke down"):
        handle.result(0)
    assert all(bool(part.isfinite().all()) for part in (*engine.cache.keys, *engine.cache.values))


def test_the_features_of_a_damaged_picture_are_not_cached(
    tiny_folder: Path, tiny: NVILA, pictures: Any
) -> None:
    # given a picture of which the tower makes NaN once, in two requests of one step
    engine = Engine(NVILA.from_pretrained(tiny_folder))
    picture = pictures.image()
    prompt = engine.model.prepare([picture, "What is this?"])
    broken = replace(prompt, processor=replace(prompt.processor, mean=(float("nan"),) * 3))
    damaged = [engine.submit(broken, GREEDY) for _ in range(2)]
    other = engine.submit([pictures.image(), "And this?"], GREEDY)
    run(engine)
    for handle in damaged:
        with pytest.raises(NotFinite, match="features of a picture"):
            handle.result(0)
    assert len(other.result(0).token_ids) == GREEDY.max_tokens
    # when the same picture is asked about again
    again = engine.submit(prompt, GREEDY)
    run(engine)
    # then it is encoded again, and answered
    answer = again.result(0)
    assert answer.usage.cached_tiles == 0
    assert answer.token_ids == tiny.generate(prompt, GREEDY).token_ids
    assert engine.stats()["failed"] == 2


def test_an_infinite_key_is_found_though_the_logits_are_finite() -> None:
    # given a cache with an infinite key in one slot of one layer
    cache = KVCache(
        num_layers=3,
        num_kv_heads=2,
        head_dim=8,
        num_blocks=4,
        block_size=BLOCK_SIZE,
        dtype=torch.float16,
        device=torch.device("cpu"),
    )
    cache.keys[1][2, 5, 1, 3] = float("-inf")
    slots = torch.tensor([2 * BLOCK_SIZE + offset for offset in (4, 5, 6)])
    # then the slot is found, and a zeroed block is finite again
    assert cache.are_finite(slots).tolist() == [True, False, True]
    cache.zero([2])
    assert cache.are_finite(slots).tolist() == [True, True, True]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_generate_raises_instead_of_answering_nonsense(tiny_folder: Path, value: float) -> None:
    model = poisoned(tiny_folder, value)
    with pytest.raises(NotFinite, match="logits are not numbers"):
        model.generate([f"What {POISON} is this?"], GREEDY)
    with pytest.raises(NotFinite, match="logits are not numbers"):
        model.generate([f"{POISON}"], SamplingParams(temperature=1.0, seed=1))


def test_ask_says_in_one_line_that_the_tower_makes_no_numbers(
    tmp_path: Path, pictures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a checkpoint with a damaged weight in its vision tower
    root, photo = write_checkpoint(tmp_path / "damaged"), tmp_path / "photo.png"
    pictures.image().save(photo)
    file = root / "vision_tower" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if ".layers.0." in name and name.endswith("fc1.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    # when
    code = main(["ask", "--model", str(root), "--device", "cpu", str(photo), "What is this?"])
    # then
    shown = capsys.readouterr()
    assert (code, shown.out) == (1, "")
    assert shown.err.startswith("error: The model's features of a picture are not numbers")
    assert shown.err.count("\n") == 1
