"""Programs in benchmarks/gpu import each other by name, as they run from there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
