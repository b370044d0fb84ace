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
    from .meter import Meter as Meter
    from .meter import measure as measure
    from .model import NVILA as NVILA
    from .resolution import Budget as Budget
    from .resolution import Measures as Measures
    from .resolution import Plan as Plan
    from .resolution import Policy as Policy
    from .sampling import SamplingParams as SamplingParams
    from .video import Video as Video

HOMES = {
    "Adaptive": "resolution",
    "Budget": "resolution",
    "CheckpointError": "errors",
    "Completion": "completion",
    "Engine": "engine",
    "EmptyPrompt": "errors",
    "DeadlineExceeded": "errors",
    "DeviceLost": "errors",
    "EngineStopped": "errors",
    "Fixed": "resolution",
    "Handle": "handle",
    "Measures": "resolution",
    "MediaError": "errors",
    "NotFinite": "errors",
    "Meter": "meter",
    "NVILA": "model",
    "NVILAError": "errors",
    "Native": "resolution",
    "Plan": "resolution",
    "Prompt": "prompt",
    "Policy": "resolution",
    "PromptError": "errors",
    "PromptTooLong": "errors",
    "SamplingParams": "sampling",
    "Timings": "completion",
    "Usage": "completion",
    "Video": "video",
    "measure": "meter",
}
__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
