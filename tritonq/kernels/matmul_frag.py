"""Floor 3. Fused dequant-matmul on layout ``frag``: y^T = W x^T, W unpacked straight into the tensor core's registers.

Each program takes BLOCK_N rows of W, BLOCK_M rows of x and a share of K (split-K). Every group of columns gets a fresh accumulator that
is scaled into the sum, so weights stay small exact numbers (code minus zero point, or a rounded level) and no scale is ever rounded to
16 bits.
"""
from __future__ import annotations

from .._triton import jit, tl
from .fragment import halves, row_values, spread, unpack, upper_plane
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


@jit
def proxy_fence(step):
    """What cp.async wrote, and the wait for it in this iteration made visible to this thread, wgmma sees from here on."""
    tl.inline_asm_elementwise("fence.proxy.async.shared::cta; mov.b32 $0, $1;", "=r,r", args=[step], dtype=tl.int32, is_pure=False, pack=1)


@jit
def in_order(order_ptr, k, K, EVEN_K: tl.constexpr):
    """int64 ``[DOT, 1]``: the column of x that packed column k multiplies."""
    if EVEN_K:
        column = tl.load(order_ptr + k)
    else:
        column = tl.load(order_ptr + k, mask=k < K, other=0)
    return column.to(tl.int64)[:, None]


