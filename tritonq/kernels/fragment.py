"""Floor 3. The device side of layout ``frag``: one int32 word to the eight 16-bit values of a tensor-core fragment, in registers.

Element ``i = 2 r + e`` of a word is half ``e`` of fragment register ``r = h + 2 c``. Nothing is moved between threads: ``place`` only
renames registers, because the layout of the left operand is propagated back through it to the load.
"""
from __future__ import annotations

import torch

from .._triton import jit, tl

_OUT = " mov.b32 {$0,$1}, r0; mov.b32 {$2,$3}, r1; mov.b32 {$4,$5}, r2; mov.b32 {$6,$7}, r3;\n}"


def unpack_integer_asm(dtype: torch.dtype, offset: int | None) -> str:
    """PTX from a word of unsigned nibbles (order ``h + 2c + 4e``) to ``nibble - offset``, exactly; None takes it from $9 and $10.

    A nibble becomes the low bits of a 16-bit float around a power of two, and one addition takes both away. float16: 1024 + q for the row
    g, and for g + 8, whose nibble stands four bits higher, (1024 + 16 q) / 16 = 64 + q. bfloat16, with 7 bits of mantissa: 128 + q.
    """
    text = "{\n .reg .b32 t1, t2, t3, low, high, c, r0, r1, r2, r3;\n"
    if dtype == torch.float16:
        words = ("$8", "$8", "t1", "t1")
        text += " shr.b32 t1, $8, 8; mov.b32 c, 0x2c002c00;\n"  # 1/16
        masks = ("0x000f000f", "0x00f000f0") * 2
        magic, plain = "0x64006400", (0, 2)
        low, high = 0xE400 + (offset or 0), 0xD400 + ((offset or 0) << 4)  # -(1024 + offset), -(64 + offset)
    else:
        words, masks = ("$8", "t1", "t2", "t3"), ("0x000f000f",) * 4
        text += " shr.b32 t1, $8, 4; shr.b32 t2, $8, 8; shr.b32 t3, $8, 12; mov.b32 c, 0x3f803f80;\n"  # 1: sm_80 has fma only
        magic, plain = "0x43004300", ()
        low = high = 0xC300 + (offset or 0)  # -(128 + offset)
    if offset is None:
        text += " mov.b32 low, $9; mov.b32 high, $10;\n"
    else:
        text += f" mov.b32 low, {low * 0x10001:#x}; mov.b32 high, {high * 0x10001:#x};\n"
    for r, (word, mask) in enumerate(zip(words, masks)):
        text += f" lop3.b32 r{r}, {word}, {mask}, {magic}, 0xea;\n"
    for r in range(4):
        constant = ("low", "high")[r & 1]
        kind = "f16x2" if dtype == torch.float16 else "bf16x2"
        text += f" add.rn.{kind} r{r}, r{r}, {constant};\n" if r in plain else f" fma.rn.{kind} r{r}, r{r}, c, {constant};\n"
    return text + _OUT


def unpack_table_asm() -> str:
    """PTX from a word of nibbles (order ``2h + 4c + e``) to entries of the byte planes in $9 .. $16; see layouts/byte_planes.py."""
    text = "{\n .reg .b32 y, xh, yh, la, lb, ha, hb, l, h, r0, r1, r2, r3;\n"
    text += " xor.b32 y, $8, 0x88888888; shr.b32 xh, $8, 16; shr.b32 yh, y, 16;\n"
    for x, y, first, second in (("$8", "y", "r0", "r1"), ("xh", "yh", "r2", "r3")):
        text += (f" prmt.b32 la, $9, $10, {x}; prmt.b32 lb, $11, $12, {y}; xor.b32 l, la, lb;\n"
                 f" prmt.b32 ha, $13, $14, {x}; prmt.b32 hb, $15, $16, {y}; xor.b32 h, ha, hb;\n"
                 f" prmt.b32 {first}, l, h, 0x5140; prmt.b32 {second}, l, h, 0x7362;\n")  # fmt: skip
    return text + _OUT


def zero_point_constants(dtype: torch.dtype) -> tuple[int, int, int, int]:
    """(base, factor) of row g and (base, factor) of row g + 8: ``base + z * factor`` is the pair of constants that takes away z."""
    patterns = ((0xE400, 1), (0xD400, 16)) if dtype == torch.float16 else ((0xC300, 1), (0xC300, 1))
    return tuple(value for base, step in patterns for value in (base * 0x10001 - (1 << 32), step * 0x10001))


_WORD = tl.constexpr("=h,=h,=h,=h,=h,=h,=h,=h,r")
_WORD_ZERO = tl.constexpr("=h,=h,=h,=h,=h,=h,=h,=h,r,r,r")
_WORD_TABLE = tl.constexpr("=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r,r,r,r,r,r")


@jit
def pin(t):
    """An identity that the compiler takes for a side effect.

    Triton picks how many consecutive k a thread holds for mma.sync by looking back from the dot; a ``join`` on the way (Triton 3.6) makes
    it 4 instead of the 2 that the layout serves. The walk stops here. Layouts still pass, and the moves vanish in ptxas.
    """
    if t.dtype == tl.float16:
        r = tl.inline_asm_elementwise("mov.b16 $0, $1;", "=h,h", args=[t], dtype=tl.float16, is_pure=False, pack=1)
    else:
        r = tl.inline_asm_elementwise("mov.b16 $0, $1;", "=h,h", args=[t], dtype=tl.bfloat16, is_pure=False, pack=1)
    return r


