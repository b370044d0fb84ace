"""The vision tower: tiles a second, with each of PyTorch's kernels for attention."""

from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from made import SHAPES, projector, tower
from timing import device_ms, host_ms
from torch.nn.attention import SDPBackend

from nvila_core.models import vision_tower


def flops(shape: Any) -> float:
    """Return the FLOP of one tile, attention over the full square."""
    patches, width = (shape.image // shape.patch) ** 2, shape.vision_hidden
    layer = 2 * patches * (4 * width**2 + 2 * width * shape.vision_inner) + 4 * patches**2 * width
    return float((shape.vision_layers - 1) * layer)


@torch.inference_mode()
def measure(device: torch.device, name: str = "2b", tiles: tuple[int, ...] = (1, 16, 32)) -> Any:
    """Return tiles a second and TFLOP/s of the tower, and the projector's milliseconds."""
    shape, dtype = SHAPES[name], torch.bfloat16
    model, after = tower(shape, device, dtype), projector(shape, device, dtype)
    found: dict[str, Any] = {}

    def add(label: str, count: int, ms: float) -> None:
        found[label] = {
            "ms": ms,
            "tiles/s": 1000 * count / ms,
            "TFLOP/s": count * flops(shape) / ms / 1e9,
        }

    for count in tiles:
        pixels = torch.randn(count, 3, shape.image, shape.image, device=device)
        add(f"tower, {count} tiles", count, device_ms(partial(model, pixels), device, 10))
    features = model(pixels)
    found[f"projector, {count} tiles"] = {"ms": device_ms(lambda: after(features), device, 10)}
    if device.type == "cuda":
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
            try:
                with patch.object(vision_tower, "ATTENTION_ORDER", [getattr(SDPBackend, backend)]):
                    ms = device_ms(lambda: model(pixels), device, 10)
                add(f"tower, {count} tiles, {backend.lower()}", count, ms)
            except Exception as error:
                found[f"tower, {backend.lower()}"] = {"error": str(error).split("\n")[0][:80]}
    host = torch.randint(0, 256, (count, 3, shape.image, shape.image), dtype=torch.uint8)
    found[f"{count} tiles to float32 and to the device"] = {
        "ms": host_ms(lambda: (host.float() / 127.5 - 1).to(device), device, 5)
    }
    return found