@jit
def by_dot(at, column, row, COLUMNS: tl.constexpr, DOT: tl.constexpr, GROUP: tl.constexpr):
    """``[pairs of rows or rows, COLUMNS / DOT]``: for every dot of a step what lies at ``at`` for its group, in one load."""
    group = (column + tl.arange(0, COLUMNS // DOT) * DOT) // GROUP
    return tl.load(at[:, None] + group[None, :] * row)


@jit
def add_columns(
    acc, w, x_at, order_ptr, column, x_col, scale, zero, K,
    A: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr, SCALE: tl.constexpr, FLOAT_ZERO: tl.constexpr, FACTOR: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """acc plus COLUMNS columns, in dots of DOT of them; each dot has one group: scale * (w @ x).

    scale, zero: as :func:`by_dot` loads them, or float32 rows that all dots share. With FLOAT_ZERO also zero * (column sums of x), which a
    product with FACTOR leaves in the same registers, too large as w is.
    """
    if COLUMNS == DOT:
        k = column + tl.arange(0, DOT)
        if order_ptr is not None:  # x_at is where column 0 lies
            x_at += in_order(order_ptr, k, K, EVEN_K) * x_col
        x = load_x(x_at, k, K, EVEN_K)
        acc += tl.dot(w, x) * rows_of_dot(scale, A, SCALE)[:, None]
        if FLOAT_ZERO is not None:
            sums = tl.dot(tl.full(w.shape, FACTOR, w.dtype), x)
            acc += sums * rows_of_dot(zero, A, FLOAT_ZERO)[:, None]
    else:
        HALF: tl.constexpr = COLUMNS // 2
        w1, w2 = halves(w)
        scale1, scale2 = half_dots(scale)
        zero1, zero2 = half_dots(zero)
        acc = add_columns(acc, w1, x_at, order_ptr, column, x_col, scale1, zero1, K, A, HALF, DOT, SCALE, FLOAT_ZERO, FACTOR, EVEN_K)
        if order_ptr is None:
            x_at += HALF * x_col
        acc = add_columns(acc, w2, x_at, order_ptr, column + HALF, x_col, scale2, zero2, K, A, HALF, DOT, SCALE, FLOAT_ZERO, FACTOR,
                          EVEN_K)  # fmt: skip
    return acc


@jit
def half_dots(t):
    """Those of the first and of the second half of the dots; what all of them share, twice."""
    if len(t.shape) == 1:
        first, second = t, t
    else:
        first, second = halves(t)
    return first, second


@jit
def rows_of_dot(t, A: tl.constexpr, PATTERN: tl.constexpr):
    """float32 ``[A * 64]``: those of one dot, by :func:`row_values`; what all dots share is that already."""
    return t if len(t.shape) == 1 else row_values(t.reshape(t.shape[0]), A, PATTERN)


@jit
def pairs_by_dot(at, column, row, COLUMNS: tl.constexpr, DOT: tl.constexpr, GROUP: tl.constexpr):
    """``[pairs of rows, COLUMNS / DOT]``: for every dot the words of its group."""
    if COLUMNS == DOT:
        group = 0 if GROUP == 0 else column // GROUP
        z = tl.load(at + group * row)[:, None]
    else:
        first = pairs_by_dot(at, column, row, COLUMNS // 2, DOT, GROUP)
        second = pairs_by_dot(at, column + COLUMNS // 2, row, COLUMNS // 2, DOT, GROUP)
        z = tl.join(first, second).trans(0, 2, 1).reshape(first.shape[0], COLUMNS // DOT)
    return z


@jit
def zero_points(at, column, row, A: tl.constexpr, B: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr, GROUP: tl.constexpr,
                ASM: tl.constexpr):  # fmt: skip
    """Constants of rows g and g + 8 for the first and for the second half of each word; they differ where a word serves two dots."""
    PARTS: tl.constexpr = COLUMNS // DOT
    z = pairs_by_dot(at, column, row, COLUMNS, DOT, GROUP)
    low, high = tl.inline_asm_elementwise(ASM, "=r,=r,r", args=[z], dtype=(tl.int32, tl.int32), is_pure=True, pack=1)
    if PARTS > 4 * B:
        low1, low2 = tl.split(low.reshape(A * 32, PARTS // 2, 2))
        high1, high2 = tl.split(high.reshape(A * 32, PARTS // 2, 2))
        first = spread(low1, A, B, PARTS // 2), spread(high1, A, B, PARTS // 2)
        second = spread(low2, A, B, PARTS // 2), spread(high2, A, B, PARTS // 2)
    else:
        first = spread(low, A, B, PARTS), spread(high, A, B, PARTS)
        second = first
    return first, second


@jit
def for_all_rows(at, A: tl.constexpr, B: tl.constexpr):
    """``[8]`` equal numbers to ``[B, A * 512]``, every word of those."""
    rows = tl.broadcast_to(tl.load(at).reshape(1, 8, 1), (A * 4, 8, 1)).reshape(A * 32, 1)
    return spread(rows, A, B, 1)


@jit
def tile_words(tile_n, N, blocks, w_row, A: tl.constexpr, B: tl.constexpr, GATED: tl.constexpr):
    """``[B, A * 512]``: where a step's words lie. GATED: those of A * 32 rows of the gate, then of up, as though of neighbouring rows."""
    i = tl.arange(0, A * 512)
    if GATED:
        first = tile_n * (A * 32)  # row of the gate, and of up; 64 rows have 512 words
        second = first + N // 2
        gate = (first // 64).to(tl.int64) * w_row + first % 64 * 8
        up = (second // 64).to(tl.int64) * w_row + second % 64 * 8
        at = gate + i // (A * 256) * (up - gate - A * 256) + i
    else:
        tiles = tl.minimum(tile_n * A + i // 512, blocks - 1)  # beyond the end, the last one again: never stored
        at = tiles.to(tl.int64) * w_row + i % 512
    return at[None, :] + tl.arange(0, B)[:, None] * 512


@jit(repr=_name, do_not_specialize=["M"])  # one binary per tile, for one row of x too
def matmul_frag(
    x_ptr, w_ptr, scale_ptr, zero_ptr, factor_ptr, table_ptr, order_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr,
    M, N, K, x_row, x_col, w_row, scale_row, zero_row, marks, blocks, tiles_m, steps, per_split,
    residual_row, residual_col, bias_step, partial_size,
    NAME: tl.constexpr, BITS: tl.constexpr, ASM: tl.constexpr, CONSTRAINTS: tl.constexpr, ZERO_ASM: tl.constexpr, FACTOR: tl.constexpr,
    GROUP: tl.constexpr, DOT: tl.constexpr, SCALE: tl.constexpr, FLOAT_ZERO: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, EVEN_K: tl.constexpr, FENCE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr, STAGES: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of N times tiles of M, SPLIT_K); neighbours share a tile of W.

    FENCE: Triton does not itself make asynchronous copies of x visible to wgmma.

    factor_ptr: a float32 for the whole matrix. marks: the row of the scales that is NaN for rows of W that hold a NaN, else 0; or None.
    BITS of a code; 3 lie in a plane of 2 and a plane of 1. ASM, CONSTRAINTS, FACTOR: fragment_asm.Unpacker. ZERO_ASM: for integer zero
    points, else None. GROUP 0: one group per row. DOT: columns of one dot, all of one group. SCALE: "rows" for float32, else the 16-bit
    type of pairs. FLOAT_ZERO: None, or as SCALE. GATED: half of BLOCK_N are rows of the gate, and half those of up that go with them.
    """
    tile_n = tl.program_id(0) // tiles_m
    tile_m = tl.program_id(0) % tiles_m
    split = tl.program_id(1)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    A: tl.constexpr = BLOCK_N // 64
    PLANE: tl.constexpr = 2 if BITS == 3 else BITS  # bits of a code in the first plane
    B: tl.constexpr = BLOCK_K * PLANE // 256  # tiles of a step in the first plane
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_step = split * per_split
    last_step = tl.minimum(first_step + per_split, steps)
    if GATED:
        HALF: tl.constexpr = BLOCK_N // 2
        part = tile_n * HALF + tl.arange(0, 2) * (N // 2)
        rows = (part[:, None] + tl.arange(0, HALF)[None, :]).reshape(BLOCK_N)
        pairs = (part[:, None] // 2 + tl.arange(0, HALF // 2)[None, :]).reshape(HALF)
        n = rows.to(tl.int64)
    else:
        rows = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        pairs = tile_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        n = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Columns are carried from step to step, as 32-bit numbers beside addresses that stay: docs/kernels.md says what that saves.
    x_column = first_step * BLOCK_K + tl.arange(0, DOT)
    w_column = first_step * BLOCK_K + 256 // PLANE  # of a step's second tile, so that ..
    w_at = w_ptr + (tile_words(tile_n, N, blocks, w_row, A, B, GATED) - 512)  # .. its words lie on both sides of an address
    if BITS == 3:
        upper_at = w_ptr + steps * (BLOCK_K * 4) + first_step * (BLOCK_K * 2) + tile_words(tile_n, N, blocks, w_row, A, B // 2, GATED)
    x_at = x_ptr + tl.minimum(m, M - 1)[None, :] * x_row
    scale_at = scale_ptr + (rows if SCALE == "rows" else pairs)
    zero_at = scale_at if zero_ptr is None else zero_ptr + (rows if FLOAT_ZERO == "rows" else pairs)
    GROUPS: tl.constexpr = BLOCK_K // GROUP if GROUP > 0 and BLOCK_K % GROUP == 0 else 0  # of a step, where it has whole ones
    if table_ptr is not None:
        # Loaded, each of eight neighbouring rows from an address of its own: what looks the same in all threads, ptxas keeps in uniform
        # registers, and copies back into an ordinary one for every weight.
        at = table_ptr + tl.arange(0, 8)
        table = (
            for_all_rows(at, A, B), for_all_rows(at + 8, A, B), for_all_rows(at + 16, A, B), for_all_rows(at + 24, A, B),
            for_all_rows(at + 32, A, B), for_all_rows(at + 40, A, B), for_all_rows(at + 48, A, B), for_all_rows(at + 56, A, B),
            for_all_rows(at + 64, A, B), for_all_rows(at + 72, A, B),
        )  # fmt: skip
    if GROUP == 0:
        scale = row_values(tl.load(scale_at), A, SCALE)
        zero = scale if FLOAT_ZERO is None else row_values(tl.load(zero_at), A, FLOAT_ZERO)
    marks_at = scale_at
    # Float zero points of the scales' type lie as those do: one number per thread, carried as columns are, serves both.
    TOGETHER: tl.constexpr = FLOAT_ZERO is not None and FLOAT_ZERO == SCALE and GROUPS > 0
    entry = rows if SCALE == "rows" else pairs
    if TOGETHER:
        entry += first_step * GROUPS * scale_row
    elif GROUPS > 0:
        scale_at += first_step * GROUPS * scale_row
        if zero_ptr is not None:
            zero_at += first_step * GROUPS * zero_row
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in tl.range(first_step, last_step, num_stages=STAGES):
        column = step * BLOCK_K
        group_column = 0 if GROUPS > 0 else column
        first = (tl.load(w_at + w_column.to(tl.int64) * (PLANE * 2)),)
        if BITS == 3:
            first = first + (upper_plane(tl.load(upper_at), A, B),)
        second = first
        if ZERO_ASM is not None:
            zero1, zero2 = zero_points(zero_at, group_column, zero_row, A, B, BLOCK_K, DOT, GROUP, ZERO_ASM)
            first, second = first + zero1, second + zero2
        if table_ptr is not None:
            first = first + table
            second = first
        w = unpack(first, second, A, B, ASM, CONSTRAINTS, DTYPE)
        if FENCE:
            proxy_fence(step)
        if GROUP > 0:
            if TOGETHER:
                scale_at, zero_at = scale_ptr + entry.to(tl.int64), zero_ptr + entry.to(tl.int64)
            scale = by_dot(scale_at, group_column, scale_row, BLOCK_K, DOT, GROUP)
            zero = scale if FLOAT_ZERO is None else by_dot(zero_at, group_column, zero_row, BLOCK_K, DOT, GROUP)
        x_dot = x_at if order_ptr is not None else x_at + x_column.to(tl.int64)[:, None] * x_col
        acc = add_columns(acc, w, x_dot, order_ptr, column, x_col, scale, zero, K, A, BLOCK_K, DOT, SCALE, FLOAT_ZERO, FACTOR, EVEN_K)
        w_column += BLOCK_K
        if BITS == 3:
            upper_at += BLOCK_K * 2
        x_column += BLOCK_K
        if TOGETHER:
            entry += GROUPS * scale_row
        elif GROUPS > 0:
            scale_at += GROUPS * scale_row
            if zero_ptr is not None:
                zero_at += GROUPS * zero_row
    if factor_ptr is not None:
        acc = acc * tl.load(factor_ptr)
    if marks is not None:
        acc += row_values(tl.load(marks_at + marks * scale_row), A, SCALE)[:, None]
    finish_split(acc, m, n, M, N, split, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr, residual_row, residual_col, bias_step,
                 partial_size, ACTIVATION, GATED, FACTOR, SPLIT_K, AT_ONCE)  # fmt: skip
