"""Floor 3. The device side of layout ``ksplit``: one plane of its 16-bit words to weights in float16 or bfloat16, elementwise.

Four ways, one signature ``(words, high, zero, PLANE, BITS, DTYPE, TABLE)``; :func:`codec` chooses by format and dtype. ``words`` are int16,
``zero`` is float32 ``[rows, 1]`` (integers only), ``PLANE`` counts from the lowest bits, ``TABLE`` holds the way's constants.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from .._triton import jit, tl
from ..formats import Format
from ..kept import kept

_SIGN = tl.constexpr(-32768)  # 0x8000 as int16


@jit
def field(words, high, PLANE: tl.constexpr, BITS: tl.constexpr):
    """Stored codes, int16. ``high`` is None, or for 3 bits (words of the third bits, the plane in them)."""
    if BITS == 3:
        code = ((words >> (2 * PLANE)) & 3) | (high << 2)
    else:
        code = (words >> (BITS * PLANE)) & (2**BITS - 1)
    return code


@jit
def unpack_integer(words, high, zero, PLANE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr, TABLE: tl.constexpr):
    """``code - zero``, exactly: the code becomes the low mantissa bits of a power of two, which goes away together with the zero point.

    As many planes as the mantissa holds are masked where they stand, scaled by a power of two instead of shifted.
    """
    MANTISSA: tl.constexpr = 10 if tl.float16 == DTYPE else 7
    if BITS > MANTISSA:
        code = field(words, high, PLANE, BITS).to(tl.int32) | 0x4B000000  # 2**23 + code
        value = (code.to(tl.float32, bitcast=True) - (zero + 8388608.0)).to(DTYPE)
    else:
        EXPONENT: tl.constexpr = 0x6400 if tl.float16 == DTYPE else 0x4300  # 2**MANTISSA
        SHIFT: tl.constexpr = 0 if BITS == 3 else BITS * PLANE % (BITS * (MANTISSA // BITS))  # where the code stays
        if BITS == 3:
            code = field(words, high, PLANE, BITS)
        else:
            code = (words >> (BITS * PLANE - SHIFT)) & ((2**BITS - 1) << SHIFT)
        value = (code | EXPONENT).to(DTYPE, bitcast=True)
        if SHIFT != 0:
            value = value * tl.full((1, 1), 2.0**-SHIFT, DTYPE)
        value = value - (zero + 2.0 ** (MANTISSA - SHIFT)).to(DTYPE)
    return value


@jit
def unpack_minifloat(words, high, zero, PLANE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr, TABLE: tl.constexpr):
    """Sign and magnitude moved to where DTYPE has them, times a power of two for the other bias.

    TABLE: (shift, factor, mask of the magnitude, least magnitude that is Inf or NaN, exponent of Inf), the last three as patterns.
    """
    top = words << (16 - BITS * (PLANE + 1))
    magnitude = (top >> TABLE[0]) & TABLE[2]
    if TABLE[3] is not None:
        magnitude = tl.where(magnitude >= TABLE[3], magnitude | TABLE[4], magnitude)
    value = ((top & _SIGN) | magnitude).to(DTYPE, bitcast=True)
    if TABLE[1] != 1.0:
        value = value * tl.full((1, 1), TABLE[1], DTYPE)
    return value


@jit
def unpack_level(words, high, table_ptr, PLANE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr, TABLE: tl.constexpr):
    """Any format: its levels, rounded once, looked up in DTYPE ``[2**BITS]`` at ``table_ptr``."""
    return tl.load(table_ptr + field(words, high, PLANE, BITS).to(tl.int32))


@dataclass(frozen=True)
class Codec:
    """How a format is unpacked in one 16-bit dtype: a function above, its TABLE, and the largest relative error of a level."""

    unpack: object
    table: object
    error: float


@kept
def codec(fmt: Format, dtype: torch.dtype) -> Codec | None:
    """None where the levels do not fit ``dtype``: one overflows, or loses more than its rounding."""
    if fmt.is_integer:
        return Codec(unpack_integer, None, 0.0)
    levels = fmt.levels.double()
    rounded = fmt.levels.to(dtype)
    finite = levels.isfinite()
    error = float((torch.where(levels == 0, 0.0, (rounded.double() - levels) / levels))[finite].abs().max())
    if not bool(finite[0]) or not error <= torch.finfo(dtype).eps / 2:
        return None
    if error == 0 and (table := _minifloat(fmt, dtype)) is not None:
        return Codec(unpack_minifloat, table, 0.0)
    return Codec(unpack_level, None, error)


@kept
def level_table(fmt: Format, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """What :func:`unpack_level` looks up; None for formats that need no table."""
    return fmt.levels.to(dtype).to(device) if codec(fmt, dtype).unpack is unpack_level else None


def _minifloat(fmt: Format, dtype: torch.dtype) -> tuple | None:
    """TABLE of :func:`unpack_minifloat` if it gives every level of ``fmt``, signs of zero, Inf and NaN included."""
    mantissa_bits, exponent = (10, 0x7C00) if dtype == torch.float16 else (7, 0x7F80)
    half = 2 ** (fmt.bits - 1)
    if fmt.bits == 3 or 16 % fmt.bits:
        return None
    code, finite = torch.arange(half), fmt.levels[:half].isfinite()
    first = half if bool(finite.all()) else int((~finite).nonzero()[0])
    for mantissa in range(fmt.bits - 1):
        magnitude = (code << (mantissa_bits - mantissa)).to(torch.int16)
        factor = float(fmt.levels[1] / magnitude.view(dtype)[1])
        magnitude = torch.where(code >= first, magnitude | exponent, magnitude).view(dtype)
        got = (torch.cat((magnitude, -magnitude)) * torch.tensor(factor, dtype=dtype)).float()
        if _same(got, fmt.levels) and float(torch.tensor(factor, dtype=dtype)) == factor:
            place = mantissa_bits - mantissa
            return (16 - fmt.bits - place, factor, (half - 1) << place, None if first == half else first << place, exponent)
    return None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, but for the bits of NaN."""
    nan = a.isnan() & b.isnan()
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | nan).all())
