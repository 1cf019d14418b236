"""Floor 3. Quantize, scale and pack groups that lie in one row: read once and held in registers, read again for special values."""
from __future__ import annotations

from .._triton import jit, tl
from .group_range import range_of_group, widen
from .pack import fields_of_rows
from .parameters import decode_scale, decode_zero, group_parameters, tensor_scale_from_absmax
from .quantize_words import any_odd, words_of_any, words_of_finite
from .ranges import tensor_range


def _name(specialization) -> str:
    return f"quantize_{specialization.constants['NAME']}"


@jit(repr=_name)
def quantize_rows(
    x_ptr, packed_ptr, scale_ptr, zero_point_ptr, low_ptr, high_ptr, second_ptr, cells_ptr, N, K, groups, row_words, x_row, x_col, partials,
    NAME: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr, OUTER: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr,
    STEPS: tl.constexpr, WORD: tl.constexpr, FULL: tl.constexpr, RAGGED: tl.constexpr, WIDE: tl.constexpr,
    COMPUTE: tl.constexpr, TWO_LEVEL: tl.constexpr, PARTIALS: tl.constexpr,
    FAST: tl.constexpr, QUOTIENT: tl.constexpr, IN_RANGE: tl.constexpr, PAIRS: tl.constexpr,
    CELLS: tl.constexpr, CROWDED: tl.constexpr, RECODE: tl.constexpr, E2M1: tl.constexpr,
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
    is masked. RAGGED: a row ends inside a word. WIDE: offsets need 64 bits.
    """
    RUN: tl.constexpr = REPEAT * LANES
    THREADS: tl.constexpr = GROUP // (OUTER * RUN)
    first_tile, first_group = tl.program_id(2), tl.program_id(0) * BLOCK_G
    if WIDE:
        first_tile, first_group = first_tile.to(tl.int64), first_group.to(tl.int64)
    first_row = (first_tile * tl.num_programs(1) + tl.program_id(1)) * BLOCK_N

    # Addresses are a matrix with a row for each LANES neighbours, so that threads walk the axes above from the last one on. Where no
    # axis but the lanes is contiguous in memory, Triton 3.6 deals threads to the first axes and 3.9 to the last.
    thread, group, row, run = digits(tl.arange(0, OUTER * REPEAT * BLOCK_N * BLOCK_G * THREADS) * RUN, THREADS * RUN, BLOCK_G, BLOCK_N)
    start = (first_group + group) * COLUMNS + thread
    inner = (run % REPEAT * LANES + run // REPEAT * (THREADS * RUN))[:, None] + tl.arange(0, LANES)[None, :]
    if WIDE:
        inner = inner.to(tl.int64)
    x_at = x_ptr + ((first_row + row) * x_row + start * x_col)[:, None] + inner * x_col
    mask = None
    if FULL:
        loaded = tl.load(x_at)
    else:
        mask = (first_row + row < N)[:, None] & (start[:, None] + inner < K)
        if COLUMNS < GROUP:
            mask = mask & (thread[:, None] + inner < COLUMNS)
        # Padding must not enter a range: 0 is inside every one but that of a float zero, where a group's first number is.
        if FLOAT_ZERO:
            there = (first_row + row < N) & (first_group + group < groups)
            padding = tl.load(x_ptr + (first_row + row) * x_row + (first_group + group) * COLUMNS * x_col, mask=there, other=0.0)[:, None]
        else:
            padding = 0.0
        loaded = tl.load(x_at, mask=mask, other=padding)
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
        low, high, magnitude = range_of_group(loaded, x, STEPS, AFFINE)
        stored, stored_zero = group_parameters(low, high, second, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                               LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
        zero_point = decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)
        scale = decode_scale(stored, second, COMPUTE, DECODE_SCALE)
        # ... which magnitudes below Inf and SCALE_MIN <= scale <= SCALE_MAX prove for this program.
        if not any_odd(magnitude, scale, SCALE_MIN, SCALE_MAX):
            packed = words_of_finite(x, scale, zero_point, cells_ptr, mask, fields_of_rows, WORD, RAGGED, QUOTIENT, IN_RANGE, PAIRS,
                                     CELLS, CROWDED, RECODE, E2M1, ENCODE, BITS, LOW, HIGH, AWAY, AFFINE, FLOAT_ZERO)  # fmt: skip
        else:
            if FULL:  # Read again: to keep x as float32 for this way would cost the other registers.
                x = widen(tl.reshape(tl.load(x_at), (OUTER, REPEAT, BLOCK_N, BLOCK_G, THREADS, LANES)), COMPUTE)
            stored, stored_zero, packed = words_of_any(x, second, mask, fields_of_rows, WORD, RAGGED, COMPUTE, ENCODE, BITS, LOW, HIGH,
                                                       AWAY, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                                       ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO, DECODE_ZERO)  # fmt: skip
    else:
        stored, stored_zero, packed = words_of_any(x, second, mask, fields_of_rows, WORD, RAGGED, COMPUTE, ENCODE, BITS, LOW, HIGH, AWAY,
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
        ok = (first_row + row < N)[:, None] & (start[:, None] + inner < tl.cdiv(row_words, STORES))
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
