"""Floor 3. Quantize, scale and pack in one launch.

Two bodies. ``quantize_rows``: groups of 2**i columns, each read once and held in registers. ``quantize_area``: every other
geometry (2-D blocks, columns, long or odd groups), read twice, the second time from cache.
A scale over the whole tensor (``tensor``, nvfp4's second level) needs the range of all elements before the first code:
programs of one launch cannot wait for each other without a grid-wide barrier, so ``range_partials`` runs first.
"""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..formats.integer import encode_biased, encode_integer
from ..scheme import Scheme
from .constants import carrier, encode_constants
from .numerics import divide, divide_by_inverse, round_short_quotient
from .parameters import encode_value, finite_or, scale_from_absmax, scale_from_range, tensor_scale_from_absmax

# Columns of a group that quantize_rows holds in registers: 64 for each of 512 threads.
LONGEST_ROW_GROUP = 32768
# Most programs of range_partials: each of them is read again by every program of the second launch.
MAX_PARTIALS = 1024


def _name(specialization) -> str:
    constants = specialization.constants
    return f"quantize_{constants['NAME']}"


@jit
def range_partials(
    x_ptr, low_ptr, high_ptr, N, K, x_row, x_col, programs_k,
    COMPUTE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """low[p], high[p] = least and greatest finite value of what program p reads: every PROGRAMS-th tile of x[N, K]."""
    pid = tl.program_id(0)
    low = tl.full((BLOCK_N, BLOCK_K), float("inf"), COMPUTE)
    high = tl.full((BLOCK_N, BLOCK_K), -float("inf"), COMPUTE)
    tiles_k = tl.cdiv(K, BLOCK_K)
    tile = pid.to(tl.int64)
    while tile < tl.cdiv(N, BLOCK_N).to(tl.int64) * tiles_k:
        rows = (tile // tiles_k) * BLOCK_N + tl.arange(0, BLOCK_N)
        cols = (tile % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_row + cols[None, :] * x_col, mask=mask, other=float("nan")).to(COMPUTE)
        low = tl.minimum(low, finite_or(x, float("inf")))
        high = tl.maximum(high, finite_or(x, -float("inf")))
        tile += programs_k
    tl.store(low_ptr + pid, tl.min(tl.min(low, 1), 0))
    tl.store(high_ptr + pid, tl.max(tl.max(high, 1), 0))


@jit
def tensor_range(low_ptr, high_ptr, partials, COMPUTE: tl.constexpr, PARTIALS: tl.constexpr):
    """The range of the whole tensor from the partials, as two tensors of one element."""
    index = tl.arange(0, PARTIALS)
    low = tl.load(low_ptr + index, mask=index < partials, other=float("inf"))
    high = tl.load(high_ptr + index, mask=index < partials, other=-float("inf"))
    return tl.min(low, 0, keep_dims=True), tl.max(high, 0, keep_dims=True)


@jit(repr=_name)
def quantize_rows(
    x_ptr, packed_ptr, scale_ptr, zero_point_ptr, low_ptr, high_ptr, second_ptr, N, K, groups, row_words, x_row, x_col, partials,
    NAME: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr, WORD: tl.constexpr, COMPUTE: tl.constexpr, TWO_LEVEL: tl.constexpr, PARTIALS: tl.constexpr,
    FAST: tl.constexpr, SHORT: tl.constexpr, IN_RANGE: tl.constexpr, SCALE_MIN: tl.constexpr, SCALE_MAX: tl.constexpr,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """x[N, K] -> packed, scale[N, groups], zero_point; one program per BLOCK_N rows x BLOCK_G groups of COLUMNS, padded to GROUP = 2**i.

    The tile is [BLOCK_N, REPEAT, BLOCK_G, threads of a group, LANES]: a thread loads LANES neighbours at a time, holds REPEAT such runs of
    one group, and packs them without leaving its registers.
    """
    tiles_g = tl.cdiv(groups, BLOCK_G)
    pid = tl.program_id(0)
    rows = (pid // tiles_g).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = (pid % tiles_g) * BLOCK_G + tl.arange(0, BLOCK_G)
    THREADS: tl.constexpr = GROUP // (REPEAT * LANES)
    run = (tl.arange(0, REPEAT) * THREADS)[None, :, None, None] + tl.arange(0, THREADS)[None, None, None, :]
    lane = tl.arange(0, LANES)[None, None, None, None, :]
    first = group[None, None, :, None] * COLUMNS + run * LANES
    cols = first[:, :, :, :, None] + lane
    row_ok = (rows < N)[:, None, None, None, None]
    col_ok = cols < K
    if COLUMNS < GROUP:
        col_ok = col_ok & ((run * LANES)[:, :, :, :, None] + lane < COLUMNS)
    mask = row_ok & col_ok
    offset = rows[:, None, None, None, None] * x_row + cols.to(tl.int64) * x_col
    # Padding must not enter a range: 0 is inside every range but that of a float zero, which is not extended to it.
    x = tl.load(x_ptr + offset, mask=mask, other=float("nan") if FLOAT_ZERO else 0.0).to(COMPUTE)
    at = rows[:, None] * groups + group[None, :]
    at_ok = (rows < N)[:, None] & (group < groups)[None, :]

    second = None
    if TWO_LEVEL:
        low, high = tensor_range(low_ptr, high_ptr, partials, COMPUTE, PARTIALS)
        second = tensor_scale_from_absmax(tl.maximum(tl.maximum(-low, high), 0.0))
        if pid == 0:
            tl.store(second_ptr + tl.arange(0, 1), second)
        second = second[:, None]

    if FAST:
        # As if every value were finite, and every scale far from overflow and underflow ...
        magnitude = max_of_group(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        if AFFINE:
            low = min_of_group(x)
            high = max_of_group(x)
        else:
            high = magnitude.to(tl.float32, bitcast=True)
            low = -high
        stored, stored_zero = group_parameters(low, high, second, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, LOW, HIGH, AWAY,
                                               ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
        scale = decode_scale(stored, second, COMPUTE, DECODE_SCALE)
        zero_point = decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)
        # ... which magnitudes below Inf and SCALE_MIN <= scale <= SCALE_MAX prove for this program.
        odd = (magnitude >= 0x7F800000) | (scale < SCALE_MIN) | (scale > SCALE_MAX)
        if tl.max(tl.max(odd.to(tl.int32), 1), 0) == 0:
            inverse = per_element(divide(tl.full(scale.shape, 1.0, tl.float32), scale))
            if SHORT:
                u = round_short_quotient(x, inverse)
            else:
                u = divide_by_inverse(x, per_element(scale), inverse)
        else:
            stored, stored_zero = rows_parameters(x, second, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, LOW, HIGH, AWAY,
                                                  ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
            scale = decode_scale(stored, second, COMPUTE, DECODE_SCALE)
            zero_point = decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)
            u = divide(tl.where(x == x, x, 0.0), tl.broadcast_to(per_element(tl.where(scale == 0.0, 1.0, scale)), x.shape))
            if SHORT:
                # Wide enough for every sum with a zero point, narrow enough for the sum to stay exact.
                u = tl.minimum(tl.maximum(u, LOW if IN_RANGE else -1024.0), HIGH if IN_RANGE else 1024.0) + 12582912.0
        if SHORT and IN_RANGE:
            code = u.to(tl.int32, bitcast=True)
        elif SHORT:
            code = encode_biased(u + per_element(zero_point) if AFFINE else u, LOW, HIGH)
        elif ENCODE is None:
            code = encode_integer(u, per_element(zero_point) if AFFINE else 0.0, LOW, HIGH, AWAY)
        else:
            code = ENCODE(u)
        code = code & (2**BITS - 1)
    else:
        stored, stored_zero = rows_parameters(x, second, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, LOW, HIGH, AWAY,
                                              ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
        scale = decode_scale(stored, second, COMPUTE, DECODE_SCALE)
        zero_point = decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)
        code = encode_value(x, per_element(scale), per_element(zero_point), ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO)

    tl.store(scale_ptr + at, stored, mask=at_ok)
    if AFFINE:
        tl.store(zero_point_ptr + at, stored_zero, mask=at_ok)
    code = tl.where(mask, code, 0)
    if WORD == 1:
        word = cols
        packed = code
    else:
        word = (first // LANES * (LANES // WORD))[:, :, :, :, None] + tl.arange(0, LANES // WORD)[None, None, None, None, :]
        codes = tl.reshape(code, (BLOCK_N, REPEAT, BLOCK_G, THREADS, LANES // WORD, WORD))
        packed = tl.sum(codes << (tl.arange(0, WORD) * BITS)[None, None, None, None, None, :], 5)
    # A 3-bit unit of 8 codes fills three bytes, everything else one machine word.
    STORES: tl.constexpr = 3 if WORD * BITS == 24 else 1
    word_ok = row_ok & (word * WORD < K)
    if COLUMNS < GROUP:
        word_ok = word_ok & ((run * LANES)[:, :, :, :, None] + tl.arange(0, LANES // WORD)[None, None, None, None, :] * WORD < COLUMNS)
    for i in tl.static_range(STORES):
        at_word = word * STORES + i
        tl.store(packed_ptr + rows[:, None, None, None, None] * row_words + at_word, (packed >> (8 * i)).to(packed_ptr.dtype.element_ty),
                 mask=word_ok & (at_word < row_words))  # fmt: skip


@jit
def max_of_group(x):
    """[N, repeat, G, threads, lanes] -> [N, G]; registers first, so that one value per thread crosses the warp."""
    return tl.max(tl.max(tl.max(x, 4), 1), 2)


@jit
def min_of_group(x):
    """[N, repeat, G, threads, lanes] -> [N, G]."""
    return tl.min(tl.min(tl.min(x, 4), 1), 2)


@jit
def per_element(group):
    """[N, G] -> [N, 1, G, 1, 1], which broadcasts against a quantize_rows tile."""
    return group[:, None, :, None, None]


@jit(repr=_name)
def quantize_area(
    x_ptr, packed_ptr, scale_ptr, zero_point_ptr, low_ptr, high_ptr, N, K, groups, row_bytes, x_row, x_col, partials,
    group_rows, group_columns, area_rows, area_columns,
    NAME: tl.constexpr, REDUCE: tl.constexpr, COMPUTE: tl.constexpr, PARTIALS: tl.constexpr, UNIT: tl.constexpr,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x[N, K] -> packed, scale, zero_point; one program per area_rows x area_columns, which holds whole groups and whole bytes.

    REDUCE says what shares a scale inside a tile: ``"row"`` (each row for itself), ``"column"``, ``"block"`` (all of it), ``"tensor"``
    (from the partials) or ``"none"`` (a plain cast). Scales go out first and come back per element, so that a byte may hold codes of two groups.
    """
    areas_k = tl.cdiv(K, area_columns)
    pid = tl.program_id(0)
    first_row = (pid // areas_k).to(tl.int64) * area_rows
    first_col = (pid % areas_k).to(tl.int64) * area_columns
    last_row = tl.minimum(first_row + area_rows, N)
    last_col = tl.minimum(first_col + area_columns, K)

    if REDUCE == "tensor":
        low, high = tensor_range(low_ptr, high_ptr, partials, COMPUTE, PARTIALS)
        tensor_stored, tensor_zero = group_parameters(low, high, None, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, LOW, HIGH, AWAY,
                                                      ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
        if pid == 0:
            tl.store(scale_ptr + tl.arange(0, 1), tensor_stored)
            if AFFINE:
                tl.store(zero_point_ptr + tl.arange(0, 1), tensor_zero)
    elif REDUCE != "none":
        start = first_col
        while start < last_col:
            stop = last_col
            if REDUCE != "column":
                stop = tl.minimum(start + group_columns, last_col)
            low = tl.full((BLOCK_N, BLOCK_K), float("inf"), COMPUTE)
            high = tl.full((BLOCK_N, BLOCK_K), -float("inf"), COMPUTE)
            row = first_row
            while row < last_row:
                col = start
                while col < stop:
                    rows = row + tl.arange(0, BLOCK_N)
                    cols = col + tl.arange(0, BLOCK_K)
                    mask = (rows < last_row)[:, None] & (cols < stop)[None, :]
                    x = tl.load(x_ptr + rows[:, None] * x_row + cols[None, :] * x_col, mask=mask, other=float("nan")).to(COMPUTE)
                    low = tl.minimum(low, finite_or(x, float("inf")))
                    high = tl.maximum(high, finite_or(x, -float("inf")))
                    col += BLOCK_K
                row += BLOCK_N
            group = start // group_columns
            if REDUCE == "row":
                group_low = tl.min(low, 1)
                group_high = tl.max(high, 1)
                at = (first_row + tl.arange(0, BLOCK_N)) * groups + group
                at_ok = first_row + tl.arange(0, BLOCK_N) < last_row
            elif REDUCE == "column":
                group_low = tl.min(low, 0)
                group_high = tl.max(high, 0)
                at = (first_row // group_rows) * groups + start + tl.arange(0, BLOCK_K)
                at_ok = start + tl.arange(0, BLOCK_K) < last_col
            else:
                group_low = tl.min(tl.min(low, 1, keep_dims=True), 0)
                group_high = tl.max(tl.max(high, 1, keep_dims=True), 0)
                at = (first_row // group_rows) * groups + group + tl.arange(0, 1)
                at_ok = at >= 0
            stored, stored_zero = group_parameters(group_low, group_high, None, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                                   LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
            tl.store(scale_ptr + at, stored, mask=at_ok)
            if AFFINE:
                tl.store(zero_point_ptr + at, stored_zero, mask=at_ok)
            start = stop
        tl.debug_barrier()  # the scales just stored are read back by other threads of this program

    row = first_row
    while row < last_row:
        col = first_col
        while col < last_col:
            rows = (row + tl.arange(0, BLOCK_N))[:, None]
            units = tl.arange(0, BLOCK_K // UNIT)
            word = tl.zeros((BLOCK_N, BLOCK_K // UNIT), tl.int32)
            for i in tl.static_range(UNIT):
                cols = (col + units * UNIT + i)[None, :]
                mask = (rows < last_row) & (cols < last_col)
                x = tl.load(x_ptr + rows * x_row + cols * x_col, mask=mask, other=0.0).to(COMPUTE)
                zero_point = 0.0
                if REDUCE == "none":
                    scale = None
                elif REDUCE == "tensor":
                    scale = DECODE_SCALE(tensor_stored).to(COMPUTE)[:, None]
                    if AFFINE:
                        zero_point = decode_zero(tensor_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)[:, None]
                else:
                    at = (rows // group_rows) * groups + cols // group_columns
                    scale = DECODE_SCALE(tl.load(scale_ptr + at, mask=mask, other=1)).to(COMPUTE)
                    if AFFINE:
                        zero_point = decode_zero(tl.load(zero_point_ptr + at, mask=mask, other=0), COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)
                code = encode_value(x, scale, zero_point, ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO)
                word = word | (tl.where(mask, code, 0) << (i * BITS))
            offset = (col // UNIT + units)[None, :] * (UNIT * BITS // 8)
            for i in tl.static_range(UNIT * BITS // 8):
                mask = (rows < last_row) & (col + units * UNIT < last_col)[None, :] & (offset + i < row_bytes)
                tl.store(packed_ptr + rows * row_bytes + offset + i, ((word >> (8 * i)) & 0xFF).to(tl.uint8), mask=mask)
            col += BLOCK_K
        row += BLOCK_N


@jit
def group_parameters(
    low, high, second,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr,
):  # fmt: skip
    """Scale and zero point as stored; a symmetric scheme gives its scale twice."""
    if AFFINE:
        stored, stored_zero = scale_from_range(low, high, DIVISOR, EMPTY_SCALE, ROUND_UP, FLOAT_ZERO, LOW, HIGH, AWAY,
                                               ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
    else:
        absmax = tl.maximum(tl.maximum(-low, high), 0.0)
        stored = scale_from_absmax(absmax, second, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, ENCODE_SCALE)
        stored_zero = stored
    return stored, stored_zero


@jit
def rows_parameters(
    x, second,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr,
):  # fmt: skip
    """The parameters of a quantize_rows tile whose values may be anything."""
    low = min_of_group(finite_or(x, float("inf")))
    high = max_of_group(finite_or(x, -float("inf")))
    return group_parameters(low, high, second, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, LOW, HIGH, AWAY,
                            ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip


@jit
def decode_scale(stored, second, COMPUTE: tl.constexpr, DECODE_SCALE: tl.constexpr):
    """A stored scale as a number in COMPUTE, times the tensor's scale where there is one."""
    scale = DECODE_SCALE(stored)
    if second is not None:
        scale = scale * second
    return scale.to(COMPUTE)


@jit
def decode_zero(stored, COMPUTE: tl.constexpr, AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr):
    """A stored zero point as a number in COMPUTE; 0 where the scheme has none."""
    if FLOAT_ZERO:
        zero_point = DECODE_ZERO(stored).to(COMPUTE)
    elif AFFINE:
        zero_point = stored.to(COMPUTE)
    else:
        zero_point = tl.zeros(stored.shape, COMPUTE)
    return zero_point


def short_cuts(scheme: Scheme, dtype: torch.dtype) -> dict:
    """Which shorter arithmetic gives the same bits, and for which scales.

    FAST: a reciprocal, in float32, where no code boundary lies at 0 (there a quotient that underflows would matter).
    SHORT: inputs and scales of at most 11 significant bits and integer codes with ties to even, see round_short_quotient.
    IN_RANGE: absmax / scale rounds to the largest code at most, whatever the rounding of the scale, so that codes need no clamp.
    """
    fmt, storage = scheme.format, scheme.scale_format(dtype)
    splits_zero = not fmt.is_integer and bool(fmt.encode_ref(torch.tensor([2.0**-149])) != fmt.encode_ref(torch.tensor([0.0])))
    fast = dtype != torch.float64 and not scheme.float_zero and not splits_zero
    short = fast and dtype.itemsize == 2 and storage.bits <= 16 and fmt.is_integer and "away" not in scheme.options
    exact = torch.finfo(storage.dtype)
    error = 0.0 if scheme.rounds_up else exact.eps / 2
    in_range = short and not fmt.affine and "full" not in scheme.options and fmt.max_abs / (1 - error) < fmt.max_abs + 0.5
    return {"FAST": fast, "SHORT": short, "IN_RANGE": in_range,
            "SCALE_MIN": max(2.0**-60, exact.smallest_normal), "SCALE_MAX": min(2.0**60, exact.max / 2)}  # fmt: skip


def next_power_of_two(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def word_codes(scheme: Scheme, n: int, k: int) -> int:
    """Codes per stored word: 32 bits where rows and groups hold whole ones, else the fewest codes that fill bytes."""
    fmt = scheme.format
    wide = 32 // fmt.bits
    columns = scheme.group_shape(n, k)[1]
    whole = fmt.row_bytes(k) % 4 == 0 and (columns % wide == 0 or columns >= k)
    return wide if whole and fmt.bits in (2, 4) else fmt.unit


def thread_shape(group: int, columns: int, word: int) -> dict[str, int]:
    """LANES neighbours per load (8: 16 bytes of a 16-bit dtype) and REPEAT loads of one group per thread: 32 elements, 64 of a long group."""
    lanes = min(word if columns % 8 else max(word, 8), group)
    return {"LANES": lanes, "REPEAT": min(max((32 if group <= 4096 else 64) // lanes, 1), group // lanes)}


def row_group(scheme: Scheme, n: int, k: int) -> int | None:
    """The power of two that quantize_rows holds per group, None where the geometry needs quantize_area."""
    if not scheme.has_scale or k == 0 or scheme.granularity.kind == "tensor":
        return None
    group_rows, columns = scheme.group_shape(n, k)
    columns = min(columns, k)
    group = max(next_power_of_two(columns), word_codes(scheme, n, k))
    if group_rows > 1 or group > LONGEST_ROW_GROUP or (columns < k and columns % scheme.format.unit):
        return None
    return group


def config(scheme: Scheme, n: int, k: int) -> dict[str, int]:
    """Tile sizes. 4096 elements for 128 threads: 32 each, four 16-byte loads of a 16-bit dtype."""
    columns = min(scheme.group_shape(n, k)[1], k)
    if group := row_group(scheme, n, k):
        block_g = min(next_power_of_two(-(-k // columns)), max(4096 // group, 1))
        block_n = min(next_power_of_two(n), max(4096 // (group * block_g), 1))
        return {"BLOCK_N": block_n, "BLOCK_G": block_g, "num_warps": max(4, group // 2048)}
    if scheme.has_scale and columns == 1 and scheme.group_shape(n, k)[0] > 1:
        return {"BLOCK_N": 16, "BLOCK_K": 64, "num_warps": 4}
    block_k = min(max(next_power_of_two(columns), scheme.format.unit, 16), 256)
    return {"BLOCK_N": min(next_power_of_two(n), 1024 // block_k), "BLOCK_K": block_k, "num_warps": 4}


def launch(x: torch.Tensor, scheme: Scheme, config: dict[str, int]) -> tuple[torch.Tensor, ...]:
    """Quantize ``x`` ``[N, K]``, N and K at least 1: (packed, scale, zero_point or None, second_scale or None), scales plain for ``dq``."""
    n, k = x.shape
    fmt, device = scheme.format, x.device
    row_bytes = fmt.row_bytes(k)
    packed = torch.empty(n, row_bytes, dtype=torch.uint8, device=device)
    scale = zero_point = second = None
    groups = 1
    if scheme.has_scale:
        shape = scheme.scale_shape(n, k)
        groups = shape[1]
        scale = torch.empty(shape, dtype=scheme.scale_format(x.dtype).dtype, device=device)
        if fmt.affine:
            zero_point = torch.empty(shape, dtype=scheme.zero_format(x.dtype).dtype if scheme.float_zero else torch.uint8, device=device)
    constants = encode_constants(scheme, x.dtype)
    low = high = None
    partials = 0
    if scheme.recipe == "nv" or scheme.granularity.kind == "tensor":
        partials = min(triton.cdiv(n, 16) * triton.cdiv(k, 256), MAX_PARTIALS)
        low, high = torch.empty(2, partials, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=device)
        range_partials[(partials,)](x, low, high, n, k, x.stride(0), x.stride(1), partials, COMPUTE=constants["COMPUTE"],
                                    BLOCK_N=16, BLOCK_K=256, enable_fp_fusion=False)  # fmt: skip
    if group := row_group(scheme, n, k):
        word = word_codes(scheme, n, k)
        columns = scheme.group_shape(n, k)[1] if groups > 1 else group
        words = packed.view(torch.int32) if word * fmt.bits == 32 else packed
        if scheme.recipe == "nv":
            second = torch.empty((), dtype=torch.float32, device=device)
        grid = (triton.cdiv(n, config["BLOCK_N"]) * triton.cdiv(groups, config["BLOCK_G"]),)
        quantize_rows[grid](
            x, words, carrier(scale), zero_point, low, high, second, n, k, groups, words.shape[1], x.stride(0), x.stride(1), partials,
            GROUP=group, COLUMNS=columns, WORD=word, **thread_shape(group, columns, word),
            TWO_LEVEL=scheme.recipe == "nv", 
            **short_cuts(scheme, x.dtype), PARTIALS=next_power_of_two(partials), **constants, **config,
            enable_fp_fusion=False,
        )  # fmt: skip
        return packed, scale, zero_point, second
    group_rows, group_columns = scheme.group_shape(n, k) if scheme.has_scale else (n, k)
    if not scheme.has_scale or scheme.granularity.kind == "tensor":
        reduce, area_rows, area_columns = "tensor" if scheme.has_scale else "none", config["BLOCK_N"], config["BLOCK_K"]
    elif group_rows == 1:
        reduce, area_rows, area_columns = "row", config["BLOCK_N"], group_columns * fmt.unit
    elif group_columns == 1:
        reduce, area_rows, area_columns = "column", group_rows, config["BLOCK_K"]
    else:
        reduce, area_rows, area_columns = "block", group_rows, group_columns * fmt.unit
    grid = (triton.cdiv(n, area_rows) * triton.cdiv(k, area_columns),)
    quantize_area[grid](
        x, packed, carrier(scale), zero_point, low, high, n, k, groups, row_bytes, x.stride(0), x.stride(1), partials,
        group_rows, group_columns, area_rows, area_columns, REDUCE=reduce, PARTIALS=next_power_of_two(partials), UNIT=fmt.unit,
        **constants, **config, enable_fp_fusion=False,
    )  # fmt: skip
    return packed, scale, zero_point, second
