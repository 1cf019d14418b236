"""The numeric rules of integer quantization, one number at a time in plain Python. Shares no code with the library.

float32 arithmetic is float64 arithmetic rounded to float32 after each operation, which is exact for + - * / (53 >= 2 * 24 + 2 bits;
Figueroa, "When is double rounding innocuous?", 1995).
"""
from __future__ import annotations

import math
import struct
from dataclasses import dataclass


def f32(value: float) -> float:
    """``value`` rounded to float32."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def round_ties(value: float, away: bool) -> int:
    """The nearest integer of a finite number; a tie goes away from zero or to the even neighbour."""
    if not away:
        return round(value)
    whole = math.floor(abs(value))
    return int(math.copysign(whole + (abs(value) - whole >= 0.5), value))


@dataclass(frozen=True)
class Plain:
    """What the rules say for one group of numbers. ``offset`` is what decoding adds (float zero), ``zero_point`` what it subtracts."""

    scale: float
    zero_point: int
    offset: float
    codes: list[int]
    decoded: list[float]


def plain_group(values: list[float], bits: int, kind: str, *, away: bool, power_of_two: bool = False) -> Plain:
    """One group under one scale. ``kind`` is symmetric, affine (integer zero point) or float_zero."""
    finite = [v for v in values if math.isfinite(v)]
    least, greatest = min(finite, default=0.0), max(finite, default=0.0)
    if kind == "symmetric":
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        extent, steps = max(-least, greatest), high
    else:
        low, high = 0, 2**bits - 1
        if kind == "affine":
            least, greatest = min(least, 0.0), max(greatest, 0.0)
        extent, steps = f32(greatest - least), high
    scale = 1.0 if extent == 0 else max(f32(extent / steps), 2.0**-149)
    if power_of_two and extent:
        mantissa, exponent = math.frexp(scale)
        scale = 2.0 ** (exponent - 1 if mantissa == 0.5 else exponent)
    zero_point = min(max(round_ties(f32(-least / scale), away), low), high) if kind == "affine" else 0
    offset = least if kind == "float_zero" else 0.0
    codes = []
    for value in values:
        value = 0.0 if math.isnan(value) else value
        if math.isinf(value):
            codes.append(high if value > 0 else low)
        else:
            codes.append(min(max(round_ties(f32(f32(value - offset) / scale), away) + zero_point, low), high))
    decoded = [f32(offset + f32(scale * (code - zero_point))) for code in codes]
    return Plain(scale, zero_point, offset, codes, decoded)


def plain_columns(rows: list[list[float]], bits: int, kind: str, *, away: bool) -> list[Plain]:
    """One group per column of a matrix."""
    return [plain_group(list(column), bits, kind, away=away) for column in zip(*rows)]
