"""NVILA and NVILA-Lite: the model and its engine, usable without the streaming service.

    >>> from nvila_core import NVILA, Engine, SamplingParams, Video

The names are imported on first use, so that importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nvila_core.model_packages import require_model_packages

if TYPE_CHECKING:
    from nvila_core.engine.engine import Engine as Engine
    from nvila_core.engine.handle import Handle as Handle
    from nvila_core.errors import CheckpointError as CheckpointError
    from nvila_core.errors import DeadlineExceeded as DeadlineExceeded
    from nvila_core.errors import DeviceLost as DeviceLost
    from nvila_core.errors import EmptyPrompt as EmptyPrompt
    from nvila_core.errors import EngineStopped as EngineStopped
    from nvila_core.errors import MediaError as MediaError
    from nvila_core.errors import MediaWarning as MediaWarning
    from nvila_core.errors import NotFinite as NotFinite
    from nvila_core.errors import NVILAError as NVILAError
    from nvila_core.errors import PromptError as PromptError
    from nvila_core.errors import PromptTooLong as PromptTooLong
    from nvila_core.errors import QueueFull as QueueFull
    from nvila_core.generation.completion import Completion as Completion
    from nvila_core.generation.completion import Timings as Timings
    from nvila_core.generation.completion import Usage as Usage
    from nvila_core.generation.logprobs import TokenLogprob as TokenLogprob
    from nvila_core.generation.sampling import SamplingParams as SamplingParams
    from nvila_core.media.video import Video as Video
    from nvila_core.model import NVILA as NVILA
    from nvila_core.prompt.builder import Prompt as Prompt
    from nvila_core.resolution.meter import Meter as Meter
    from nvila_core.resolution.meter import measure as measure
    from nvila_core.resolution.policy import Adaptive as Adaptive
    from nvila_core.resolution.policy import Budget as Budget
    from nvila_core.resolution.policy import Fixed as Fixed
    from nvila_core.resolution.policy import Measures as Measures
    from nvila_core.resolution.policy import Native as Native
    from nvila_core.resolution.policy import Plan as Plan
    from nvila_core.resolution.policy import Policy as Policy

HOMES = {
    "Adaptive": "resolution.policy",
    "Budget": "resolution.policy",
    "CheckpointError": "errors",
    "Completion": "generation.completion",
    "DeadlineExceeded": "errors",
    "DeviceLost": "errors",
    "EmptyPrompt": "errors",
    "Engine": "engine.engine",
    "EngineStopped": "errors",
    "Fixed": "resolution.policy",
    "Handle": "engine.handle",
    "Measures": "resolution.policy",
    "MediaError": "errors",
    "MediaWarning": "errors",
    "Meter": "resolution.meter",
    "NVILA": "model",
    "NVILAError": "errors",
    "Native": "resolution.policy",
    "NotFinite": "errors",
    "Plan": "resolution.policy",
    "Policy": "resolution.policy",
    "Prompt": "prompt.builder",
    "PromptError": "errors",
    "PromptTooLong": "errors",
    "QueueFull": "errors",
    "SamplingParams": "generation.sampling",
    "Timings": "generation.completion",
    "TokenLogprob": "generation.logprobs",
    "Usage": "generation.completion",
    "Video": "media.video",
    "measure": "resolution.meter",
}
"""Public names, and the module of each."""

__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{HOMES[name]}")
    except ModuleNotFoundError:
        require_model_packages()
        raise
    value = globals()[name] = getattr(module, name)  # the next time it is found at once
    return value
