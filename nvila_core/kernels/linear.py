"""Products of rows with weights in 8 or 4 bits.

The weights are read as they are stored and widened in registers. The left operand of a product is
the weights: it may come from registers on every GPU, and its outputs fill the tensor cores where
rows are few.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def multiply_8_bits(
    x,
    weight,
    scale,
    bias,
    out,
    rows,
    row_stride,
    OUTPUTS: tl.constexpr,  # noqa: N803
    INPUTS: tl.constexpr,  # noqa: N803
    BIASED: tl.constexpr,  # noqa: N803
    TILE_ROWS: tl.constexpr,  # noqa: N803
    TILE_OUTPUTS: tl.constexpr,  # noqa: N803
    TILE_INPUTS: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
):
    """Write x (weight * scale)^T + bias, [rows, OUTPUTS].

    The grid is [tiles of outputs, tiles of rows].

    Args:
        x: [rows, INPUTS] with `row_stride`.
        weight: int8 [OUTPUTS, INPUTS].
        scale: [OUTPUTS].
        bias: [OUTPUTS]; not read without BIASED.
        WIDEN: multiply in float32; the interpreter's products of bfloat16 are wrong.
    """
    output = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    row = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    real, used = output < OUTPUTS, row < rows
    weights = weight + output.to(tl.int64)[:, None] * INPUTS
    inputs = x + row.to(tl.int64)[None, :] * row_stride
    total = tl.zeros([TILE_OUTPUTS, TILE_ROWS], tl.float32)
    for start in range(0, INPUTS, TILE_INPUTS):
        at = start + tl.arange(0, TILE_INPUTS)
        inside = at < INPUTS
        w = tl.load(weights + at[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        part = tl.load(inputs + at[:, None], mask=inside[:, None] & used[None, :], other=0.0)
        if WIDEN:
            part = part.to(tl.float32)
        total = tl.dot(w.to(part.dtype), part, total, input_precision="ieee")
    total *= tl.load(scale + output, mask=real, other=0.0).to(tl.float32)[:, None]
    if BIASED:
        total += tl.load(bias + output, mask=real, other=0.0).to(tl.float32)[:, None]
    place = out + row.to(tl.int64)[:, None] * OUTPUTS + output[None, :]
    tl.store(place, tl.trans(total), mask=used[:, None] & real[None, :])


@triton.jit
def weights_4_bits(
    weights,
    scales,
    output,
    real,
    group,
    OUTPUTS: tl.constexpr,  # noqa: N803
    INPUTS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    GROUPS: tl.constexpr,  # noqa: N803
):
    """Return float32 [outputs, GROUPS * GROUP / 2], the first halves of groups and the second.

    Args:
        weights: [outputs, 1], where each output begins.
        scales: as `multiply_4_bits` has them.
        output, real: [outputs], and whether there is such an output.
        group: the first group; those beyond INPUTS are zeros.
    """
    half: tl.constexpr = GROUP // 2
    shape: tl.constexpr = [real.shape[0], GROUPS, half]
    flat: tl.constexpr = [real.shape[0], GROUPS * half]
    at = group * half + tl.arange(0, GROUPS * half)
    byte = tl.load(weights + at[None, :], mask=real[:, None] & (at < INPUTS // 2)[None, :], other=0)
    groups = group + tl.arange(0, GROUPS)
    inside = real[:, None] & (groups < INPUTS // GROUP)[None, :]
    pair = scales + (groups[None, :] * OUTPUTS + output[:, None]) * 2
    step = tl.load(pair, mask=inside, other=0.0).to(tl.float32)
    middle = tl.load(pair + 1, mask=inside, other=0.0).to(tl.float32)
    step = tl.reshape(tl.broadcast_to(step[:, :, None], shape), flat)
    middle = tl.reshape(tl.broadcast_to(middle[:, :, None], shape), flat)
    code = byte.to(tl.int32)
    low = ((code & 15) - 8).to(tl.float32) * step + middle
    high = ((code >> 4) - 8).to(tl.float32) * step + middle
    return low, high


@triton.jit(do_not_specialize=["rows"])
def multiply_4_bits(
    x,
    weight,
    scales,
    bias,
    out,
    rows,
    row_stride,
    OUTPUTS: tl.constexpr,  # noqa: N803
    INPUTS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    BIASED: tl.constexpr,  # noqa: N803
    TILE_ROWS: tl.constexpr,  # noqa: N803
    TILE_OUTPUTS: tl.constexpr,  # noqa: N803
    TILE_GROUPS: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
):
    """Write x W^T + bias, [rows, OUTPUTS], of weights in 4 bits.

    The grid is [tiles of outputs, tiles of rows].

    Args:
        x: [rows, INPUTS] with `row_stride`.
        weight: uint8 [OUTPUTS, INPUTS / 2]: the first half of each group of GROUP weights in the
            low bits, the second in the high bits.
        scales: [INPUTS / GROUP, OUTPUTS, 2]: the step of a group, and the value of code 8.
        bias: [OUTPUTS]; not read without BIASED.
        WIDEN: multiply in float32; the interpreter's products of bfloat16 are wrong.
    """
    output = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    row = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    real, used = output < OUTPUTS, row < rows
    half: tl.constexpr = GROUP // 2
    weights = weight + output.to(tl.int64)[:, None] * (INPUTS // 2)
    at = tl.arange(0, TILE_GROUPS * half)
    at = at // half * GROUP + at % half
    inputs = x + row.to(tl.int64)[None, :] * row_stride + at[:, None]
    total = tl.zeros([TILE_OUTPUTS, TILE_ROWS], tl.float32)
    for group in range(0, INPUTS // GROUP, TILE_GROUPS):
        low, high = weights_4_bits(
            weights, scales, output, real, group, OUTPUTS, INPUTS, GROUP, TILE_GROUPS
        )
        inside = used[None, :] & (at + group * GROUP < INPUTS)[:, None]
        first = tl.load(inputs + group * GROUP, mask=inside, other=0.0)
        second = tl.load(inputs + group * GROUP + half, mask=inside, other=0.0)
        if WIDEN:
            first, second = first.to(tl.float32), second.to(tl.float32)
        total = tl.dot(low.to(first.dtype), first, total, input_precision="ieee")
        total = tl.dot(high.to(first.dtype), second, total, input_precision="ieee")
    if BIASED:
        total += tl.load(bias + output, mask=real, other=0.0).to(tl.float32)[:, None]
    place = out + row.to(tl.int64)[:, None] * OUTPUTS + output[None, :]
    tl.store(place, tl.trans(total), mask=used[:, None] & real[None, :])


@triton.jit
def widen_4_bits(
    weight,
    scales,
    out,
    OUTPUTS: tl.constexpr,  # noqa: N803
    INPUTS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    TILE_OUTPUTS: tl.constexpr,  # noqa: N803
):
    """Write weights [OUTPUTS, INPUTS] of 4 bits in `out`'s dtype; see `multiply_4_bits`.

    The grid is [tiles of outputs, groups].
    """
    output = tl.program_id(0) * TILE_OUTPUTS + tl.arange(0, TILE_OUTPUTS)
    group = tl.program_id(1)
    real = output < OUTPUTS
    weights = weight + output.to(tl.int64)[:, None] * (INPUTS // 2)
    low, high = weights_4_bits(weights, scales, output, real, group, OUTPUTS, INPUTS, GROUP, 1)
    at = group * GROUP + tl.arange(0, GROUP // 2)
    place = out + output.to(tl.int64)[:, None] * INPUTS + at[None, :]
    tl.store(place, low, mask=real[:, None])
    tl.store(place + GROUP // 2, high, mask=real[:, None])
