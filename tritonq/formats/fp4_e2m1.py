"""fp4_e2m1: sign, 2 exponent bits, 1 mantissa bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6; scale = absmax / 6."""
from .._triton import jit, tl  # noqa: F401  (Triton's interpreter looks for tl among a device function's globals)
from .minifloat import minifloat_format
from .numerics import decode_minifloat, encode_minifloat


@jit
def fp4_e2m1_encode(u):
    return encode_minifloat(u, 2, 1, 6.0)


@jit
def fp4_e2m1_decode(code):
    return decode_minifloat(code, 2, 1, 7)


FP4_E2M1 = minifloat_format(
    name="fp4_e2m1", exponent_bits=2, mantissa_bits=1, max_abs=6.0, largest=7, scaled=True, group="g32",
    encode=fp4_e2m1_encode, decode=fp4_e2m1_decode, source="OCP Microscaling Formats v1.0 section 5.3.3",
)  # fmt: skip
