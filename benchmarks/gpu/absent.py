"""Let the model be imported where libraries that these benchmarks never call are missing.

A machine with a GPU that is lent for minutes has PyTorch, and often neither PyAV (videos in files)
nor llguidance (answers in JSON). Stand-ins for them can be imported; they do nothing.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = ("av", "llguidance")


class StandIn(ModuleType):
    """Has every name: each is an empty class."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"__init__": lambda self, *_, **__: None})
        setattr(self, name, made)
        return made


class StandInFinder(MetaPathFinder, Loader):
    """Finds the missing libraries and all their modules."""

    def __init__(self, missing: list[str]) -> None:
        self.missing = missing

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return a spec for a module of a missing library."""
        if fullname.partition(".")[0] in self.missing:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the stand-in."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in has no code."""


def install() -> list[str]:
    """Install stand-ins for the libraries that are missing, and return their names."""
    missing = [name for name in NAMES if importlib.util.find_spec(name) is None]
    if missing:
        sys.meta_path.append(StandInFinder(missing))
    return missing
