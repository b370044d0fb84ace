"""Which modules of the packages import which, as their source says, functions' imports included."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("nvila_core", "streamer", "workers")

Graph = dict[str, set[str]]
"""Module -> the modules that it imports. A package is a module too: that of its `__init__.py`."""


class Imports(NamedTuple):
    """The imports of some files.

    Attributes:
        graph: which module imports which.
        statements: how many imports of a module there are; one in two functions counts twice.
        files: module -> its file, relative to the repository.
    """

    graph: Graph
    statements: int
    files: dict[str, str]

    def folder_pairs(self) -> set[tuple[str, str]]:
        """Return the pairs of folders of which the first has a module that imports the second's."""
        folder = {module: name.rpartition("/")[0] for module, name in self.files.items()}
        pairs = {(folder[a], folder[b]) for a, found in self.graph.items() for b in found}
        return {(a, b) for a, b in pairs if a != b}


def sources(root: Path) -> dict[str, str]:
    """Return file -> source of the packages in a folder."""
    paths = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths}


def read_imports(files: Mapping[str, str]) -> Imports:
    """Return the imports of files, given as path -> source."""
    modules = {name.removesuffix(".py").replace("/", "."): name for name in files}
    modules = {module.removesuffix(".__init__"): name for module, name in modules.items()}
    graph: Graph = {}
    statements = 0
    for module, name in modules.items():
        found = [
            {target for target in _named(node, name, modules) if target.startswith(PACKAGES)}
            for node in ast.walk(ast.parse(files[name]))
        ]
        statements += sum(map(len, found))
        graph[module] = set().union(*found) & modules.keys() - {module}
    return Imports(graph, statements, modules)


def _named(node: ast.AST, file: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Return the modules that a statement of a file imports.

    `from a import b` imports the module `a.b` if there is one.
    """
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        folders = file.split("/")[: -node.level] if node.level else []
        package = ".".join([*folders, *filter(None, [node.module])])
        for alias in node.names:
            inside = f"{package}.{alias.name}"
            yield inside if inside in modules else package


def circles(graph: Graph) -> list[list[str]]:
    """Return each group of modules of which every one imports, in some steps, every other."""
    reached = {module: _reached(graph, module) for module in graph}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
        if module in reached[module]
    }
    return sorted(map(list, groups))


def _reached(graph: Graph, module: str) -> set[str]:
    found: set[str] = set()
    ahead = [module]
    while ahead:
        new = graph[ahead.pop()] - found
        found |= new
        ahead += new
    return found
