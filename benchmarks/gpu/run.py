"""Check and measure the engine on a GPU that is lent for minutes; see README.md.

    python benchmarks/gpu/run.py --out FOLDER [--seconds 240] [--part check --part decode]

The parts run in order of importance. One that fails, or whose numbers are wrong, fails the run, and
the next one runs, unless the card is lost; after each, FOLDER/gpu.json has all results so far.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import absent

MISSING = absent.install()

import torch  # noqa: E402


def card(device: torch.device) -> dict[str, Any]:
    """Describe the machine, and measure its peaks."""
    from timing import device_ms

    found: dict[str, Any] = {"torch": torch.__version__, "missing": ", ".join(MISSING)}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = "missing"
    if device.type == "cuda":
        found["card"] = torch.cuda.get_device_name(device)
    side = 8192 if device.type == "cuda" else 256
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    found["bf16 TFLOP/s"] = 2 * side**3 / device_ms(lambda: a @ a, device, 10) / 1e9
    size = 2**31 if device.type == "cuda" else 2**22
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy GB/s"] = 2 * size / device_ms(lambda: target.copy_(source), device, 10) / 1e6
    return {"": found}


def parts(device: torch.device, small: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the parts in order of importance; `small` ones show on a CPU that they run."""

    def check(dtype: torch.dtype) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            import kernel

            return kernel.check(device, dtype, 1 if small else 5)

        return run

    def speed() -> dict[str, Any]:
        import kernel

        return kernel.speed(device, small)

    def decode(name: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            import steps

            if small:
                return steps.measure("tiny", device, 64, (1, 2))
            return steps.measure(name, device, 9800, (1, 8, 32) if name == "2b" else (1, 32))

        return run

    def tower() -> dict[str, Any]:
        import vision

        found: dict[str, Any] = vision.measure(device, *(("tiny", (1, 2)) if small else ()))
        return found

    def shares() -> dict[str, Any]:
        import shares

        return shares.measure(device, *(("tiny", 64, 2, 2) if small else ()))

    def formats() -> dict[str, Any]:
        import formats

        return formats.measure(device, small)

    def streams(fp8: bool = False, camera: bool = False) -> dict[str, Any]:
        import streams

        if small:
            return streams.measure(device, "tiny", 2, 4, 1, 10, fp8, camera, slots=4)
        return streams.measure(device, frames=10 if camera else 80, fp8=fp8, camera=camera)

    return {
        "card": lambda: card(device),
        "check": check(torch.bfloat16),
        "decode": decode("2b"),
        "tower": tower,
        "fp8": formats,
        "speed": speed,
        "shares": shares,
        "streams": streams,
        "streams-fp8": lambda: streams(fp8=True),
        "streams-camera": lambda: streams(camera=True),
        "8b": decode("8b"),
        "float32": check(torch.float32),
    }


def show(name: str, found: dict[str, Any], seconds: float) -> None:
    """Print one part's results."""
    print(f"\n## {name} ({seconds:.0f} s)", flush=True)
    for label, entry in found.items():
        values = entry.items() if isinstance(entry, dict) else [("", entry)]
        cells = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in values
        )
        print(f"{label}: {cells}", flush=True)


def earlier(path: Path) -> dict[str, Any]:
    """Return what earlier runs wrote into the file: parts that do not run now are kept."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def emptied() -> bool:
    """Free the memory of a part; return False where the card answers every call with an error."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        print(f"the card is lost: {error}", flush=True)
        return False
    return True


def main() -> int:
    """Run the parts; return 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json")
    parser.add_argument("--seconds", type=float, default=240, help="begin no part after that")
    parser.add_argument("--device", default="cuda", help="cpu runs tiny sizes, interpreted")
    parser.add_argument("--part", action="append", help="repeatable; default: all")
    args = parser.parse_args()
    device = torch.device(args.device)
    known = parts(device, device.type != "cuda")
    if unknown := set(args.part or ()) - set(known):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    args.out.mkdir(parents=True, exist_ok=True)
    results = earlier(args.out / "gpu.json")
    if device.type != "cuda":
        print(
            "A rehearsal without a card, at tiny sizes: it shows that the programs run.", flush=True
        )
    elif not torch.cuda.is_available():
        print("PyTorch sees no CUDA device: see `nvidia-smi`, or rehearse with --device cpu.")
        return 1
    began, failed, lost = time.perf_counter(), [], False
    for name in args.part or known:
        part, started = known[name], time.perf_counter()
        if lost or started - began > args.seconds:
            why = "the card is lost, run it again" if lost else "the time is up"
            print(f"\n## {name}: left out, {why}", flush=True)
            continue
        try:
            results[name] = part()
            show(name, results[name], time.perf_counter() - started)
            if any(entry.get("right") is False for entry in results[name].values()):
                failed.append(name)
        except Exception as error:
            failed.append(name)
            results[name] = {"failed": {"": repr(error)}}
            print(f"\n## {name} FAILED", flush=True)
            traceback.print_exc(file=sys.stdout)
        (args.out / "gpu.json").write_text(json.dumps(results, indent=2, default=str))
        lost = device.type == "cuda" and not emptied()
    print(f"\nfailed: {', '.join(failed) or 'none'}", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
