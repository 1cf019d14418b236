"""fp16: IEEE binary16 without a scale; magnitudes above 65504 saturate."""
import torch

from .._triton import jit, tl  # noqa: F401  (Triton's interpreter looks for tl among a device function's globals)
from .minifloat import minifloat_format
from .numerics import decode_minifloat, encode_minifloat


@jit
def fp16_encode(u):
    return encode_minifloat(u, 5, 10, 65504.0)


@jit
def fp16_decode(code):
    return decode_minifloat(code, 5, 10, 0x7BFF)


FP16 = minifloat_format(
    name="fp16", exponent_bits=5, mantissa_bits=10, dtype=torch.float16, max_abs=65504.0, largest=0x7BFF, scaled=False, group="none",
    encode=fp16_encode, decode=fp16_decode, source="IEEE 754-2019 binary16",
)  # fmt: skip
