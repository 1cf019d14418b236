"""Floor 3. Fused dequant-matmul on layout ``ksplit``, in plain Triton: y^T = W x^T with weights of any width up to 8 bits.

Each program takes BLOCK_N rows of W, BLOCK_M rows of x and a share of the 256-column blocks (split-K). Every run of columns that share a
group gets a fresh accumulator that is scaled into the sum in float32, so weights stay exact small numbers (code minus zero point) or
levels rounded once, and no scale is ever rounded to 16 bits.
"""
from __future__ import annotations

from .._triton import jit, tl
from .matmul_frag import load_x
from .split_k import finish_split


def _name(specialization) -> str:
    return f"matmul_ksplit_{specialization.constants['NAME']}"


@jit
def row_values(ptr, group, row, GROUP: tl.constexpr, DECODE: tl.constexpr):
    """float32 ``[BLOCK_N, 1]``: the stored scales or zero points of one group. GROUP 0: whole rows are one."""
    if GROUP != 0:
        ptr += tl.full((), group, tl.int64) * row  # in the interpreter a group is a plain int
    return DECODE(tl.load(ptr)).to(tl.float32)[:, None]


@jit
def decoding(table_ptr, zero_at, group, row, GROUP: tl.constexpr, INTEGER_ZERO: tl.constexpr, OFFSET: tl.constexpr):
    """What UNPACK needs for the codes of a group: the table of levels, or the zero point, float32 ``[BLOCK_N or 1, 1]``."""
    if table_ptr is not None:
        needed = table_ptr
    elif INTEGER_ZERO is None:
        needed = tl.full((1, 1), OFFSET, tl.float32)
    else:
        needed = row_values(zero_at, group, row, GROUP, INTEGER_ZERO)
    return needed


@jit
def add_group(acc, part, sums, scale_at, second, zero_at, group, row, GROUP: tl.constexpr, SCALE: tl.constexpr, FLOAT_ZERO: tl.constexpr):
    """acc + scale * part, and with float zero points + zero * (column sums of x)."""
    scale = row_values(scale_at, group, row, GROUP, SCALE)
    if second is not None:
        scale = scale * second
    acc += part * scale
    if FLOAT_ZERO is not None:
        acc += sums * row_values(zero_at, group, row, GROUP, FLOAT_ZERO)
    return acc


@jit(repr=_name)
def matmul_ksplit(
    x_ptr, w_ptr, table_ptr, scale_ptr, second_ptr, zero_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr,
    M, N, K, x_row, x_col, w_row, scale_row, tiles_m, blocks, per_split, residual_row, residual_col, bias_step, partial_size,
    NAME: tl.constexpr, UNPACK: tl.constexpr, TABLE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr,
    SCALE: tl.constexpr, INTEGER_ZERO: tl.constexpr, FLOAT_ZERO: tl.constexpr, OFFSET: tl.constexpr,
    ACTIVATION: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of N times tiles of M, SPLIT_K); neighbours share a tile of W.

    GROUP: columns of a group, 0 where it is whole rows. RUN: the largest power of two that divides it, BLOCK_K at most; below 16, every
    16 columns are multiplied once per group among them, the others set to zero. SCALE, INTEGER_ZERO, FLOAT_ZERO: how they are
    read, None where there is none. OFFSET: what is subtracted from codes without an integer zero point.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PLANES: tl.constexpr = 8 if BITS == 3 else 16 // BITS
    UNIT: tl.constexpr = BLOCK_K // 2 if BITS == 3 else BLOCK_K  # columns of one set of planes
    WIDTH: tl.constexpr = UNIT // PLANES  # columns of a plane
    DOT: tl.constexpr = min(max(RUN, 16), WIDTH)
    tile_n = tl.program_id(0) // tiles_m
    tile_m = tl.program_id(0) % tiles_m
    split = tl.program_id(1)
    n = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.arange(0, DOT)
    first = split * per_split
    last = tl.minimum(first + per_split, blocks)
    # rows beyond the end are the last one again: never stored
    w_at = w_ptr + tl.minimum(n, N - 1)[:, None] * w_row + (first * (BLOCK_K * BITS // 16) + j)[None, :]
    step_x = tl.full((), x_col, tl.int64)
    x_at = x_ptr + tl.minimum(m, M - 1)[None, :] * x_row + (first * BLOCK_K + j)[:, None] * step_x
    scale_at = scale_ptr + n
    zero_at = scale_at if zero_ptr is None else zero_ptr + n
    second = None if second_ptr is None else tl.load(second_ptr)
    ones = tl.full((BLOCK_N, DOT), 1.0, DTYPE)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in tl.range(first, last, num_stages=STAGES):
        for unit in tl.static_range(BLOCK_K // UNIT):
            for piece in tl.static_range(WIDTH // DOT):
                words = tl.load(w_at + (unit * WIDTH + piece * DOT))
                third = tl.load(w_at + BLOCK_K // 8) if BITS == 3 else None
                for plane in tl.static_range(PLANES):
                    high = (third >> (unit * PLANES + plane)) & 1 if BITS == 3 else None
                    start = (unit * PLANES + plane) * WIDTH + piece * DOT
                    column = step * BLOCK_K + start
                    x = load_x(x_at + start * step_x, column + j, K, EVEN_K)
                    if RUN >= 16:
                        group = 0 if GROUP == 0 else column // GROUP
                        if (unit * PLANES + plane) * WIDTH % RUN == 0:
                            part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
                            sums = part
                            needed = decoding(table_ptr, zero_at, group, scale_row, GROUP, INTEGER_ZERO, OFFSET)
                        part = tl.dot(UNPACK(words, high, needed, plane, BITS, DTYPE, TABLE), x, part)
                        if FLOAT_ZERO is not None:
                            sums = tl.dot(ones, x, sums)
                        if (unit * PLANES + plane + 1) * WIDTH % RUN == 0:
                            acc = add_group(acc, part, sums, scale_at, second, zero_at, group, scale_row, GROUP, SCALE, FLOAT_ZERO)
                    else:
                        for group in range(column // GROUP, (column + DOT - 1) // GROUP + 1):
                            own = (column + j) // GROUP == group  # zeros elsewhere in both: 0 * Inf is NaN
                            own_x = tl.where(own[:, None], x, 0.0)
                            needed = decoding(table_ptr, zero_at, group, scale_row, GROUP, INTEGER_ZERO, OFFSET)
                            w = tl.where(own[None, :], UNPACK(words, high, needed, plane, BITS, DTYPE, TABLE), 0.0)
                            part = tl.dot(w, own_x)
                            sums = tl.dot(ones, own_x) if FLOAT_ZERO is not None else part
                            acc = add_group(acc, part, sums, scale_at, second, zero_at, group, scale_row, GROUP, SCALE, FLOAT_ZERO)
        w_at += BLOCK_K * BITS // 16
        x_at += BLOCK_K * step_x
    finish_split(acc, m, n, M, N, split, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr, residual_row, residual_col, bias_step,
                 partial_size, ACTIVATION, False, 1.0, SPLIT_K, SPLIT_K)  # fmt: skip
