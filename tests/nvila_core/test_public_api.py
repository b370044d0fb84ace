"""The public API of nvila_core, listed: a change of a name or of a parameter must be on purpose."""

import ast
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import nvila_core
from nvila_core import (
    NVILA,
    Completion,
    Engine,
    Handle,
    SamplingParams,
    Timings,
    Usage,
    Video,
)

NAMES = """
    Adaptive Budget CheckpointError Completion DeadlineExceeded DeviceLost EmptyPrompt Engine
    EngineStopped Fixed Handle Measures MediaError MediaWarning Meter NVILA NVILAError
    Native NotFinite Plan Policy Prompt PromptError PromptTooLong QueueFull SamplingParams Timings
    TokenLogprob Usage Video measure
"""
SAMPLING = """
    max_tokens temperature top_p top_k seed repetition_penalty stop ignore_eos choice json_schema
    logprobs
"""
USAGE = "vision_tokens prompt_tokens completion_tokens tiles cached_tokens cached_tiles"

PARAMETERS = [
    (NVILA.from_pretrained, "path_or_hub_id device dtype revision quantize"),
    (
        NVILA.prepare,
        "parts num_video_frames video_max_tiles video_as policy budget plan",
    ),
    (NVILA.plan, "clip policy budget"),
    (NVILA.generate, "parts_or_prompt params on_text"),
    (NVILA.embed, "prompt"),
    (NVILA.logits, "prompt"),
    (
        Engine,
        "model max_num_seqs kv_cache_tokens max_num_batched_tokens step_tiles tile_cache_bytes "
        "tile_tolerance max_waiting clock step_tokens",
    ),
    (Engine.submit, "parts_or_prompt params policy priority deadline plan options"),
    (Engine.start, ""),
    (Engine.stop, ""),
    (Engine.step, ""),
    (Engine.stats, ""),
    (Handle.result, "timeout"),
    (Handle.stream, ""),
    (Handle.cancel, ""),
    (SamplingParams, SAMPLING),
    (Video, "frames timestamps sampled measures"),
    (Completion, "text token_ids finish_reason usage timings logprobs choice_probabilities"),
    (Usage, USAGE),
    (Timings, "queue_ms encode_ms generate_ms"),
]


def test_the_public_names() -> None:
    assert sorted(NAMES.split()) == nvila_core.__all__
    for name in nvila_core.__all__:
        assert getattr(nvila_core, name).__name__ == name


@pytest.mark.parametrize(
    ("function", "names"), PARAMETERS, ids=lambda value: getattr(value, "__qualname__", None)
)
def test_the_parameters(function: Any, names: str) -> None:
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]

    assert parameters == names.split()


@pytest.mark.parametrize(
    ("record", "names"), [(SamplingParams, SAMPLING), (Usage, USAGE)], ids=lambda value: None
)
def test_the_fields(record: Any, names: str) -> None:
    assert [field.name for field in fields(record)] == names.split()


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(nvila_core.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))

    seen = {
        alias.asname: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    homes = {name: f"nvila_core.{home}" for name, home in nvila_core.HOMES.items()}
    assert seen == homes


def test_deprecated_names_work_and_say_so(tiny: NVILA) -> None:
    with pytest.warns(DeprecationWarning, match="max_num_batched_tokens"):
        engine = Engine(tiny, kv_cache_tokens=256, step_tokens=48)
    assert engine.stats()["max_num_batched_tokens"] == 48

    with pytest.warns(DeprecationWarning, match="max_model_len"):
        assert tiny.context == tiny.max_model_len

    error = nvila_core.PromptTooLong(9, 8)
    with pytest.warns(DeprecationWarning, match="max_model_len"):
        assert error.context == error.max_model_len == 8
