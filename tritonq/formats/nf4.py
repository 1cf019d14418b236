"""nf4: NormalFloat-4, sixteen levels placed for a unit normal; the float32 table of bitsandbytes, scale = absmax."""
from .._triton import jit, tl
from .codebook import lookup16, lookup_ref, midpoints, search16, search16_ref
from .core import Format, register

LEVELS = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
          -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
          0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip
BOUNDS = midpoints(LEVELS)
_LEVELS, _BOUNDS = tl.constexpr(LEVELS), tl.constexpr(BOUNDS)


@jit
def nf4_encode(u):
    return search16(u, _BOUNDS)


@jit
def nf4_decode(code):
    return lookup16(code, _LEVELS)


NF4 = register(Format(
    name="nf4", bits=4, max_abs=1.0, group="g64", empty_scale=0.0, bounds=BOUNDS,
    encode=nf4_encode, encode_ref=lambda u: search16_ref(u, BOUNDS),
    decode=nf4_decode, decode_ref=lambda code: lookup_ref(code, LEVELS),
    source="QLoRA (arXiv:2305.14314) appendix E; bitsandbytes functional.get_4bit_type",
))  # fmt: skip
