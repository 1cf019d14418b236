"""sq4: a made-up 4-bit code book whose steps grow with distance from zero; scale = absmax."""
from tritonq._triton import jit, tl
from tritonq.formats.codebook import lookup16, lookup_ref, midpoints, search16, search16_ref
from tritonq.formats.core import Format, register

LEVELS = tuple(i / 64 for i in (-64, -48, -35, -25, -17, -10, -5, 0, 5, 10, 16, 23, 31, 40, 51, 64))
BOUNDS = midpoints(LEVELS)
_LEVELS, _BOUNDS = tl.constexpr(LEVELS), tl.constexpr(BOUNDS)


@jit
def sq4_encode(u):
    return search16(u, _BOUNDS)


@jit
def sq4_decode(code):
    return lookup16(code, _LEVELS)


SQ4 = register(Format(
    name="sq4", bits=4, max_abs=1.0, group="g64", empty_scale=0.0, bounds=BOUNDS,
    encode=sq4_encode, encode_ref=lambda u: search16_ref(u, BOUNDS),
    decode=sq4_decode, decode_ref=lambda code: lookup_ref(code, LEVELS),
    source="made up: steps of 5/64 to 16/64",
))  # fmt: skip