@jit
def place(h0, h1, h2, h3, h4, h5, h6, h7, A: tl.constexpr, B: tl.constexpr):
    """Eight ``[A, B * 512]`` planes of elements to the ``[A * 64, B * 64]`` tile."""
    j = tl.join(tl.join(tl.join(h0, h4), tl.join(h2, h6)), tl.join(tl.join(h1, h5), tl.join(h3, h7)))  # [.., c, h, e]
    j = j.reshape(A, B, 4, 8, 4, 4, 2, 2, 2)  # a b warp g t word c h e
    return pin(j.trans(0, 2, 7, 3, 1, 5, 6, 4, 8).reshape(A * 64, B * 64))


@jit
def unpack_integer(w, A: tl.constexpr, B: tl.constexpr, ASM: tl.constexpr, DTYPE: tl.constexpr):
    """``[A, B * 512]`` words to ``nibble - offset``, the offset a constant of ASM."""
    if tl.float16 == DTYPE:
        h0, h1, h2, h3, h4, h5, h6, h7 = tl.inline_asm_elementwise(
            ASM, _WORD, args=[w], is_pure=True, pack=1,
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16))  # fmt: skip
    else:
        h0, h1, h2, h3, h4, h5, h6, h7 = tl.inline_asm_elementwise(
            ASM, _WORD, args=[w], is_pure=True, pack=1,
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16))  # fmt: skip
    return place(h0, h1, h2, h3, h4, h5, h6, h7, A, B)


@jit
def unpack_affine(w, low, high, A: tl.constexpr, B: tl.constexpr, ASM: tl.constexpr, DTYPE: tl.constexpr):
    """``[A, B * 512]`` words to ``nibble - zero point``; ``low`` and ``high`` of the same shape are the constants of rows g and g + 8."""
    if tl.float16 == DTYPE:
        h0, h1, h2, h3, h4, h5, h6, h7 = tl.inline_asm_elementwise(
            ASM, _WORD_ZERO, args=[w, low, high], is_pure=True, pack=1,
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16))  # fmt: skip
    else:
        h0, h1, h2, h3, h4, h5, h6, h7 = tl.inline_asm_elementwise(
            ASM, _WORD_ZERO, args=[w, low, high], is_pure=True, pack=1,
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16))  # fmt: skip
    return place(h0, h1, h2, h3, h4, h5, h6, h7, A, B)


@jit
def unpack_table(w, t0, t1, t2, t3, t4, t5, t6, t7, A: tl.constexpr, B: tl.constexpr, ASM: tl.constexpr, DTYPE: tl.constexpr):
    """``[A, B * 512]`` words to entries of the table whose byte planes are t0 .. t7."""
    if tl.float16 == DTYPE:
        h0, h1, h2, h3, h4, h5, h6, h7 = tl.inline_asm_elementwise(
            ASM, _WORD_TABLE, args=[w, t0, t1, t2, t3, t4, t5, t6, t7], is_pure=True, pack=1,
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16))  # fmt: skip
    else:
        h0, h1, h2, h3, h4, h5, h6, h7 = tl.inline_asm_elementwise(
            ASM, _WORD_TABLE, args=[w, t0, t1, t2, t3, t4, t5, t6, t7], is_pure=True, pack=1,
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16))  # fmt: skip
    return place(h0, h1, h2, h3, h4, h5, h6, h7, A, B)


@jit
def spread(pairs, A: tl.constexpr, B: tl.constexpr):
    """``[A * 32]``, one value per pair of rows, to ``[A, B * 512]``, every word of those rows."""
    return tl.broadcast_to(pairs.reshape(A, 1, 4, 8, 1, 1), (A, B, 4, 8, 4, 4)).reshape(A, B * 512)


@jit
def spread_halves(first, second, A: tl.constexpr):
    """Two ``[A * 32]`` for the first and the second 32 columns of a tile, to ``[A, 512]``."""
    both = tl.join(first, second).reshape(A, 4, 8, 1, 2, 1)
    return tl.broadcast_to(both, (A, 4, 8, 4, 2, 2)).reshape(A, 512)


@jit
def halves(t, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``[ROWS, COLUMNS]`` to its first and second half along the columns."""
    return tl.split(t.reshape(ROWS, 2, COLUMNS // 2).trans(0, 2, 1))


@jit
def row_values(at, A: tl.constexpr, PATTERN: tl.constexpr):
    """float32 ``[A * 64]`` scales or zero points. PATTERN None: float32 rows; else that 16-bit type, rows g and g + 8 in a word."""
    s = tl.load(at)
    if PATTERN is None:
        r = s
    else:
        if tl.float16 == PATTERN:
            low = (s & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            high = (s >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        else:
            low = (s << 16).to(tl.float32, bitcast=True)
            high = (s & -65536).to(tl.float32, bitcast=True)
        r = tl.join(low, high).reshape(A * 4, 8, 2).trans(0, 2, 1).reshape(A * 64)
    return r
