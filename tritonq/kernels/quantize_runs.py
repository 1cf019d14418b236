"""Floor 3. What the kernels share that quantize straight into a product's layout: a run of a row is one group, or a step of several."""
from __future__ import annotations

from .._triton import jit, tl
from ..layouts.by_group import up
from ..scheme import Scheme
from .fragment_words import relabel
from .group_range import range_of_group, widen
from .parameters import decode_scale, decode_zero, finite_or, group_parameters
from .quantize_words import any_odd, words_of_finite


@jit
def short_way(
    x_ptr, packed_ptr, scale_ptr, zero_ptr, cells_ptr, x_row, x_col, w_row, scale_row, zero_row, groups, columns, a, group,
    LOAD: tl.constexpr, FIELDS: tl.constexpr, STORE: tl.constexpr, STORE_PARAMETERS: tl.constexpr,
    GROUP: tl.constexpr, SPAN: tl.constexpr, SPANS: tl.constexpr, WORDS: tl.constexpr, WIDE: tl.constexpr,
    FLIP: tl.constexpr, LABELS: tl.constexpr,
    QUOTIENT: tl.constexpr, IN_RANGE: tl.constexpr, PAIRS: tl.constexpr, CELLS: tl.constexpr, CROWDED: tl.constexpr,
    RECODE: tl.constexpr, E2M1: tl.constexpr, SCALE_MIN: tl.constexpr, SCALE_MAX: tl.constexpr,
    SCALE: tl.constexpr, ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr, DECODE_SCALE: tl.constexpr,
    COMPUTE: tl.constexpr, ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr,
):  # fmt: skip
    """A run of rows ``a`` inside the matrix, from x_ptr and packed_ptr on, by the arithmetic of short_cuts; nothing, and False, where a
    value or a scale needs the other.

    GROUP columns a group, in one step of SPAN columns; 0 for longer groups, whose steps have SPANS * SPAN. Steps begin WORDS of packed_ptr
    apart. LOAD, FIELDS, STORE and STORE_PARAMETERS know the layout, see fragment_words.
    """
    PARTS: tl.constexpr = SPAN // GROUP if GROUP > 0 else 1  # groups of a step
    WIDTH: tl.constexpr = SPAN // PARTS
    if GROUP > 0:
        columns = SPAN
    step = tl.full((), SPAN * SPANS, tl.int64) * x_col
    loaded = LOAD(x_ptr, x_row, x_col, BITS, WIDTH, SPANS, WIDE)
    x = widen(loaded, COMPUTE)
    low, high, magnitude = range_of_group(loaded, x, 3, AFFINE)
    if GROUP == 0:
        at = x_ptr
        for _ in range(SPAN * SPANS, columns, SPAN * SPANS):
            at += step
            loaded = LOAD(at, x_row, x_col, BITS, WIDTH, SPANS, WIDE)
            low1, high1, magnitude1 = range_of_group(loaded, widen(loaded, COMPUTE), 3, AFFINE)
            low, high, magnitude = tl.minimum(low, low1), tl.maximum(high, high1), tl.maximum(magnitude, magnitude1)
    stored, stored_zero = group_parameters(low, high, None, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                           LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
    scale = decode_scale(stored, None, COMPUTE, DECODE_SCALE)
    zero_point = decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)
    odd = any_odd(magnitude, scale, SCALE_MIN, SCALE_MAX)
    group = group + tl.arange(0, PARTS)
    real = tl.full(stored.shape, 1, tl.int1)
    if not odd:
        STORE_PARAMETERS(scale_ptr, stored, real, a, group, groups, scale_row, SCALE, PARTS)
        if AFFINE:
            STORE_PARAMETERS(zero_ptr, stored_zero, real, a, group, groups, zero_row, ZERO, PARTS)
        for start in range(0, columns, SPAN * SPANS):
            if GROUP == 0:
                x = widen(LOAD(x_ptr, x_row, x_col, BITS, WIDTH, SPANS, WIDE), COMPUTE)
                x_ptr += step
            words = words_of_finite(x, scale, zero_point, cells_ptr, None, FIELDS, 32 // BITS, False, QUOTIENT, IN_RANGE, PAIRS,
                                    CELLS, CROWDED, RECODE, E2M1, ENCODE, BITS, LOW, HIGH, AWAY, AFFINE, FLOAT_ZERO)  # fmt: skip
            if LABELS is not None:
                words = relabel(words, LABELS)
            STORE(packed_ptr + start // SPAN * WORDS, words ^ FLIP, w_row, BITS, SPANS)
    return not odd


@jit
def run_range(x_ptr, rows, first, columns, N, K, x_row, x_col, COMPUTE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """(least, greatest) finite value ``[rows, PARTS]`` of the run of ``columns`` from ``first`` on, PARTS groups of WIDTH a step."""
    low = tl.full((rows.shape[0], PARTS), float("inf"), COMPUTE)
    high = tl.full((rows.shape[0], PARTS), -float("inf"), COMPUTE)
    for start in range(first, tl.minimum(first + columns, K), PARTS * WIDTH):
        x = load_step(x_ptr, rows, start, N, K, x_row, x_col, COMPUTE, PARTS * WIDTH).reshape(rows.shape[0], PARTS, WIDTH)
        low = tl.minimum(low, tl.min(finite_or(x, float("inf")), 2))
        high = tl.maximum(high, tl.max(finite_or(x, -float("inf")), 2))
    return low, high


@jit
def load_step(x_ptr, rows, start, N, K, x_row, x_col, COMPUTE: tl.constexpr, SPAN: tl.constexpr):
    """``[rows, SPAN]`` of x in COMPUTE; NaN outside of it, which enters no range."""
    column = start + tl.arange(0, SPAN)
    at = x_ptr + rows[:, None] * x_row + column.to(tl.int64)[None, :] * x_col
    return tl.load(at, mask=(rows < N)[:, None] & (column < K)[None, :], other=float("nan")).to(COMPUTE)


@jit
def spread(values, WIDTH: tl.constexpr):
    """``[rows, PARTS]`` per group to ``[rows, PARTS * WIDTH]``."""
    wide = tl.broadcast_to(values[:, :, None], (values.shape[0], values.shape[1], WIDTH))
    return wide.reshape(values.shape[0], values.shape[1] * WIDTH)


def run_columns(scheme: Scheme, n: int, k: int, span: int) -> int:
    """Columns of a program: a group, or ``span``."""
    columns = scheme.group_shape(n, k)[1]
    return up(k, span) if columns >= k else max(columns, span)


def spans(run: int, span: int) -> int:
    """How many spans a step has: two of a group that is longer, as there are few, where it has an even number; four would spill."""
    return 1 if run // span % 2 else 2


def refuses_groups(scheme: Scheme, k: int, span: int) -> str | None:
    """Why a kernel that takes ``span`` columns of a row at a time cannot make the scales of ``scheme``, or None."""
    if "dq" in scheme.options or scheme.recipe == "nv":
        return f"{scheme} has a second level of scales, which only a second launch can make"
    columns = scheme.group_shape(1, k)[1]
    if scheme.granularity.kind not in ("group", "channel", "token"):
        return f"holds groups along rows, {scheme} shares scales otherwise"
    if columns < k and span % columns and columns % span:
        return f"holds groups of 1, 2, 4, ... columns up to {span}, of multiples of {span}, or whole rows; {scheme} has {columns}"
    return None
