"""The whole engine on a real device: what no interpreter and no fake device can show.

`python benchmarks/gpu/gpu_tests.py` runs these tests on a machine that has a GPU. They run on the
processor too, so that a rename breaks them where there is none.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from nvila_core import NVILA, Engine, SamplingParams, Video

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
        ],
    ),
]


def asks(pictures: Any) -> list[list[Any]]:
    """Return requests of text, of pictures and of videos, of which some begin alike."""
    photo, video = pictures.image(300, 200), Video([pictures.image() for _ in range(4)])
    return [
        ["Say something."],
        [photo, "What is it?"],
        [video, "What happens?"],
        [photo, "What is it like?"],
        [video, photo, "Which of them is older?"],
        [Video([pictures.image() for _ in range(20)]), "What happened here?"],
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_the_engine_answers_as_generate(device: str, tiny_folder: Path, pictures: Any) -> None:
    # given an engine that reads prompts in chunks, and a model beside it
    reference = NVILA.from_pretrained(tiny_folder, device)
    model = NVILA.from_pretrained(tiny_folder, device)
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    requests = asks(pictures) * 2
    # when its thread answers many requests at once
    with Engine(model, 8, 4096, max_num_batched_tokens=48) as engine:
        handles = [engine.submit(parts, params) for parts in requests]
        answers = [handle.result(120).token_ids for handle in handles]
        stats = engine.stats()
    # then each answer is the one that the model gives alone
    for parts, answer in zip(requests, answers, strict=True):
        assert answer == reference.generate(parts, params).token_ids
    assert stats["cached_tokens"] > 0
    # and a GPU used what is made for it
    if device == "cuda":
        assert engine.runner.graphs is not None
        assert engine.encoder.tower is not None


@pytest.mark.parametrize("device", DEVICES)
def test_a_seed_draws_the_same_in_any_batch(device: str, tiny_folder: Path, pictures: Any) -> None:
    # given requests that sample, each with its seed
    requests = asks(pictures)
    kinds = [
        SamplingParams(
            max_tokens=12, ignore_eos=True, temperature=0.8, top_p=0.9, top_k=40, seed=seed
        )
        for seed in range(len(requests))
    ]
    model = NVILA.from_pretrained(tiny_folder, device)
    # when they are answered one by one, and together
    with Engine(model, 1, 4096) as engine:
        handles = [engine.submit(p, k) for p, k in zip(requests, kinds, strict=True)]
        alone = [handle.result(120).token_ids for handle in handles]
    with Engine(model, 8, 4096, max_num_batched_tokens=48) as engine:
        handles = [engine.submit(p, k) for p, k in zip(requests, kinds, strict=True)]
        together = [handle.result(120).token_ids for handle in handles]
    # then they are the same
    assert together == alone


@pytest.mark.parametrize("device", DEVICES)
def test_cancelled_requests_leave_nothing(device: str, tiny_folder: Path, pictures: Any) -> None:
    # given an engine, and requests that would take long
    long = SamplingParams(max_tokens=2000, ignore_eos=True)
    with Engine(NVILA.from_pretrained(tiny_folder, device), 8, 16384) as engine:
        handles = [engine.submit(parts, long) for parts in asks(pictures)]
        # when they are cancelled
        for handle in handles:
            handle.cancel()
        reasons = {handle.result(120).finish_reason for handle in handles}
        # then nothing is left of them, and the next one is answered
        assert reasons <= {"cancelled", "length"}
        stats = engine.stats()
        assert (stats["running"], stats["waiting"], stats["kv_tokens"]) == (0, 0, 0)
        short = SamplingParams(max_tokens=4, ignore_eos=True)
        assert len(engine.submit(["And now?"], short).result(120).token_ids) == 4
