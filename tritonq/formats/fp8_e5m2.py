"""fp8_e5m2: OCP float8 with 2 mantissa bits, largest finite value 57344; scale = absmax / 57344."""
from .._triton import jit, tl  # noqa: F401  (Triton's interpreter looks for tl among a device function's globals)
from .minifloat import minifloat_format
from .numerics import decode_minifloat, encode_minifloat


@jit
def fp8_e5m2_encode(u):
    return encode_minifloat(u, 5, 2, 57344.0)


@jit
def fp8_e5m2_decode(code):
    return decode_minifloat(code, 5, 2, 0x7B)


FP8_E5M2 = minifloat_format(
    name="fp8_e5m2", exponent_bits=5, mantissa_bits=2, max_abs=57344.0, largest=0x7B, scaled=True, group="channel",
    encode=fp8_e5m2_encode, decode=fp8_e5m2_decode, source="OCP 8-bit Floating Point v1.0; arXiv:2209.05433",
)  # fmt: skip
