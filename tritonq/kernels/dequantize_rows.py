"""Floor 3. Packed codes back to numbers, a run of neighbours per thread: one load of codes, one scale, one 16-byte store."""
from __future__ import annotations

from .._triton import jit, tl
from .numerics import cast
from .parameters import scaled_level


def _name(specialization) -> str:
    return f"dequantize_{specialization.constants['NAME']}"


@jit(repr=_name)
def dequantize_rows(
    packed_ptr, scale_ptr, zero_point_ptr, levels_ptr, out_ptr, N, K, row_words, groups, group_rows,
    NAME: tl.constexpr, COMPUTE: tl.constexpr, DECODE: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr,
    HAS_SCALE: tl.constexpr, AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, GROUP: tl.constexpr, FULL: tl.constexpr,
    PER_THREAD: tl.constexpr, BLOCK_N: tl.constexpr, THREADS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[N, K] = scale * (level(code) - zero_point); one program per BLOCK_N rows x BLOCK_K columns.

    THREADS neighbours share a row and step through their columns, PER_THREAD each. GROUP columns share a scale, 0: the whole row; what a
    thread takes at once does not straddle groups. FULL: tiles cover the matrix exactly, nothing is masked.
    """
    STEP: tl.constexpr = THREADS * PER_THREAD
    # Machine words: the widest that a run fills, 32 bits at most; the 24 bits of eight 3-bit codes come as three bytes.
    WORD: tl.constexpr = min(PER_THREAD * BITS & -(PER_THREAD * BITS), 32)
    WORDS: tl.constexpr = PER_THREAD * BITS // WORD
    row = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    first = tl.program_id(0).to(tl.int64) * BLOCK_K
    thread = tl.arange(0, THREADS)[None, :]
    word_at = packed_ptr + (row * row_words + first // PER_THREAD * WORDS + thread * WORDS)[:, :, None]
    out_at = out_ptr + (row * K + first + thread * PER_THREAD)[:, :, None] + tl.arange(0, PER_THREAD)[None, None, :]
    group_at = row // group_rows * groups
    if GROUP:
        group_at += first // GROUP
        offset = (first % GROUP).to(tl.int32) if BLOCK_K % GROUP else 0

    # Everything is loaded before the first store.
    table = None
    if DECODE is not None and BITS <= 5:
        table = tl.load(levels_ptr + tl.arange(0, 32))
    words, scales, zero_points = (), (), ()
    for i in tl.static_range(BLOCK_K // STEP):
        ok = None
        if not FULL:
            ok = (row < N) & (first + i * STEP + thread * PER_THREAD < K)
        words = words + (load_words(word_at + i * (THREADS * WORDS), ok, WORDS),)
        if HAS_SCALE:
            at = group_at
            if GROUP:
                at += (offset + i * STEP + thread * PER_THREAD) // GROUP
            group_ok = ok if GROUP or FULL else row < N
            scales = scales + (tl.load(scale_ptr + at, mask=group_ok).to(COMPUTE)[:, :, None],)
            if AFFINE:
                zero_points = zero_points + (tl.load(zero_point_ptr + at, mask=group_ok).to(COMPUTE)[:, :, None],)

    for i in tl.static_range(BLOCK_K // STEP):
        none = tl.zeros((1, 1, 1), COMPUTE)
        zero_point = zero_points[i] if AFFINE else none
        if DECODE is None:
            level = integer_levels(words[i], none if FLOAT_ZERO else zero_point, PER_THREAD, BITS, SIGNED, COMPUTE)
            value = scaled_level(level, scales[i], zero_point, False, FLOAT_ZERO)
        else:
            level = stored_levels(words[i], table, PER_THREAD, BITS, DECODE).to(COMPUTE)
            if HAS_SCALE:
                value = scaled_level(level, scales[i], zero_point, AFFINE, FLOAT_ZERO)
            else:
                value = level
        ok = None
        if not FULL:
            ok = ((row < N) & (first + i * STEP + thread * PER_THREAD < K))[:, :, None]
        tl.store(out_at + i * STEP, cast(value, out_ptr.dtype.element_ty), mask=ok)


@jit
def load_words(word_at, ok, WORDS: tl.constexpr):
    """The words of a run, [N, threads, words] int32; three bytes come as one word of 24 bits."""
    if ok is not None:
        ok = ok[:, :, None]
    if WORDS == 3:
        word = tl.load(word_at, mask=ok).to(tl.int32)
        word |= tl.load(word_at + 1, mask=ok).to(tl.int32) << 8
        word |= tl.load(word_at + 2, mask=ok).to(tl.int32) << 16
    else:
        word = tl.load(word_at + tl.arange(0, WORDS)[None, None, :], mask=ok).to(tl.int32)
    return word


@jit
def codes_of_words(word, PER_THREAD: tl.constexpr):
    """[N, threads, words] -> the words once per code, [N, threads, words, codes of a word], and the numbers of those codes."""
    PER: tl.constexpr = PER_THREAD // word.shape[2]
    return word[:, :, :, None], tl.arange(0, PER)[None, None, None, :]


@jit
def integer_levels(word, zero_point, PER_THREAD: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr, COMPUTE: tl.constexpr):
    """Integer codes minus the zero point, [N, threads, PER_THREAD], exactly, with neither shift nor conversion of the single code.

    A code at bit p of a float's mantissa, under an exponent that gives bit p the weight 1, is that power of two plus the code: 2**(23 - p)
    is subtracted together with the zero point. Signed codes are made non-negative by flipping their sign bit. Codes beyond the mantissa
    are shifted down, several together.
    """
    word, lane = codes_of_words(word, PER_THREAD)
    PART: tl.constexpr = 16 // BITS
    position = lane % PART * BITS
    part = word >> (lane // PART * (PART * BITS))
    exponent = (150 - position) << 23
    power = exponent.to(tl.float32, bitcast=True).to(COMPUTE)
    if SIGNED:
        exponent |= (position * 0 + 2 ** (BITS - 1)) << position
        zero_point += 2.0 ** (BITS - 1)
    field = part & ((position * 0 + (2**BITS - 1)) << position)
    level = (field ^ exponent).to(tl.float32, bitcast=True).to(COMPUTE) - (power + zero_point[:, :, :, None])
    return tl.reshape(level, (level.shape[0], level.shape[1], PER_THREAD))


@jit
def stored_levels(word, table, PER_THREAD: tl.constexpr, BITS: tl.constexpr, DECODE: tl.constexpr):
    """Levels of the codes, [N, threads, PER_THREAD]: looked up in a table that the lanes of a warp hold, where there is one."""
    word, lane = codes_of_words(word, PER_THREAD)
    code = tl.reshape((word >> (lane * BITS)) & (2**BITS - 1), (word.shape[0], word.shape[1], PER_THREAD))
    if table is not None:
        level = tl.reshape(tl.gather(table, tl.reshape(code, (code.shape[0] * code.shape[1] * PER_THREAD,)), 0), code.shape)
    else:
        level = DECODE(code)
    return level
