"""Projectors: shapes, published indices, and the zero padding."""

import pytest
import torch

from nvila_core.config import is_known_projector, tokens_per_side
from nvila_core.models.projector import Downsample, build_projector


@pytest.mark.parametrize(
    ("kind", "grid", "tokens", "indices"),
    [
        ("mlp_downsample_3x3_fix", 32, 121, {1, 2, 4, 5, 7}),
        ("mlp_downsample_3x3_fix", 6, 4, {1, 2, 4, 5, 7}),
        ("mlp_downsample_2x2_fix", 32, 256, {1, 2, 4}),
        ("mlp_downsample", 9, 25, {1, 2, 4}),
        ("mlp2x_gelu", 4, 16, {0, 2}),
        ("linear", 4, 16, {0}),
    ],
)
def test_shape_and_published_indices(kind: str, grid: int, tokens: int, indices: set[int]) -> None:
    projector = build_projector(kind, 5, 7)
    out = projector(torch.randn(2, grid * grid, 5))
    assert out.shape == (2, tokens, 7)
    assert tokens_per_side(kind, grid) ** 2 == tokens
    assert {int(name.split(".")[1]) for name in projector.state_dict()} == indices


def test_true_sizes_of_nvila_lite() -> None:
    with torch.device("meta"):
        lite = build_projector("mlp_downsample_3x3_fix", 1152, 3584)
    # the published file of NVILA-Lite-8B holds 122 MB of bfloat16
    assert sum(p.numel() * 2 for p in lite.parameters()) == pytest.approx(122e6, rel=0.01)


def test_neighbours_are_merged_row_by_row_and_padded_at_the_end() -> None:
    x = torch.arange(16.0).view(1, 16, 1)
    merged = Downsample(3)(x)
    assert merged[0, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert merged[0, 1].tolist() == [3, 0, 0, 7, 0, 0, 11, 0, 0]
    assert merged[0, 3].tolist() == [15, 0, 0, 0, 0, 0, 0, 0, 0]


def test_unknown_projectors_and_odd_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown projector 'mlp_downsample_3x3_s2'"):
        build_projector("mlp_downsample_3x3_s2", 4, 4)
    assert not is_known_projector("mlp_downsample_3x3_s2")
    with pytest.raises(ValueError, match="square grid"):
        Downsample(2)(torch.zeros(1, 5, 3))
