"""Turn vision features into the LLM positions of each media token.

Source: nvila specification, sections 4 (dynamic S2) and 5.3 (Basic and TSP encoders).
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.config import EncoderConfig, ModelConfig, output_block
from nvila_core.media.item import Media
from nvila_core.models.projector import Projector
from nvila_core.resolution.grids import Grid


def frame_positions(features: Tensor, start: Tensor | None, end: Tensor | None) -> Tensor:
    """Put the start and end rows around every frame: [T, n, D] to [T * (start + n + end), D]."""
    around = [
        row if row is features else row.expand(features.shape[0], -1, -1)
        for row in (start, features, end)
        if row is not None
    ]
    return torch.cat(around, dim=1).flatten(0, 1)


def pool(x: Tensor, size: int, dim: int) -> Tensor:
    """Average runs of `size` along `dim`; a shorter last run is averaged over its own length."""
    whole = x.shape[dim] // size * size
    parts = []
    if whole:
        head = x.narrow(dim, 0, whole)
        parts.append(head.unflatten(dim, (whole // size, size)).mean(dim + 1))
    if whole < x.shape[dim]:
        parts.append(x.narrow(dim, whole, x.shape[dim] - whole).mean(dim, keepdim=True))
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def tsp_positions(
    features: Tensor,
    pools: Sequence[tuple[int, int, int]],
    start: Tensor | None,
    end: Tensor | None,
    sep: Tensor | None,
) -> Tensor:
    """Pool over time and space: features [T, m*m, D] to [positions, D], all pools concatenated."""
    side = isqrt(features.shape[1])
    grid = features.unflatten(1, (side, side))
    outputs = []
    for sizes in pools:
        pooled = grid
        for dim, size in enumerate(sizes):
            pooled = pool(pooled, size, dim)
        outputs.append(frame_positions(pooled.flatten(1, 2), start, end))
        if sep is not None:
            outputs.append(sep)
    return torch.cat(outputs)


def video_positions(features: Tensor, config: EncoderConfig, rows: dict[str, Tensor]) -> Tensor:
    """Arrange the features [T, n, D] of a media token's tiles as LLM positions [positions, D].

    Args:
        features: of each frame or block.
        config: the encoder that the checkpoint names.
        rows: embeddings [tokens, D] of the texts in `config`.
    """
    start, end, sep = (
        rows[text] if text else None
        for text in (config.start_tokens, config.end_tokens, config.sep_tokens)
    )
    if not config.pool_sizes:
        return frame_positions(features, start, end)
    return tsp_positions(features, config.pool_sizes, start, end, sep)


def merge(tiles: Tensor, block: Grid) -> Tensor:
    """Join tiles [rows*columns, g*g, C], row by row, to one map [C, rows*g, columns*g]."""
    rows, columns = block
    side, channels = isqrt(tiles.shape[1]), tiles.shape[2]
    grid = tiles.reshape(rows, columns, side, side, channels)
    return grid.permute(4, 0, 2, 1, 3).reshape(channels, rows * side, columns * side)


def split(image: Tensor, block: Grid) -> Tensor:
    """Reverse `merge`: [C, H, W] to [rows*columns, H/rows * W/columns, C]."""
    rows, columns = block
    channels, height, width = image.shape
    grid = image.reshape(channels, rows, height // rows, columns, width // columns)
    return grid.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1, channels)


def s2_features(features: Tensor, block: Grid, config: ModelConfig) -> tuple[Tensor, Grid]:
    """Compute dynamic S2 of one image: resize all scales to one size, concatenate their channels,
    and cut the result into blocks.

    Args:
        features: [tiles, N, C] of all of its tiles, the smallest scale first.
        block: (rows, columns) of the last scale.

    Returns:
        [blocks, N, C * scales] and the (rows, columns) that the blocks form.
    """
    blocks = [(s // config.s2_scales[0],) * 2 for s in config.s2_scales[:-1]] + [block]
    maps, start = [], 0
    for rows, columns in blocks:
        maps.append(merge(features[start : start + rows * columns], (rows, columns)))
        start += rows * columns
    size = maps[config.s2_resize_to].shape[-2:]
    resized = [F.interpolate(m[None].float(), size=size, mode="area")[0].to(m.dtype) for m in maps]
    out = output_block(config, block)
    return split(torch.cat(resized), out), out


def project(
    projector: Projector, features: Tensor, media: Sequence[Media], config: ModelConfig
) -> list[Tensor]:
    """Project the features of each media token: [frames or blocks, tokens, D].

    Args:
        features: [tiles, N, C] of all tiles that `media` refers to.
    """
    scales = max(1, len(config.s2_scales))
    if all(item.block is None for item in media):
        projected = projector(features.repeat(1, 1, scales)) if media else features
        return [projected[item.first : item.first + item.tiles] for item in media]
    outputs = []
    for item in media:
        tiles = features[item.first : item.first + item.tiles]
        if item.block is None:
            outputs.append(projector(tiles.repeat(1, 1, scales)))
        else:
            blocks, shape = s2_features(tiles, item.block, config)
            outputs.append(merge(projector(blocks), shape).flatten(1).T[None])
    return outputs


def tile_features(projector: Projector, features: Tensor, config: ModelConfig) -> Tensor:
    """Compute as much as possible tile by tile: projected features [tiles, tokens, D].

    With dynamic S2 these are the tower's features [tiles, N, C]: an image's tiles are merged before
    the projector.
    """
    return features if config.s2_scales else projector(features)


def from_tiles(projector: Projector, tiles: Tensor, item: Media, config: ModelConfig) -> Tensor:
    """Return [frames or blocks, tokens, D] of a media token from its `tile_features`."""
    if not config.s2_scales:
        return tiles
    return project(projector, tiles, [replace(item, first=0)], config)[0]
