"""Describe the machine, compute percentiles, and print tables for docs/."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil


def machine() -> dict[str, Any]:
    """Return the processor, its usable cores, and the versions of Python and the main libraries."""
    names = {"model name", "Hardware", "Model"}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.split("\t")[0] in names]
    return {
        "cpu": found[0] if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in ("av", "rq", "redis", "torch")},
    }


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def percentiles(values: Sequence[float], *wanted: int) -> list[float]:
    """Return the percentiles `wanted` (1 to 99) of at least one value."""
    if len(values) == 1:
        return [values[0]] * len(wanted)
    cuts = quantiles(values, n=100, method="inclusive")
    return [cuts[percent - 1] for percent in wanted]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def publish(result: dict[str, Any], header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print `result` as JSON when `--json` was given, else the table and the machine."""
    result = {**result, "machine": machine()}
    if "--json" in sys.argv:
        print(json.dumps(result, indent=2))
        return
    print("| " + " | ".join(header) + " |")
    print("|---" + "|---:" * (len(header) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(map(_cell, row)) + " |")
    this = result["machine"]
    libraries = ", ".join(f"{name} {this[name]}" for name in ("av", "rq", "redis", "torch"))
    print(f"\n{this['cpu']}, {this['cores']} cores, Python {this['python']}, {libraries}")
