"""Floor 3. A tile [outer, repeat, N, G, threads, lanes] of quantize_rows and the parameters of its groups to packed codes."""
from __future__ import annotations

from .._triton import cuda_arch, jit, tl
from ..formats.codebook import CELL_DENSITY, CELL_ORIGIN, CELL_SLOPE
from ..formats.integer import encode_integer
from .group_range import max_of_group, min_of_group
from .numerics import divide, divide_by_inverse, place_short_quotient, round_short_quotient
from .pack import PAIR_ORIGIN, pack_pairs, pack_words
from .pack_e2m1 import E2M1_UNITS, pack_e2m1
from .parameters import decode_scale, decode_zero, encode_value, finite_or, group_parameters


@jit
def per_element(group):
    """[N, G] -> [1, 1, N, G, 1, 1], which broadcasts against a tile."""
    return group[None, None, :, :, None, None]


@jit
def any_odd(magnitude, scale, SCALE_MIN: tl.constexpr, SCALE_MAX: tl.constexpr):
    """Whether a group [N, G] is beyond words_of_finite: bits of a greatest magnitude that is Inf or NaN, or a scale out of bounds."""
    odd = (magnitude >= 0x7F800000) | (scale < SCALE_MIN) | (scale > SCALE_MAX)
    return tl.max(tl.reshape(odd.to(tl.int32), (scale.shape[0] * scale.shape[1],)), 0) != 0


@jit
def words_of_finite(
    x, scale, zero_point, cells_ptr, mask, FIELDS: tl.constexpr, WORD: tl.constexpr, RAGGED: tl.constexpr,
    QUOTIENT: tl.constexpr, IN_RANGE: tl.constexpr, PAIRS: tl.constexpr,
    CELLS: tl.constexpr, CROWDED: tl.constexpr, RECODE: tl.constexpr, E2M1: tl.constexpr,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr,
):  # fmt: skip
    """Packed codes of a tile without NaN and Inf under scales far from overflow and underflow. FIELDS: as for :func:`pack.pack_words`.

    Codes stay in the low bits of floats near 1.5 * 2**23, or with PAIRS near PAIR_ORIGIN, where one conversion rounds two; signed ones
    that share a word are kept non-negative, code + 2**(BITS - 1), so that a sum packs them without carries.
    """
    inverse = divide(tl.full(scale.shape, 1.0, tl.float32), scale)
    INTEGER_ZERO: tl.constexpr = AFFINE and not FLOAT_ZERO
    if FLOAT_ZERO:
        x = x - per_element(zero_point)
    WORDS_OF_E2M1: tl.constexpr = E2M1 and cuda_arch() >= 89 and WORD == 8
    if WORDS_OF_E2M1:  # exact, and without a price
        scale *= E2M1_UNITS
        inverse *= 1 / E2M1_UNITS
    # Beyond the end of a row x is 0: what is recoded to 0 there is its rank, not a 0.
    FILL: tl.constexpr = RAGGED and RECODE is None
    BIASED: tl.constexpr = CELLS is not None or (ENCODE is None and not AWAY)
    OFFSET: tl.constexpr = 2 ** (BITS - 1) if BIASED and CELLS is None and LOW < 0 and WORD > 1 else 0
    if CELLS == "line":
        cell = tl.fma(x, per_element(inverse * CELL_DENSITY), CELL_ORIGIN).to(tl.int32, bitcast=True)
        r = tl.fma(x, per_element(inverse * CELL_SLOPE), lookup_cell(cells_ptr, cell))
        for i in tl.static_range(len(CROWDED)):
            r = tl.where(x > per_element(scale * CROWDED[i]), r + 1.0, r)
        if not PAIRS:
            r += 12582912.0
    elif PAIRS:
        r = place_short_quotient(x, per_element(inverse), PAIR_ORIGIN + OFFSET)
        if INTEGER_ZERO:
            r = tl.minimum(r, per_element(-zero_point + (PAIR_ORIGIN + HIGH)))
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
            for i in tl.static_range(len(CROWDED)):
                r += tl.where(u > CROWDED[i], 1.0, 0.0)
        elif BIASED:
            r = u + (12582912.0 + OFFSET)
    if PAIRS:
        packed = pack_pairs(r, zero_point if INTEGER_ZERO else None, mask, FIELDS, WORD, FILL, BITS, OFFSET)
    elif BIASED:
        if CELLS is None:
            if INTEGER_ZERO:
                r = r + per_element(zero_point)
            if not IN_RANGE:
                r = tl.maximum(r, LOW + 12582912.0 + OFFSET)
            if INTEGER_ZERO or not IN_RANGE:
                r = tl.minimum(r, HIGH + 12582912.0 + OFFSET)
        packed = pack_words(r.to(tl.int32, bitcast=True), mask, FIELDS, WORD, FILL, BITS, 0x4B400000, OFFSET)
    elif ENCODE is None:
        code = encode_integer(u, per_element(zero_point) if INTEGER_ZERO else 0.0, LOW, HIGH, AWAY) & (2**BITS - 1)
        packed = pack_words(code, mask, FIELDS, WORD, FILL, BITS, 0, 0)
    elif WORDS_OF_E2M1:
        packed = pack_e2m1(u, FIELDS)  # beyond the end of a row u is 0, and so is its code
    else:
        packed = pack_words(ENCODE(u), mask, FIELDS, WORD, FILL, BITS, 0, 0)
    if RECODE is not None:
        packed = RECODE(packed)
    return packed


@jit
def lookup_cell(cells_ptr, cell):
    """Entry ``cell % 32`` of a table of 32 floats, which the lanes of a warp hold and hand to each other."""
    if cuda_arch() >= 80:
        # In PTX, because shfl looks at the low 5 bits of a lane's number alone, where tl.gather spends an instruction on a mask.
        lane = tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r", args=[], dtype=tl.int32, is_pure=True, pack=1)
        entry = tl.inline_asm_elementwise("shfl.sync.idx.b32 $0, $1, $2, 31, -1;", "=r,r,r", args=[tl.load(cells_ptr + lane), cell],
                                          dtype=tl.float32, is_pure=False, pack=1)  # fmt: skip
    else:
        table = tl.load(cells_ptr + tl.arange(0, 32))
        NUMBER: tl.constexpr = cell.shape[0] * cell.shape[1] * cell.shape[2] * cell.shape[3] * cell.shape[4] * cell.shape[5]
        entry = tl.reshape(tl.gather(table, tl.reshape(cell & 31, (NUMBER,)), 0), cell.shape)
    return entry


@jit
def words_of_any(
    x, second, mask, FIELDS: tl.constexpr, WORD: tl.constexpr, RAGGED: tl.constexpr, COMPUTE: tl.constexpr,
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
    return stored, stored_zero, pack_words(code, mask, FIELDS, WORD, RAGGED, BITS, 0, 0)
