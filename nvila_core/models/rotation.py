"""Rotary position embedding (arXiv:2104.09864), with linear scaling of the positions."""

from functools import cached_property

import torch
from torch import Tensor, nn

from nvila_core.config import LanguageConfig


class Rotation:
    """The angles of a step's rows.

    Args:
        positions: [N], the position of each row.
        inv_freq: float32 [head size / 2], radians a position.
        dtype: of what is rotated.
    """

    def __init__(self, positions: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> None:
        self.positions, self.inv_freq, self.dtype = positions, inv_freq, dtype

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Cosines [N, 1, 1, head size / 2], and sines [N, 1, 2, head size / 2], first negative."""
        angles = self.positions.view(-1, 1, 1, 1).float() * self.inv_freq
        sines = angles.sin()
        signed = torch.cat((-sines, sines), dim=-2)
        return angles.cos().to(self.dtype), signed.to(self.dtype)

    def rotate(self, x: Tensor) -> Tensor:
        """Return x [N, heads, head size] rotated by the angles of its rows."""
        cos, sin = self.tables
        rows, heads, size = x.shape
        halves = x.view(rows, heads, 2, size // 2)
        swapped = halves.flip(2)
        if self.dtype is torch.float32:
            rotated = torch.addcmul(halves * cos, swapped, sin)
        else:  # both products are rounded, as transformers rounds them
            rotated = halves * cos + swapped * sin
        return rotated.view(rows, heads, size)


class RotaryEmbedding(nn.Module):
    """The frequencies of a checkpoint."""

    inv_freq: Tensor

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        # On the CPU even where parameters are built on the meta device: no file holds them.
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
        inv_freq = 1.0 / config.rope_theta ** (steps / config.head_dim) / config.rope_factor
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Return the rotation of rows at positions [N], for keys and queries in `dtype`."""
        return Rotation(positions, self.inv_freq, dtype)
