"""Floor 3. Fused 4-bit dequant-matmul on layout ``frag``: y^T = W x^T, W unpacked straight into the tensor core's registers.

Each program takes BLOCK_N rows of W, BLOCK_M rows of x and a share of K (split-K). Every group of columns gets a fresh accumulator that
is scaled into the sum, so weights stay small exact numbers (code minus zero point, or a rounded level) and no scale is ever rounded to
16 bits.
"""
from __future__ import annotations

from .._triton import jit, tl
from .fragment import halves, row_values, spread, spread_halves, unpack_affine, unpack_integer, unpack_table
from .split_k import finish_split


def _name(specialization) -> str:
    return f"matmul_frag_{specialization.constants['NAME']}"


@jit
def load_x(at, k, K, EVEN_K: tl.constexpr):
    if EVEN_K:
        x = tl.load(at)
    else:
        x = tl.load(at, mask=(k < K)[:, None], other=0.0)
    return x


@jit(repr=_name)
def matmul_frag(
    x_ptr, w_ptr, scale_ptr, zero_ptr, table_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr,
    M, N, K, x_row, x_col, w_row, scale_row, zero_row, blocks, tiles_m, steps, per_split,
    residual_row, residual_col, bias_step, partial_size,
    NAME: tl.constexpr, ASM: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr, ZERO: tl.constexpr, FLOAT_ZERO: tl.constexpr,
    LOW_BASE: tl.constexpr, LOW_FACTOR: tl.constexpr, HIGH_BASE: tl.constexpr, HIGH_FACTOR: tl.constexpr,
    FACTOR: tl.constexpr, ACTIVATION: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of N times tiles of M, SPLIT_K); neighbours share a tile of W.

    GROUP 0: one group per row. SCALE: None for float32 rows, else the 16-bit type of pairs. ZERO: integer zero points. FLOAT_ZERO: None,
    "rows" for float32 offsets, else the 16-bit type of pairs. FACTOR: what the levels of a code book were multiplied by.
    """
    tile_n = tl.program_id(0) // tiles_m
    tile_m = tl.program_id(0) % tiles_m
    split = tl.program_id(1)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    A: tl.constexpr = BLOCK_N // 64
    UNPACK: tl.constexpr = BLOCK_K if GROUP == 0 else min(BLOCK_K, max(GROUP, 64))  # columns unpacked at once
    DOT: tl.constexpr = UNPACK if GROUP == 0 else min(UNPACK, GROUP)  # columns of one dot: a group or a part of one
    B: tl.constexpr = UNPACK // 64
    n = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, DOT)
    first = split * per_split
    last = tl.minimum(first + per_split, steps)
    tiles = tl.minimum(tile_n * A + tl.arange(0, A), blocks - 1)  # beyond the end, the last one again: never stored
    w_at = w_ptr + tiles.to(tl.int64)[:, None] * w_row + (first * (BLOCK_K * 8) + tl.arange(0, UNPACK * 8))[None, :]
    x_at = x_ptr + tl.minimum(m, M - 1)[None, :] * x_row + (first * BLOCK_K + k).to(tl.int64)[:, None] * x_col
    pairs = tile_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    if SCALE is None:
        scale_at = scale_ptr + tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    else:
        scale_at = scale_ptr + pairs
    if zero_ptr is None:
        zero_at = scale_at
    elif FLOAT_ZERO == "rows":
        zero_at = zero_ptr + tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    else:
        zero_at = zero_ptr + pairs
    if table_ptr is not None:
        # Loaded, each pair of rows from an address of its own: what looks the same in all threads, ptxas keeps in uniform registers, and
        # copies back into an ordinary one for every weight.
        at_table = table_ptr + tl.arange(0, BLOCK_N // 2)
        t0 = spread(tl.load(at_table), A, B)
        t1 = spread(tl.load(at_table + 64), A, B)
        t2 = spread(tl.load(at_table + 128), A, B)
        t3 = spread(tl.load(at_table + 192), A, B)
        t4 = spread(tl.load(at_table + 256), A, B)
        t5 = spread(tl.load(at_table + 320), A, B)
        t6 = spread(tl.load(at_table + 384), A, B)
        t7 = spread(tl.load(at_table + 448), A, B)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in tl.range(first, last, num_stages=STAGES):
        for part in tl.static_range(BLOCK_K // UNPACK):
            w = tl.load(w_at + part * (UNPACK * 8))
            if GROUP == 0:
                group = 0
            else:
                group = (step * BLOCK_K + part * UNPACK) // GROUP
            if table_ptr is not None:
                wf = unpack_table(w, t0, t1, t2, t3, t4, t5, t6, t7, A, B, ASM, DTYPE)
            elif ZERO:
                z = tl.load(zero_at + group * zero_row)
                low = LOW_BASE + (z & 0xFFFF) * LOW_FACTOR
                high = HIGH_BASE + (z >> 16) * HIGH_FACTOR
                if DOT == UNPACK:
                    wf = unpack_affine(w, spread(low, A, B), spread(high, A, B), A, B, ASM, DTYPE)
                else:
                    z2 = tl.load(zero_at + (group + 1) * zero_row)
                    low2 = LOW_BASE + (z2 & 0xFFFF) * LOW_FACTOR
                    high2 = HIGH_BASE + (z2 >> 16) * HIGH_FACTOR
                    wf = unpack_affine(w, spread_halves(low, low2, A), spread_halves(high, high2, A), A, B, ASM, DTYPE)
            else:
                wf = unpack_integer(w, A, B, ASM, DTYPE)
            at = x_at + (part * UNPACK) * x_col
            column = step * BLOCK_K + part * UNPACK + k
            if DOT == UNPACK:
                x = load_x(at, column, K, EVEN_K)
                acc = add_group(acc, wf, x, scale_at + group * scale_row, zero_at + group * zero_row, A, SCALE, FLOAT_ZERO)
            else:
                w1, w2 = halves(wf, BLOCK_N, UNPACK)
                x1 = load_x(at, column, K, EVEN_K)
                x2 = load_x(at + DOT * x_col, column + DOT, K, EVEN_K)
                acc = add_group(acc, w1, x1, scale_at + group * scale_row, zero_at + group * zero_row, A, SCALE, FLOAT_ZERO)
                acc = add_group(acc, w2, x2, scale_at + (group + 1) * scale_row, zero_at + (group + 1) * zero_row, A, SCALE, FLOAT_ZERO)
        w_at += BLOCK_K * 8
        x_at += BLOCK_K * x_col
    finish_split(acc, m, n, M, N, split, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr, residual_row, residual_col, bias_step,
                 partial_size, ACTIVATION, FACTOR, SPLIT_K)  # fmt: skip


@jit
def add_group(acc, w, x, scale_at, zero_at, A: tl.constexpr, SCALE: tl.constexpr, FLOAT_ZERO: tl.constexpr):
    """acc + scale * (w @ x), and with FLOAT_ZERO + zero * (column sums of x), which a product with ones leaves in the same registers."""
    acc += tl.dot(w, x) * row_values(scale_at, A, SCALE)[:, None]
    if FLOAT_ZERO is not None:
        sums = tl.dot(tl.full(w.shape, 1.0, w.dtype), x)
        if FLOAT_ZERO == "rows":
            acc += sums * row_values(zero_at, A, None)[:, None]
        else:
            acc += sums * row_values(zero_at, A, FLOAT_ZERO)[:, None]
    return acc
