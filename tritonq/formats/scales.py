"""Floor 0. How a scale is stored. A scheme names one by its option (``s16``); the default depends on format and input dtype."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .._triton import jit, tl
from ..errors import InvalidProblemError
from .numerics import encode_minifloat, encode_minifloat_ref, narrow, narrow_ref


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleFormat:
    """A storage format of scales. ``encode`` rounds a positive scale (float32 or float64; maybe 0 or Inf) to nearest, ties to even;
    underflow stores the smallest positive value, overflow the largest finite one, and an exact 0 stays 0 where 0 exists.

    Attributes:
        option: the scheme's word for it.
        dtype: of the stored tensor.
        carrier: dtype that kernels see; uint8 for 8-bit floats, which have no portable device type.
        encode, decode: ``@triton.jit``; compute dtype -> carrier, carrier -> float32 (float64 for fp64).
        encode_ref, decode_ref: the torch twins, to and from ``dtype``.
    """

    name: str
    option: str
    dtype: torch.dtype
    encode: Callable
    decode: Callable
    encode_ref: Callable[[torch.Tensor], torch.Tensor]
    source: str

    @property
    def carrier(self) -> torch.dtype:
        return torch.uint8 if self.dtype.itemsize == 1 else self.dtype

    @property
    def bits(self) -> int:
        return 8 * self.dtype.itemsize

    def decode_ref(self, stored: torch.Tensor) -> torch.Tensor:
        return stored if self.dtype == torch.float64 else stored.float()

    def __repr__(self) -> str:
        return f"ScaleFormat({self.name!r})"

    def __reduce__(self):
        return get_scale_format, (self.name,)


@jit
def _keep(s):
    return s


@jit
def _widen(s):
    return s.to(tl.float32)


@jit
def _fp64_encode(s):
    return tl.maximum(tl.minimum(s.to(tl.float64), 1.7976931348623157e308), -1.7976931348623157e308)


@jit
def _fp32_encode(s):
    kept = tl.maximum(tl.minimum(s, 3.4028234663852886e38), -3.4028234663852886e38).to(tl.float32)
    return tl.where((kept == 0.0) & (s > 0.0), 1.401298464324817e-45, kept)


@jit
def _fp16_encode(s):
    bits = encode_minifloat(s, 5, 10, 65504.0)
    return tl.where((bits == 0) & (s > 0.0), 1, bits).to(tl.int16).to(tl.float16, bitcast=True)


@jit
def _bf16_encode(s):
    bits = encode_minifloat(s, 8, 7, 3.3895313892515355e38)
    return tl.where((bits == 0) & (s > 0.0), 1, bits).to(tl.int16).to(tl.bfloat16, bitcast=True)


@jit
def _e4m3_encode(s):
    bits = encode_minifloat(s, 4, 3, 448.0)
    return tl.where((bits == 0) & (s > 0.0), 1, bits).to(tl.uint8)


@jit
def _e4m3_decode(stored):
    code = stored.to(tl.int32)
    normal = ((code << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    return tl.where(code < 8, code.to(tl.float32) * 0.001953125, normal)


@jit
def _e8m0_encode(s):
    """The biased exponent of the nearest power of two; the tie 1.5 * 2**e takes the even exponent."""
    bits = narrow(tl.minimum(s, 3.4028234663852886e38)).to(tl.int32, bitcast=True)
    near = (bits + 0x3FFFFF + ((bits >> 23) & 1)) >> 23
    near = tl.where(bits < 0x800000, (bits > 0x600000).to(tl.int32), near)
    return tl.minimum(near, 254).to(tl.uint8)


@jit
def _e8m0_decode(stored):
    code = stored.to(tl.int32)
    return tl.where(code == 0, 0x400000, code << 23).to(tl.float32, bitcast=True)


def _saturate(s: torch.Tensor, dtype: torch.dtype, largest: float, exponent_bits: int, mantissa_bits: int) -> torch.Tensor:
    """Nearest value of ``dtype`` with a single rounding (torch converts float64 by way of float32)."""
    bits = encode_minifloat_ref(s, exponent_bits, mantissa_bits, largest)
    bits = torch.where((bits == 0) & (s > 0), 1, bits)
    return bits.to(torch.int16).view(dtype) if dtype.itemsize == 2 else bits.to(torch.uint8).view(dtype)


def _fp32_ref(s: torch.Tensor) -> torch.Tensor:
    limit = torch.finfo(torch.float32).max
    kept = s.clamp(-limit, limit).float()
    return torch.where((kept == 0) & (s > 0), 2.0**-149, kept)


def _e8m0_ref(s: torch.Tensor) -> torch.Tensor:
    bits = narrow_ref(s.clamp(max=torch.finfo(torch.float32).max)).view(torch.int32)
    near = (bits + 0x3FFFFF + ((bits >> 23) & 1)) >> 23
    near = torch.where(bits < 0x800000, (bits > 0x600000).int(), near)
    return near.clamp(max=254).to(torch.uint8).view(torch.float8_e8m0fnu)


SCALE_FORMATS: dict[str, ScaleFormat] = {fmt.name: fmt for fmt in (
    ScaleFormat(name="fp64", option="s64", dtype=torch.float64, encode=_fp64_encode, decode=_keep, source="IEEE 754-2019 binary64",
                encode_ref=lambda s: s.double().nan_to_num()),
    ScaleFormat(name="fp32", option="s32", dtype=torch.float32, encode=_fp32_encode, decode=_keep, source="IEEE 754-2019 binary32",
                encode_ref=_fp32_ref),
    ScaleFormat(name="fp16", option="s16", dtype=torch.float16, encode=_fp16_encode, decode=_widen, source="IEEE 754-2019 binary16",
                encode_ref=lambda s: _saturate(s, torch.float16, 65504.0, 5, 10)),
    ScaleFormat(name="bf16", option="sbf16", dtype=torch.bfloat16, encode=_bf16_encode, decode=_widen, source="bfloat16",
                encode_ref=lambda s: _saturate(s, torch.bfloat16, 3.3895313892515355e38, 8, 7)),
    ScaleFormat(name="e8m0", option="se8m0", dtype=torch.float8_e8m0fnu, encode=_e8m0_encode, decode=_e8m0_decode,
                source="OCP Microscaling Formats v1.0 section 5.4.1", encode_ref=_e8m0_ref),
    ScaleFormat(name="e4m3", option="se4m3", dtype=torch.float8_e4m3fn, encode=_e4m3_encode, decode=_e4m3_decode,
                source="OCP 8-bit Floating Point v1.0", encode_ref=lambda s: _saturate(s, torch.float8_e4m3fn, 448.0, 4, 3)),
)}  # fmt: skip


def get_scale_format(name: str) -> ScaleFormat:
    """The scale format called ``name``; an unknown name is an error that lists the known ones."""
    try:
        return SCALE_FORMATS[name]
    except KeyError:
        raise InvalidProblemError(f"unknown scale format {name!r}; known scale formats: {', '.join(SCALE_FORMATS)}") from None


def default_scale_format(dtype: torch.dtype) -> ScaleFormat:
    """What scales of ``dtype`` input are stored in when neither format nor scheme names one: its own, float64 in fp32."""
    return SCALE_FORMATS[{torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "fp32")]
