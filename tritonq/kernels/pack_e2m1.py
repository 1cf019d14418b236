"""Floor 3. Quotients of quantize_rows to words of eight e2m1 codes, where the GPU converts to e4m3: sm_89 and later."""
from __future__ import annotations

from .._triton import jit, tl

# The least normal number of e2m1, 1, as that of e4m3, 2**-6: sign, exponent and mantissa then lie at bits 7, 4, 3 and 2 of an e4m3.
E2M1_UNITS = tl.constexpr(64.0)

# Bytes of the even and of the odd codes; sign and magnitude of each moved to their places in the word and selected from there.
_WORD = tl.constexpr("""{
.reg .b16 a, b; .reg .b32 even, odd, sign, rest, low, high;
cvt.rn.satfinite.e4m3x2.f32 a, $3, $1; cvt.rn.satfinite.e4m3x2.f32 b, $7, $5; mov.b32 even, {a, b};
cvt.rn.satfinite.e4m3x2.f32 a, $4, $2; cvt.rn.satfinite.e4m3x2.f32 b, $8, $6; mov.b32 odd, {a, b};
shr.b32 sign, even, 4; shr.b32 rest, even, 2; lop3.b32 low, sign, rest, 0x08080808, 0xE4;
shl.b32 rest, odd, 2; lop3.b32 high, odd, rest, 0x80808080, 0xE4;
lop3.b32 $0, low, high, 0x0F0F0F0F, 0xE4;
}""")


@jit
def pack_e2m1(u, FIELDS: tl.constexpr):
    """Tile of float32 -> [outer, N, G, threads, words]: codes of E2M1_UNITS * u, as encode_minifloat has them."""
    magnitude = tl.minimum(tl.abs(u), 6.0 / E2M1_UNITS)
    # 1.5 * 2**22 times the binade, or times 1 below 1, has units of the code's for last bits: adding it rounds, subtracting it is exact.
    binade = tl.maximum(magnitude, 1.0 / E2M1_UNITS).to(tl.int32, bitcast=True) & 0x7F800000
    shift = binade.to(tl.float32, bitcast=True)
    value = tl.fma(shift, -6291456.0, tl.fma(shift, 6291456.0, magnitude))
    value = (value.to(tl.int32, bitcast=True) | (u.to(tl.int32, bitcast=True) & -(2**31))).to(tl.float32, bitcast=True)
    fields = FIELDS(value, 8)
    fields = tl.reshape(fields, (fields.shape[0], fields.shape[1], fields.shape[2], fields.shape[3], fields.shape[4], 2, 2, 2))
    evens, odds = tl.split(fields)
    e04, e26 = tl.split(evens)
    o15, o37 = tl.split(odds)
    e0, e4 = tl.split(e04)
    e2, e6 = tl.split(e26)
    o1, o5 = tl.split(o15)
    o3, o7 = tl.split(o37)
    return tl.inline_asm_elementwise(_WORD, "=r,r,r,r,r,r,r,r,r", [e0, o1, e2, o3, e4, o5, e6, o7], tl.uint32, is_pure=True, pack=1)
