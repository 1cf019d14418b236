"""bf16: bfloat16 without a scale; magnitudes above the largest finite value saturate."""
import torch

from .._triton import jit, tl  # noqa: F401  (Triton's interpreter looks for tl among a device function's globals)
from .minifloat import minifloat_format
from .numerics import decode_minifloat, encode_minifloat


@jit
def bf16_encode(u):
    return encode_minifloat(u, 8, 7, 3.3895313892515355e38)


@jit
def bf16_decode(code):
    return decode_minifloat(code, 8, 7, 0x7F7F)


BF16 = minifloat_format(
    name="bf16", exponent_bits=8, mantissa_bits=7, dtype=torch.bfloat16, max_abs=3.3895313892515355e38, largest=0x7F7F, scaled=False,
    group="none", encode=bf16_encode, decode=bf16_decode, source="bfloat16: the upper half of IEEE 754 binary32",
)  # fmt: skip
