"""Rows in FP8 (e4m3) with a scale each, as the tensor cores take them."""

import triton
import triton.language as tl


@triton.jit
def gelu_tanh(x):
    """Return GELU(x) by its tanh approximation, in float32."""
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x - x / (1.0 + tl.exp(2.0 * inner))  # x / 2 * (1 + tanh(inner))


@triton.jit
def store_scale(scale, largest, poison):
    """Write a row's scale, and return what its numbers are multiplied by to be codes.

    Args:
        scale: where it goes, float32.
        largest: the largest absolute value of the row, which may ignore NaN.
        poison: 0, or NaN where the row has NaN or infinity: the scale is then NaN.
    """
    high = tl.maximum(largest, 1e-12)
    tl.store(scale, high / 448.0 + poison)
    return 448.0 / high


@triton.jit
def store_codes(codes, value, factor, inside):
    """Write float32 numbers as codes, those beyond the largest code as that one."""
    code = tl.minimum(tl.maximum(value * factor, -448.0), 448.0)
    tl.store(codes, code.to(codes.dtype.element_ty), mask=inside)


@triton.jit
def store_row(codes, scale, value, at, inside):
    """Write a row as codes, and its scale.

    Args:
        codes, scale: where they go.
        value: float32, the whole row; zeros where not `inside`.
        at, inside: the places of the numbers, and which of them the row has.
    """
    factor = store_scale(scale, tl.max(tl.abs(value), 0), tl.sum(value * 0.0, 0))
    store_codes(codes + at, value, factor, inside)


@triton.jit
def numbers_of(
    row,
    at,
    SIZE: tl.constexpr,  # noqa: N803
    GELU: tl.constexpr,  # noqa: N803
    GATED: tl.constexpr,  # noqa: N803
):
    """Return some numbers of a row in float32, rounded where PyTorch rounds; see `rows_to_fp8`."""
    inside = at < SIZE
    value = tl.load(row + at, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        value = gelu_tanh(value).to(row.dtype.element_ty).to(tl.float32)
    if GATED:
        up = tl.load(row + SIZE + at, mask=inside, other=0.0).to(tl.float32)
        active = (value / (1.0 + tl.exp(-value))).to(row.dtype.element_ty).to(tl.float32)
        value = (active * up).to(row.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def rows_to_fp8(
    x,
    codes,
    scales,
    row_stride,
    SIZE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    GELU: tl.constexpr,  # noqa: N803
    GATED: tl.constexpr,  # noqa: N803
):
    """Write `codes` float8 e4m3 [rows, SIZE] and `scales` float32 [rows]: codes * scale is x.

    The grid is [rows]. The scale of a row with NaN or infinity is NaN. A row longer than BLOCK is
    read twice.

    Args:
        x: [rows, SIZE] with `row_stride`; [rows, 2 * SIZE] with GATED.
        GELU: quantize GELU(x), rounded to x's dtype, instead of x.
        GATED: quantize silu(first half of x) * second half, rounded as PyTorch rounds them.
    """
    row = tl.program_id(0).to(tl.int64)
    numbers = x + row * row_stride
    at = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    poison = tl.zeros([BLOCK], tl.float32)
    value = tl.zeros([BLOCK], tl.float32)
    for start in range(0, SIZE, BLOCK):
        value = numbers_of(numbers, start + at, SIZE, GELU, GATED)
        largest = tl.maximum(largest, tl.abs(value))
        poison += value * 0.0  # NaN where the value is not finite; a maximum would ignore it
    factor = store_scale(scales + row, tl.max(largest, 0), tl.sum(poison, 0))
    for start in range(0, SIZE, BLOCK):
        place = start + at
        if SIZE > BLOCK:
            value = numbers_of(numbers, place, SIZE, GELU, GATED)
        store_codes(codes + row * SIZE + place, value, factor, place < SIZE)
