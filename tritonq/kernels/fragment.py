"""Floor 3. The device side of layout ``frag``: int32 words to the 16-bit values of tensor-core fragments, in registers.

Nothing is moved between threads: the order of axes only renames registers, because the layout of the left operand is propagated back
through it to the load.
"""
from __future__ import annotations

from .._triton import jit, tl


@jit
def pin(t):
    """An identity that the compiler takes for a side effect.

    Triton picks how many consecutive k a thread holds for mma.sync by looking back from the dot; a ``join`` on the way (Triton 3.6) makes
    it 4 instead of the 2 that the layout serves. The walk stops here. Layouts still pass, and the moves vanish in ptxas: registers stay
    whole, where 16-bit ones cost a copy of nearly every other register on the way to the tensor core.
    """
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", args=[t], dtype=tl.int16, is_pure=False, pack=2)


@jit
def half_fragment(inputs, ASM: tl.constexpr, U: tl.constexpr, CONSTRAINTS: tl.constexpr):
    """The values of half fragment U that each word gives, as 16-bit patterns ``[.., h]``, of e = 0 and of e = 1."""
    r0, r1 = tl.inline_asm_elementwise(ASM[U], CONSTRAINTS, args=inputs, dtype=(tl.int32, tl.int32), is_pure=True, pack=1)
    return tl.join(r0.to(tl.int16), r1.to(tl.int16)), tl.join((r0 >> 16).to(tl.int16), (r1 >> 16).to(tl.int16))


@jit
def unpack(first, second, A: tl.constexpr, B: tl.constexpr, ASM: tl.constexpr, CONSTRAINTS: tl.constexpr, DTYPE: tl.constexpr):
    """Words ``[B, A * 512]`` with the other inputs of their asm to weights ``[A * 64, columns]``.

    ``first`` serves the first half of the columns of each word, ``second`` the others. Axis e is joined last: values e = 0 and e = 1 are
    one register, from the asm to the dot.
    """
    U: tl.constexpr = len(ASM)  # half fragments, of 8 columns, in a word
    low, high = half_fragment(first, ASM, 0, CONSTRAINTS)
    if U == 2:
        low1, high1 = half_fragment(second, ASM, 1, CONSTRAINTS)
        low, high = tl.join(low, low1), tl.join(high, high1)
    elif U == 4:
        low1, high1 = half_fragment(first, ASM, 1, CONSTRAINTS)
        low2, high2 = half_fragment(second, ASM, 2, CONSTRAINTS)
        low3, high3 = half_fragment(second, ASM, 3, CONSTRAINTS)
        low = tl.join(tl.join(low, low2), tl.join(low1, low3))
        high = tl.join(tl.join(high, high2), tl.join(high1, high3))
    j = tl.join(low, high).reshape(B, A, 4, 8, 4, 4, 2, U, 2)  # b a warp g t w h u e
    return pin(j.trans(1, 2, 6, 3, 0, 5, 7, 4, 8).reshape(A * 64, B * 32 * U)).to(DTYPE, bitcast=True)


@jit
def spread(values, A: tl.constexpr, B: tl.constexpr, PARTS: tl.constexpr):
    """``[A * 32, PARTS]``, one value per pair of rows and part of the columns, to ``[B, A * 512]``, every word of those."""
    v = tl.broadcast_to(values.reshape(A, 4, 8, PARTS, 1), (A, 4, 8, PARTS, 4 * B // PARTS)).reshape(A, 4, 8, B, 4, 1)
    return tl.broadcast_to(v.trans(3, 0, 1, 2, 5, 4), (B, A, 4, 8, 4, 4)).reshape(B, A * 512)


@jit
def upper_plane(words, A: tl.constexpr, B: tl.constexpr):
    """The third bits of 3-bit codes, ``[B / 2, A * 512]`` words, to ``[B, A * 512]``: beside each word of two bits, its third bits."""
    both = tl.join(words, words >> 8).reshape(B // 2, A, 4, 8, 4, 2, 2, 2)  # b in two parts: 0, 5; a warp g t; w in two: 6, 7
    return both.trans(0, 5, 1, 2, 3, 4, 6, 7).reshape(B, A * 512)


@jit
def halves(t):
    """``[ROWS, COLUMNS]`` to its first and second half along the columns."""
    return tl.split(t.reshape(t.shape[0], 2, t.shape[1] // 2).trans(0, 2, 1))


@jit
def row_values(s, A: tl.constexpr, PATTERN: tl.constexpr):
    """float32 ``[A * 64]`` scales or zero points. PATTERN "rows": these; else that 16-bit type, rows g and g + 8 in a word."""
    if PATTERN == "rows":
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
