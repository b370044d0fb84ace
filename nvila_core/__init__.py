"""NVILA and NVILA-Lite, the model and its engine, usable alone.

    from nvila_core import NVILA, Video, SamplingParams, Engine

The names are loaded on first use, so importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .completion import Completion as Completion
    from .engine import Engine as Engine
    from .errors import CheckpointError as CheckpointError
    from .errors import NVILAError as NVILAError
    from .errors import PromptTooLong as PromptTooLong
    from .model import NVILA as NVILA
    from .sampling import SamplingParams as SamplingParams
    from .video import Video as Video

HOMES = {
    "CheckpointError": "errors",
    "Completion": "completion",
    "Engine": "engine",
    "EmptyPrompt": "errors",
    "EngineStopped": "errors",
    "Handle": "handle",
    "MediaError": "errors",
    "NVILA": "model",
    "NVILAError": "errors",
    "Prompt": "prompt",
    "PromptError": "errors",
    "PromptTooLong": "errors",
    "SamplingParams": "sampling",
    "Timings": "completion",
    "Usage": "completion",
    "Video": "video",
}
__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
