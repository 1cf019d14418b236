"""fp8_e4m3: OCP float8 with 3 mantissa bits, largest value 448, no infinity; scale = absmax / 448."""
from .._triton import jit, tl  # noqa: F401  (Triton's interpreter looks for tl among a device function's globals)
from .minifloat import minifloat_format
from .numerics import decode_minifloat, encode_minifloat


@jit
def fp8_e4m3_encode(u):
    return encode_minifloat(u, 4, 3, 448.0)


@jit
def fp8_e4m3_decode(code):
    return decode_minifloat(code, 4, 3, 0x7E)


FP8_E4M3 = minifloat_format(
    name="fp8_e4m3", exponent_bits=4, mantissa_bits=3, max_abs=448.0, largest=0x7E, scaled=True, group="channel",
    encode=fp8_e4m3_encode, decode=fp8_e4m3_decode, source="OCP 8-bit Floating Point v1.0; arXiv:2209.05433",
)  # fmt: skip
