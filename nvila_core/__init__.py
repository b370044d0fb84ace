"""NVILA and NVILA-Lite, the model and its engine, usable alone.

    from nvila_core import NVILA, Video, SamplingParams, Engine

The names are loaded on first use, so importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvila_core.engine.engine import Engine as Engine
    from nvila_core.errors import CheckpointError as CheckpointError
    from nvila_core.errors import NVILAError as NVILAError
    from nvila_core.errors import PromptTooLong as PromptTooLong
    from nvila_core.generation.completion import Completion as Completion
    from nvila_core.generation.sampling import SamplingParams as SamplingParams
    from nvila_core.media.video import Video as Video
    from nvila_core.model import NVILA as NVILA
    from nvila_core.resolution.meter import Meter as Meter
    from nvila_core.resolution.meter import measure as measure
    from nvila_core.resolution.policy import Budget as Budget
    from nvila_core.resolution.policy import Measures as Measures
    from nvila_core.resolution.policy import Plan as Plan
    from nvila_core.resolution.policy import Policy as Policy

HOMES = {
    "Adaptive": "resolution.policy",
    "Budget": "resolution.policy",
    "CheckpointError": "errors",
    "Completion": "generation.completion",
    "Engine": "engine.engine",
    "EmptyPrompt": "errors",
    "DeadlineExceeded": "errors",
    "DeviceLost": "errors",
    "EngineStopped": "errors",
    "Fixed": "resolution.policy",
    "Handle": "engine.handle",
    "Measures": "resolution.policy",
    "MediaError": "errors",
    "NotFinite": "errors",
    "Meter": "resolution.meter",
    "NVILA": "model",
    "NVILAError": "errors",
    "Native": "resolution.policy",
    "Plan": "resolution.policy",
    "Prompt": "prompt.builder",
    "Policy": "resolution.policy",
    "PromptError": "errors",
    "PromptTooLong": "errors",
    "SamplingParams": "generation.sampling",
    "Timings": "generation.completion",
    "Usage": "generation.completion",
    "Video": "media.video",
    "measure": "resolution.meter",
}
__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
