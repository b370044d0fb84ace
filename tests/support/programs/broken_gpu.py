"""Run a gpu worker whose engine breaks, once it has warmed up.

usage: python -m tests.support.programs.broken_gpu FAULT MARK [--burst]
The file MARK counts, from one process image to the next, how often the engine broke. FAULT is:

    lost    the device is lost, once
    bug     the engine's own code fails, once
    hang    a step never ends, once
    poison  the device is lost whenever a request for 13 tokens is in the batch
    always  the device is lost in every step
    cuda    a kernel really reads where nothing is, once; for a GPU
"""

import sys
import threading
from pathlib import Path

import torch

from nvila_core.engine.scheduler import Scheduler
from nvila_core.models.language_model import LanguageModel
from workers.gpu import worker
from workers.gpu.__main__ import main
from workers.gpu.warm_up import warm_up
from workers.process import startup

POISON = 13


def install(fault: str, mark: Path) -> None:
    """Replace methods of the engine with ones that fail after the warm-up."""
    schedule, forward = Scheduler.schedule, LanguageModel.forward_step
    asked: list[int] = []

    def then_break(*arguments):
        warm_up(*arguments)
        for owner, name, replacement in (
            (Scheduler, "schedule", looked_at),
            (LanguageModel, "forward_step", broken),
        ):
            setattr(owner, name, replacement)

    def count() -> int:
        with mark.open("a") as file:
            file.write("x")
        return mark.stat().st_size

    def looked_at(scheduler, *arguments):
        work = schedule(scheduler, *arguments)
        asked[:] = [item.request.sequence.params.max_tokens for item in work]
        if fault == "bug" and work and count() == 1:
            raise KeyError("a block that is not there")
        return work

    def broken(self, *arguments):
        if fault == "hang" and count() == 1:
            threading.Event().wait()
        if fault == "cuda" and count() == 1:
            torch.zeros(1, device="cuda")[torch.tensor([1 << 20], device="cuda")]
            torch.cuda.synchronize()
        if (
            fault == "always"
            or (fault == "lost" and count() == 1)
            or (fault == "poison" and POISON in asked and count())
        ):
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return forward(self, *arguments)

    setattr(worker, "warm_up", then_break)  # noqa: B010 - mypy: it is not exported


if __name__ == "__main__":
    fault, mark = sys.argv[1:3]
    del sys.argv[1:3]
    install(fault, Path(mark))
    startup.exit_process(main())
