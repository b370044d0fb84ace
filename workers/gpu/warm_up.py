"""Answer one small clip before the worker says that it is ready, so that no user waits for it.

The first answer of a process takes longer than the next: libraries are imported, PyTorch chooses
its kernels, and on a GPU Triton compiles and the first graph of a decode step is recorded.
"""

import math
import random
from typing import TYPE_CHECKING, Any

import structlog

from workers.context import WorkerContext
from workers.gpu.engine_backend import parts_of

if TYPE_CHECKING:
    from nvila_core import Engine, Handle

_log = structlog.get_logger(__name__)

_MAX_SECONDS = 60.0
"""A model that is slower than this is ready without having answered."""

_PICTURES = 2
_TOKENS = 3  # one by reading the prompt, one by a step of its own, one more by a step in flight
_CHECK_INTERVAL = 0.1  # seconds between two checks whether the worker is to end


def warm_up(own: WorkerContext, engine: "Engine") -> None:
    """Answer a question about two small pictures, from their JPEGs to the last token.

    Whatever fails is logged: the first request will meet it again, and can tell its user. An engine
    that breaks down ends the worker. The counts of the engine begin after it.
    """
    from nvila_core import EngineStopped, NVILAError, SamplingParams

    began = own.clock.monotonic()
    try:
        handle = engine.submit(
            parts_of(_pictures(engine.model.config.processor.size), "What is there?"),
            SamplingParams(max_tokens=_TOKENS, ignore_eos=True),
        )
        while not _has_ended(handle):
            if own.stopping.is_set() or own.clock.monotonic() - began > _MAX_SECONDS:
                handle.cancel()
                return
    except EngineStopped as error:
        own.fail(error.reason)
    except (NVILAError, RuntimeError, MemoryError) as error:
        _log.warning("not_warmed_up", reason=str(error))
    else:
        engine.reset_stats()
        _log.info("warmed_up", seconds=round(own.clock.monotonic() - began, 2))


def _has_ended(handle: "Handle") -> bool:
    """Wait a moment for the answer; raise what it failed with."""
    ended = handle.done
    try:
        handle.result(timeout=_CHECK_INTERVAL)
    except TimeoutError:
        if ended:  # an error of the model's own
            raise
        return False
    return True


def _pictures(side: int) -> list[Any]:
    """Return pictures of noise, which no camera shows, RGB uint8 [side, side, 3]; by way of JPEGs,
    as frames are kept."""
    import numpy as np

    from streamer.frames.jpeg import from_jpeg, to_jpeg

    shape = (_PICTURES, side, side, 3)
    # not by numpy.random: only this would import it, and it takes memory
    noise = np.frombuffer(random.Random(0).randbytes(math.prod(shape)), np.uint8).reshape(shape)
    return [from_jpeg(to_jpeg(picture, quality=90), side, side) for picture in noise]
