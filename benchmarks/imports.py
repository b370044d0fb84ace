"""Count the files, folders and imports of the packages, at revisions and as they are now.

    python benchmarks/imports.py [REVISION ...]

Prints a row of a table for each revision, then one for the working tree: the Python files, their
folders, how many of the files stand flat in `streamer/`, the imports of the packages' modules, the
pairs of folders of which one imports the other, and the circles of modules that import each other.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.import_graph import PACKAGES, circles, read_imports, sources

ROOT = Path(__file__).resolve().parents[1]


def sources_at(revision: str) -> dict[str, str]:
    """Return file -> source of the packages at a revision of git."""
    names = _git("ls-tree", "-r", "--name-only", revision, *PACKAGES).splitlines()
    return {name: _git("show", f"{revision}:{name}") for name in names if name.endswith(".py")}


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def row(name: str, files: dict[str, str]) -> str:
    """Return the row of a table."""
    imports = read_imports(files)
    folders = {path.rpartition("/")[0] for path in files}
    flat = sum(path.startswith("streamer/") and path.count("/") == 1 for path in files)
    numbers = [
        *(len(files), len(folders), flat, imports.statements),
        *(len(imports.folder_pairs()), len(circles(imports.graph))),
    ]
    return " | ".join([f"| {name}", *(f"{number:,}" for number in numbers)]) + " |"


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revisions", nargs="*", metavar="REVISION")
    arguments = parser.parse_args()
    print("| | files | folders | flat in streamer | imports | pairs of folders | circles |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for revision in arguments.revisions:
        print(row(revision, sources_at(revision)))
    print(row("now", sources(ROOT)))


if __name__ == "__main__":
    main()
