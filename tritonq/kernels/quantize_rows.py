"""Floor 3. Quantize, scale and pack groups that lie in one row: each element is read once and held in registers."""
from __future__ import annotations

from .._triton import jit, tl
from ..formats.codebook import CELL_DENSITY, CELL_ORIGIN, CELL_SLOPE
from ..formats.integer import encode_integer
from .numerics import divide, divide_by_inverse, round_short_quotient
from .parameters import decode_scale, decode_zero, encode_value, finite_or, group_parameters, tensor_scale_from_absmax
from .ranges import tensor_range


def _name(specialization) -> str:
    return f"quantize_{specialization.constants['NAME']}"


@jit(repr=_name)
def quantize_rows(
    x_ptr, packed_ptr, scale_ptr, zero_point_ptr, low_ptr, high_ptr, second_ptr, cells_ptr, N, K, groups, row_words, x_row, x_col, partials,
    NAME: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr, OUTER: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr,
    STEPS: tl.constexpr, WORD: tl.constexpr, FULL: tl.constexpr, RAGGED: tl.constexpr, WIDE: tl.constexpr,
    COMPUTE: tl.constexpr, TWO_LEVEL: tl.constexpr, PARTIALS: tl.constexpr,
    FAST: tl.constexpr, QUOTIENT: tl.constexpr, IN_RANGE: tl.constexpr, CELLS: tl.constexpr,
    SCALE_MIN: tl.constexpr, SCALE_MAX: tl.constexpr,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr,
    ENCODE_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """x[N, K] -> packed, scale[N, groups], zero_point; one program per BLOCK_N rows x BLOCK_G groups of COLUMNS, padded to GROUP = 2**i.

    The tile is [OUTER, REPEAT, BLOCK_N, BLOCK_G, threads of a group, LANES]: a thread loads LANES = 2**STEPS neighbours at a time, REPEAT
    such runs lie side by side and fill its 16-byte store, and OUTER of those are its share of a group. FULL: tiles cover x exactly, nothing
    is masked. RAGGED: a row ends inside a word. WIDE: columns need 64 bits.
    """
    RUN: tl.constexpr = REPEAT * LANES
    THREADS: tl.constexpr = GROUP // (OUTER * RUN)
    first_row = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * BLOCK_N
    first_group = tl.program_id(0) * BLOCK_G
    if WIDE:
        first_group = first_group.to(tl.int64)

    # Addresses are a matrix with a row for each LANES neighbours, so that threads walk the axes above from the last one on. Where no
    # axis but the lanes is contiguous in memory, Triton 3.6 deals threads to the first axes and 3.9 to the last.
    thread, group, row, run = digits(tl.arange(0, OUTER * REPEAT * BLOCK_N * BLOCK_G * THREADS) * RUN, THREADS * RUN, BLOCK_G, BLOCK_N)
    start = (first_group + group) * COLUMNS + thread
    inner = (run % REPEAT * LANES + run // REPEAT * (THREADS * RUN))[:, None] + tl.arange(0, LANES)[None, :]
    x_at = x_ptr + ((first_row + row) * x_row + start.to(tl.int64) * x_col)[:, None] + inner.to(tl.int64) * x_col
    mask = None
    if FULL:
        loaded = tl.load(x_at)
    else:
        mask = (first_row + row < N)[:, None] & (start[:, None] + inner < K)
        if COLUMNS < GROUP:
            mask = mask & (thread[:, None] + inner < COLUMNS)
        # Padding must not enter a range: 0 is inside every range but that of a float zero, which is not extended to it.
        loaded = tl.load(x_at, mask=mask, other=float("nan") if FLOAT_ZERO else 0.0)
        mask = tl.reshape(mask, (OUTER, REPEAT, BLOCK_N, BLOCK_G, THREADS, LANES))
    loaded = tl.reshape(loaded, (OUTER, REPEAT, BLOCK_N, BLOCK_G, THREADS, LANES))
    x = widen(loaded, COMPUTE)

    second = None
    if TWO_LEVEL:
        low, high = tensor_range(low_ptr, high_ptr, partials, COMPUTE, PARTIALS)
        second = tensor_scale_from_absmax(tl.maximum(tl.maximum(-low, high), 0.0))
        if tl.program_id(0) + tl.program_id(1) + tl.program_id(2) == 0:
            tl.store(second_ptr + tl.arange(0, 1), second)
        second = second[:, None]

    if FAST:
        # As if every value were finite, and every scale far from overflow and underflow ...
        low, high, magnitude = range_of_group(x, STEPS, AFFINE)
        stored, stored_zero = group_parameters(low, high, second, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                               LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
        zero_point = decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)
        scale = decode_scale(stored, second, COMPUTE, DECODE_SCALE)
        # ... which magnitudes below Inf and SCALE_MIN <= scale <= SCALE_MAX prove for this program.
        odd = (magnitude >= 0x7F800000) | (scale < SCALE_MIN) | (scale > SCALE_MAX)
        if tl.max(tl.max(odd.to(tl.int32), 1), 0) == 0:
            packed = words_of_finite(x, scale, zero_point, cells_ptr, mask, WORD, RAGGED, QUOTIENT, IN_RANGE, CELLS,
                                     ENCODE, BITS, LOW, HIGH, AWAY, AFFINE)  # fmt: skip
        else:
            stored, stored_zero, packed = words_of_any(x, second, mask, WORD, RAGGED, COMPUTE, ENCODE, BITS, LOW, HIGH, AWAY,
                                                       AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                                       ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO, DECODE_ZERO)  # fmt: skip
    else:
        stored, stored_zero, packed = words_of_any(x, second, mask, WORD, RAGGED, COMPUTE, ENCODE, BITS, LOW, HIGH, AWAY,
                                                   AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                                   ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO, DECODE_ZERO)  # fmt: skip

    rows = first_row + tl.arange(0, BLOCK_N)
    group = first_group + tl.arange(0, BLOCK_G)
    at = rows[:, None] * groups + group[None, :]
    at_ok = None
    if not FULL:
        at_ok = (rows < N)[:, None] & (group < groups)[None, :]
    tl.store(scale_ptr + at, stored, mask=at_ok)
    if AFFINE:
        tl.store(zero_point_ptr + at, stored_zero, mask=at_ok)

    # A thread's words of one outer step are neighbours. A 3-bit unit of 8 codes fills three bytes, everything else one machine word.
    WORDS: tl.constexpr = RUN // WORD
    STORES: tl.constexpr = 3 if WORD * BITS == 24 else 1
    packed = tl.reshape(packed, (OUTER * BLOCK_N * BLOCK_G * THREADS, WORDS))
    thread, group, row, run = digits(tl.arange(0, OUTER * BLOCK_N * BLOCK_G * THREADS) * RUN, THREADS * RUN, BLOCK_G, BLOCK_N)
    start = (first_group + group) * (COLUMNS // WORD) + thread // WORD
    inner = (run * (THREADS * WORDS))[:, None] + tl.arange(0, WORDS)[None, :]
    at = packed_ptr + ((first_row + row) * row_words + start * STORES)[:, None] + inner * STORES
    ok = None
    if not FULL:
        ok = (first_row + row < N)[:, None] & (start[:, None] + inner < tl.cdiv(K, WORD))
        if COLUMNS < GROUP:
            ok = ok & ((thread // WORD)[:, None] + inner < COLUMNS // WORD)
    for i in tl.static_range(STORES):
        if STORES > 1 and not FULL:
            ok = ok & ((start[:, None] + inner) * STORES + i < row_words)
        tl.store(at + i, (packed >> (8 * i)).to(packed_ptr.dtype.element_ty), mask=ok)


@jit
def digits(i, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """i = ((d * C + c) * B + b) * A + a  ->  a, b, c, d."""
    return i % A, i // A % B, i // (A * B) % C, i // (A * B * C)


@jit
def widen(loaded, COMPUTE: tl.constexpr):
    """The tile in COMPUTE. A bfloat16 is the upper half of a float32; said like this, it costs one instruction"""
    if tl.bfloat16 == loaded.dtype and tl.float32 == COMPUTE:
        x = (loaded.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        x = loaded.to(COMPUTE)
    return x


@jit
def range_of_group(x, STEPS: tl.constexpr, AFFINE: tl.constexpr):
    """Least value, greatest value, and the bits of the greatest magnitude of each group, [N, G] each; NaN counts as the greatest magnitude.

    A symmetric scheme needs the magnitude alone. The first steps run inside a thread and let NaN through, which takes one instruction.
    """
    if AFFINE:
        low = x
        high = x
        for _ in tl.static_range(STEPS):
            a, b = halves(low)
            low = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
            a, b = halves(high)
            high = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
        most = tl.maximum(tl.abs(low), tl.abs(high), propagate_nan=tl.PropagateNan.ALL)
        magnitude = max_of_group(most.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        low = min_of_group(low)
        high = max_of_group(high)
    else:
        most = tl.abs(x)
        for _ in tl.static_range(STEPS):
            a, b = halves(most)
            most = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
        magnitude = max_of_group(most.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        high = magnitude.to(tl.float32, bitcast=True)
        low = -high
    return low, high, magnitude


@jit
def halves(x):
    """The even and the odd lanes of a tile."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1], x.shape[2], x.shape[3], x.shape[4], x.shape[5] // 2, 2)))


@jit
def max_of_group(x):
    """[outer, repeat, N, G, threads, lanes] -> [N, G]; registers first, so that one value per thread crosses the warp."""
    return tl.max(tl.max(tl.max(tl.max(x, 5), 0), 0), 2)


@jit
def min_of_group(x):
    """[outer, repeat, N, G, threads, lanes] -> [N, G]."""
    return tl.min(tl.min(tl.min(tl.min(x, 5), 0), 0), 2)


@jit
def per_element(group):
    """[N, G] -> [1, 1, N, G, 1, 1], which broadcasts against a tile."""
    return group[None, None, :, :, None, None]


@jit
def words_of_finite(
    x, scale, zero_point, cells_ptr, mask, WORD: tl.constexpr, RAGGED: tl.constexpr,
    QUOTIENT: tl.constexpr, IN_RANGE: tl.constexpr, CELLS: tl.constexpr,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """Packed codes of a tile without NaN and Inf under scales far from overflow and underflow.

    Integer codes stay in the low bits of floats near 1.5 * 2**23, so nothing is converted; signed ones narrower than a byte are kept
    non-negative, code + 2**(BITS - 1), so that a sum packs them without carries.
    """
    inverse = divide(tl.full(scale.shape, 1.0, tl.float32), scale)
    BIASED: tl.constexpr = CELLS is not None or (ENCODE is None and not AWAY)
    OFFSET: tl.constexpr = 2 ** (BITS - 1) if BIASED and CELLS is None and LOW < 0 and BITS < 8 else 0
    if CELLS == "line":
        cell = tl.fma(x, per_element(inverse * CELL_DENSITY), CELL_ORIGIN).to(tl.int32, bitcast=True)
        r = tl.fma(x, per_element(inverse * CELL_SLOPE), lookup_cell(cells_ptr, cell)) + 12582912.0
    elif QUOTIENT == "short":
        r = round_short_quotient(x, per_element(inverse), OFFSET)
    else:
        if QUOTIENT == "product":
            u = x * per_element(inverse)
        else:
            u = divide_by_inverse(x, per_element(scale), per_element(inverse))
        if CELLS == "bound":
            cell = tl.fma(u, CELL_DENSITY, CELL_ORIGIN).to(tl.int32, bitcast=True)
            r = lookup_cell(cells_ptr + 32, cell) + tl.where(u > lookup_cell(cells_ptr, cell), 1.0, 0.0)
        elif BIASED:
            r = u + (12582912.0 + OFFSET)
    if BIASED:
        if CELLS is None:
            if AFFINE:
                r = r + per_element(zero_point)
            if not IN_RANGE:
                r = tl.minimum(tl.maximum(r, LOW + 12582912.0 + OFFSET), HIGH + 12582912.0 + OFFSET)
        packed = pack_words(r.to(tl.int32, bitcast=True), mask, WORD, RAGGED, BITS, 0x4B400000, OFFSET)
    elif ENCODE is None:
        code = encode_integer(u, per_element(zero_point) if AFFINE else 0.0, LOW, HIGH, AWAY) & (2**BITS - 1)
        packed = pack_words(code, mask, WORD, RAGGED, BITS, 0, 0)
    else:
        packed = pack_words(ENCODE(u), mask, WORD, RAGGED, BITS, 0, 0)
    return packed


@jit
def lookup_cell(cells_ptr, cell):
    """Entry ``cell & 31`` of a table of 32 floats, which the lanes of a warp hold and hand to each other."""
    table = tl.load(cells_ptr + tl.arange(0, 32))
    NUMBER: tl.constexpr = cell.shape[0] * cell.shape[1] * cell.shape[2] * cell.shape[3] * cell.shape[4] * cell.shape[5]
    return tl.reshape(tl.gather(table, tl.reshape(cell & 31, (NUMBER,)), 0), cell.shape)


@jit
def words_of_any(
    x, second, mask, WORD: tl.constexpr, RAGGED: tl.constexpr, COMPUTE: tl.constexpr,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr,
    ENCODE_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr,
):  # fmt: skip
    """Parameters and packed codes of a tile whose values may be anything."""
    low = min_of_group(finite_or(x, float("inf")))
    high = max_of_group(finite_or(x, -float("inf")))
    stored, stored_zero = group_parameters(low, high, second, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                           LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
    scale = decode_scale(stored, second, COMPUTE, DECODE_SCALE)
    zero_point = decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)
    code = encode_value(x, per_element(scale), per_element(zero_point), ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO)
    return stored, stored_zero, pack_words(code, mask, WORD, RAGGED, BITS, 0, 0)


@jit
def pack_words(raw, mask, WORD: tl.constexpr, RAGGED: tl.constexpr, BITS: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr):
    """Tile of int32 BIAS + OFFSET + code -> [outer, N, G, threads, words] of WORD codes, the first lowest; code 0 beyond the end of a row.

    One multiply-add per code: fields do not overlap, so their sum is their union, and the biases are a constant that leaves at the end.
    """
    if RAGGED:
        raw = tl.where(mask, raw, BIAS + OFFSET)
    WORDS: tl.constexpr = raw.shape[1] * raw.shape[5] // WORD
    fields = tl.reshape(tl.permute(raw, (0, 2, 3, 4, 1, 5)), (raw.shape[0], raw.shape[2], raw.shape[3], raw.shape[4], WORDS, WORD))
    ONES: tl.constexpr = ((1 << (BITS * WORD)) - 1) // ((1 << BITS) - 1)
    EXCESS: tl.constexpr = BIAS * ONES % 2 ** (BITS * WORD)
    FLIP: tl.constexpr = OFFSET * ONES
    # Unsigned, because it may wrap around.
    packed = tl.sum(fields.to(tl.uint32, bitcast=True) << (tl.arange(0, WORD) * BITS)[None, None, None, None, None, :], 5)
    if EXCESS != 0:
        packed = tl.sub(packed, EXCESS, sanitize_overflow=False)
    if OFFSET != 0:
        packed = packed ^ FLIP
    return packed
