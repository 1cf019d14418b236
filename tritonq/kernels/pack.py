"""Floor 3. Codes of a tile of quantize_rows to the words that are stored, in registers."""
from __future__ import annotations

from .._triton import cuda_arch, jit, tl

# Where pack_pairs expects the numbers that it rounds: a float32 has units of 2**-16 there, and a bfloat16 units of 1.
PAIR_ORIGIN = tl.constexpr(192.0)


@jit
def fields_of_rows(raw, WORD: tl.constexpr):
    """[outer, repeat, N, G, threads, lanes] -> [outer, N, G, threads, words, WORD]: the codes of a word side by side."""
    WORDS: tl.constexpr = raw.shape[1] * raw.shape[5] // WORD
    return tl.reshape(tl.permute(raw, (0, 2, 3, 4, 1, 5)), (raw.shape[0], raw.shape[2], raw.shape[3], raw.shape[4], WORDS, WORD))


@jit
def add_fields(fields, BITS: tl.constexpr, EXCESS: tl.constexpr):
    """Unsigned [.., fields] -> [..], the first lowest, BITS apart, less EXCESS: one multiply-add per field. It may wrap around."""
    shifts = (tl.arange(0, fields.shape[5]) * BITS)[None, None, None, None, None, :]
    total = tl.sum(fields << shifts, 5)
    if EXCESS != 0:
        total = tl.sub(total, EXCESS, sanitize_overflow=False)
    return total


@jit
def pack_words(
    raw, mask, FIELDS: tl.constexpr, WORD: tl.constexpr, RAGGED: tl.constexpr, BITS: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Tile of int32 BIAS + OFFSET + code -> [outer, N, G, threads, words] of WORD codes, the first lowest; code 0 beyond the end of a row.

    FIELDS says which codes make a word, as :func:`fields_of_rows` does. They do not overlap, so their sum is their union, and the biases
    are a constant that leaves at the end.
    """
    if RAGGED:
        raw = tl.where(mask, raw, BIAS + OFFSET)
    ONES: tl.constexpr = ((1 << (BITS * WORD)) - 1) // ((1 << BITS) - 1)
    packed = add_fields(FIELDS(raw, WORD).to(tl.uint32, bitcast=True), BITS, BIAS * ONES % 2 ** (BITS * WORD))
    if OFFSET != 0:
        packed = packed ^ (OFFSET * ONES)
    return packed


@jit
def pack_pairs(
    y, zero_point, mask, FIELDS: tl.constexpr, WORD: tl.constexpr, RAGGED: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The same of floats y, which round, ties to even, to PAIR_ORIGIN + OFFSET + code - zero_point; BITS at most 4.

    zero_point is [N, G] or None, code + OFFSET lies in 0 .. 2**BITS - 1. On NVIDIA's GPUs one instruction rounds two of them to bfloat16,
    whose low bits are code + OFFSET - zero_point: one of the first half of a word and one of the second, so that shifting and adding
    such pairs packs both halves at once. The zero point enters after rounding, where an odd one cannot turn a tie, for all codes at once.
    """
    if cuda_arch() >= 80 and WORD >= 8:  # bringing shorter halves together costs more than it saves
        if RAGGED:
            end = PAIR_ORIGIN + OFFSET
            if zero_point is not None:
                end = (-zero_point + end)[None, None, :, :, None, None]
            y = tl.where(mask, y, end)
        fields = FIELDS(y, WORD)
        HALF: tl.constexpr = WORD // 2
        fields = tl.reshape(fields, (fields.shape[0], fields.shape[1], fields.shape[2], fields.shape[3], fields.shape[4], 2, HALF))
        low, high = tl.split(tl.permute(fields, (0, 1, 2, 3, 4, 6, 5)))
        # In PTX, because Triton's conversion pairs neighbours in the order of registers, and taking those apart costs what it saves.
        pairs = tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $1, $2;", "=r,r,r", [high, low], tl.uint32, is_pure=True, pack=1)
        ONES: tl.constexpr = ((1 << (BITS * HALF)) - 1) // ((1 << BITS) - 1)
        packed = add_fields(pairs, BITS, 0x43404340 * ONES % 2**32)
        if zero_point is not None:
            zeros = FIELDS(tl.broadcast_to(zero_point.to(tl.uint32)[None, None, :, :, None, None], y.shape), WORD)
            place = tl.arange(0, WORD)
            packed += tl.sum(zeros << (place // HALF * 16 + place % HALF * BITS)[None, None, None, None, None, :], 5)
        if BITS * HALF < 16:
            ONE_HALF: tl.constexpr = (1 << (BITS * HALF)) - 1
            packed = (packed & ONE_HALF) | ((packed >> (16 - BITS * HALF)) & (ONE_HALF << (BITS * HALF)))
        if OFFSET != 0:
            packed = packed ^ (OFFSET * (ONES << (BITS * HALF) | ONES))
    else:
        y += 12582912.0 - PAIR_ORIGIN
        if zero_point is not None:
            y += zero_point[None, None, :, :, None, None]
        packed = pack_words(y.to(tl.int32, bitcast=True), mask, FIELDS, WORD, RAGGED, BITS, 0x4B400000, OFFSET)
    return packed
