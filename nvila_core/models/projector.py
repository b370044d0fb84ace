"""Map vision features to LLM embeddings: k x k neighbouring patches become one token.

NVILA-Lite merges 3x3 patches (1024 -> 121 tokens a tile), NVILA 2x2 (1024 -> 256). Submodule
indices are those of the published `mm_projector/model.safetensors` (`layers.{n}.weight`).
"""

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvila_core.config import DOWNSAMPLING, MLP_PROJECTOR


class Downsample(nn.Module):
    """Merges k x k patches: [B, g*g, C] to [B, m*m, k*k*C] with m = ceil(g/k).

    The grid is zero-padded after its last row and column.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        grid, k = isqrt(tokens), self.factor
        if grid * grid != tokens:
            raise ValueError(f"downsampling needs a square grid of patches, not {tokens} patches")
        x = x.view(batch, grid, grid, channels)
        if pad := -grid % k:
            x = F.pad(x, (0, 0, 0, pad, 0, pad))
        m = (grid + pad) // k
        x = x.view(batch, m, k, m, k, channels).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, m * m, k * k * channels)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class Projector(nn.Module):
    """Maps vision features [B, N, C] to LLM embeddings [B, M, D]; see `build_projector`."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        with torch.cuda.device_of(x):  # Triton launches on the current device
            out: Tensor = self.layers(x)
        return out


def build_projector(kind: str, vision_hidden: int, llm_hidden: int) -> Projector:
    """Build a randomly initialised projector from width `vision_hidden` to width `llm_hidden`.

    Args:
        kind: `mm_projector_type` of the checkpoint, e.g. "mlp_downsample_3x3_fix".
        vision_hidden: channels of one patch feature (times the number of scales for dynamic S2).
        llm_hidden: width of the LLM's embeddings.

    Raises:
        ValueError: `kind` is unknown.
    """
    c, d = vision_hidden, llm_hidden
    if kind == "mlp_downsample_3x3_fix":
        return Projector(
            nn.Sequential(
                Downsample(3),
                nn.LayerNorm(9 * c),
                nn.Linear(9 * c, 3 * c),
                nn.GELU(),
                nn.LayerNorm(3 * c),
                nn.Linear(3 * c, d),
                nn.GELU(),
                nn.Linear(d, d),
            )
        )
    if kind in DOWNSAMPLING:
        return Projector(
            nn.Sequential(
                Downsample(2), nn.LayerNorm(4 * c), nn.Linear(4 * c, d), nn.GELU(), nn.Linear(d, d)
            )
        )
    if kind == "identity":
        return Projector(nn.Sequential(nn.Identity()))
    if kind == "linear":
        return Projector(nn.Sequential(nn.Linear(c, d)))
    if match := MLP_PROJECTOR.fullmatch(kind):
        layers: list[nn.Module] = [nn.Linear(c, d)]
        for _ in range(int(match[1]) - 1):
            layers += [nn.GELU(), nn.Linear(d, d)]
        return Projector(nn.Sequential(*layers))
    known = ", ".join([*DOWNSAMPLING, "identity", "linear", "mlp2x_gelu"])
    raise ValueError(f"unknown projector {kind!r}; known are {known}")
