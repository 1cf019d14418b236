"""Floor 0. Rounding on the device and in torch: each pair gives the same bits for float32 and float64.

Kernels that use these run with ``enable_fp_fusion=False``: contracting ``a * b + c`` would skip a rounding.
"""
from __future__ import annotations

import torch

from .._triton import cuda_arch, jit, tl


@jit
def round_half_even(u):
    """Nearest integer, ties to even, of float32 or float64: every magnitude, +-Inf and NaN as ``torch.round``; zero comes out as +0.

    Adding 2**23 (2**52), with the sign of ``u``, to a smaller magnitude leaves no bit for a fraction, so the addition itself
    rounds; whatever is not smaller has no fraction.
    """
    if u.dtype == tl.float64:
        shift = tl.where(u < 0.0, -4503599627370496.0, 4503599627370496.0).to(tl.float64)
        fractional = tl.abs(u) < 4503599627370496.0
    else:
        shift = tl.where(u < 0.0, -8388608.0, 8388608.0)
        fractional = tl.abs(u) < 8388608.0
    return tl.where(fractional, (u + shift) - shift, u)


@jit
def round_half_away(u):
    """Nearest integer, ties away from zero. ``floor(u + 0.5)`` would be wrong just below a tie."""
    if u.dtype == tl.float64:
        mag = tl.minimum(tl.abs(u), 2251799813685248.0)
    else:
        mag = tl.minimum(tl.abs(u), 4194304.0)
    whole = round_half_even(mag)
    whole = tl.where(whole > mag, whole - 1.0, whole)
    whole = tl.where(mag - whole >= 0.5, whole + 1.0, whole)
    return tl.where(u < 0.0, -whole, whole)


def round_half_away_ref(u: torch.Tensor) -> torch.Tensor:
    whole = u.abs().floor()
    return (whole + (u.abs() - whole >= 0.5)).copysign(u)


@jit
def narrow(u):
    """float64 to float32 by rounding to odd, so that a second rounding to at most 22 bits is right. float32 passes through."""
    if u.dtype == tl.float64:
        near = u.to(tl.float32)
        back = near.to(tl.float64)
        bits = near.to(tl.int32, bitcast=True)
        bits = bits - (tl.abs(back) > tl.abs(u)).to(tl.int32)
        bits = bits | (back != u).to(tl.int32)
        u = bits.to(tl.float32, bitcast=True)
    return u


def narrow_ref(u: torch.Tensor) -> torch.Tensor:
    if u.dtype != torch.float64:
        return u
    near = u.float()
    back = near.double()
    bits = near.view(torch.int32) - (back.abs() > u.abs()).int()
    return (bits | (back != u).int()).view(torch.float32)


@jit
def encode_minifloat(u, EXPONENT_BITS: tl.constexpr, MANTISSA_BITS: tl.constexpr, MAX: tl.constexpr):
    """Sign, exponent and mantissa of the nearest small float, ties to even, saturating at +-MAX; zero keeps its sign."""
    if cuda_arch() >= 89 and EXPONENT_BITS + MANTISSA_BITS == 7 and u.dtype == tl.float32 and u.numel % 4 == 0:
        code = convert_to_fp8(u, MANTISSA_BITS).to(tl.int32)
    else:
        code = round_to_minifloat(u, EXPONENT_BITS, MANTISSA_BITS, MAX)
    return code


@jit
def convert_to_fp8(u, MANTISSA_BITS: tl.constexpr):
    """float32 to the bits of e4m3 or e5m2, uint8: one instruction of sm_89 and later for two numbers. Takes a multiple of four."""
    TYPE: tl.constexpr = "e4m3x2" if MANTISSA_BITS == 3 else "e5m2x2"
    ASM: tl.constexpr = ("{.reg .b16 low, high; cvt.rn.satfinite." + TYPE + ".f32 low, $2, $1; cvt.rn.satfinite." + TYPE
                         + ".f32 high, $4, $3; mov.b32 $0, {low, high};}")  # fmt: skip
    return tl.inline_asm_elementwise(ASM, "=r,r,r,r,r", args=[u], dtype=tl.uint8, is_pure=True, pack=4)


@jit
def round_to_minifloat(u, EXPONENT_BITS: tl.constexpr, MANTISSA_BITS: tl.constexpr, MAX: tl.constexpr):
    """encode_minifloat in plain arithmetic."""
    BIAS: tl.constexpr = 2 ** (EXPONENT_BITS - 1) - 1
    SHIFT: tl.constexpr = 23 - MANTISSA_BITS
    WIDTH: tl.constexpr = EXPONENT_BITS + MANTISSA_BITS
    bits = narrow(u).to(tl.int32, bitcast=True)
    mag = tl.minimum((bits & 0x7FFFFFFF).to(tl.float32, bitcast=True), MAX)
    if BIAS < 127:
        # 2**SHIFT times the binade of mag (of the smallest normal, below it) plus mag has units of the result for last bits, so that the
        # addition rounds. Its exponent is the result's and a constant; FIELD makes up for that, and is even, so that ties hold.
        FIELD: tl.constexpr = -((SHIFT + 128 - BIAS) << MANTISSA_BITS) % 2**WIDTH
        binade = tl.maximum(mag, 2.0 ** (1 - BIAS)).to(tl.int32, bitcast=True) & 0x7F800000
        total = tl.fma(binade.to(tl.float32, bitcast=True), 2.0**SHIFT * (1 + FIELD / 2**23), mag).to(tl.int32, bitcast=True)
        code = (total + (total >> SHIFT)) & (2**WIDTH - 1)
    else:
        magbits = mag.to(tl.int32, bitcast=True)
        code = (magbits + ((1 << (SHIFT - 1)) - 1) + ((magbits >> SHIFT) & 1)) >> SHIFT
    return code | ((bits >> (31 - WIDTH)) & (1 << WIDTH))


@jit
def decode_minifloat(code, EXPONENT_BITS: tl.constexpr, MANTISSA_BITS: tl.constexpr, LARGEST: tl.constexpr):
    """The exact float32 value of a small float. Codes beyond LARGEST, which encoding never gives, are Inf (whole exponent) and NaN."""
    BIAS: tl.constexpr = 2 ** (EXPONENT_BITS - 1) - 1
    WIDTH: tl.constexpr = EXPONENT_BITS + MANTISSA_BITS
    FIELDS: tl.constexpr = ((1 << WIDTH) - 1) << (23 - MANTISSA_BITS)
    # The fields where float32 has its own: too small by a power of two, which multiplying takes back exactly, also from a subnormal.
    bits = ((code.to(tl.int32) << (31 - WIDTH)) >> (8 - EXPONENT_BITS)) & (FIELDS - 2**31)
    value = bits.to(tl.float32, bitcast=True)
    if BIAS < 127:
        value *= 2.0 ** (127 - BIAS)
        MAX: tl.constexpr = (LARGEST % 2**MANTISSA_BITS + 2**MANTISSA_BITS) * 2.0 ** (LARGEST // 2**MANTISSA_BITS - BIAS - MANTISSA_BITS)
        value = tl.where(tl.abs(value) > MAX, (bits | 0x7F800000).to(tl.float32, bitcast=True), value)
    return value


def encode_minifloat_ref(u: torch.Tensor, exponent_bits: int, mantissa_bits: int, max_abs: float) -> torch.Tensor:
    """In float64, where every scaling by a power of two is exact: count the units in the last place of the result, rounded once."""
    bias = 2 ** (exponent_bits - 1) - 1
    mag = u.abs().clamp_(max=max_abs).double()
    exponent = (mag.view(torch.int64) >> 52).sub_(1023).clamp_(min=1 - bias)
    code = exponent.int().add_(bias - 1).bitwise_left_shift_(mantissa_bits)
    unit = exponent.add_(1023 - mantissa_bits).bitwise_left_shift_(52).view(torch.float64)
    code += mag.div_(unit).round_().int()
    return code.add_(torch.signbit(u), alpha=1 << (exponent_bits + mantissa_bits))


def decode_minifloat_ref(code: torch.Tensor, exponent_bits: int, mantissa_bits: int, largest: int) -> torch.Tensor:
    bias = 2 ** (exponent_bits - 1) - 1
    code = code.int()
    exponent = (code >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = code & (2**mantissa_bits - 1)
    whole = torch.where(exponent > 0, mantissa + 2**mantissa_bits, mantissa).float()
    value = torch.ldexp(whole, exponent.clamp(min=1) - bias - mantissa_bits)
    magnitude = code & (2 ** (exponent_bits + mantissa_bits) - 1)
    infinite = (magnitude == largest + 1) & ((largest + 1) % 2**mantissa_bits == 0)
    value = torch.where(infinite, torch.inf, torch.where(magnitude > largest, torch.nan, value))
    return torch.where((code >> (exponent_bits + mantissa_bits)) & 1 == 1, -value, value)


@jit
def round_up_to_power_of_two(s):
    """The smallest normal power of two that is at least ``s`` (finite, positive); 2**127 (2**1023) at most."""
    if s.dtype == tl.float64:
        bits = s.to(tl.int64, bitcast=True)
        bits = (bits + 0xFFFFFFFFFFFFF) & 0x7FF0000000000000
        up = tl.minimum(bits, 0x7FE0000000000000).to(tl.float64, bitcast=True)
    else:
        bits = s.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFFF) & 0x7F800000
        up = tl.minimum(bits, 0x7F000000).to(tl.float32, bitcast=True)
    return up


def round_up_to_power_of_two_ref(s: torch.Tensor) -> torch.Tensor:
    if s.dtype == torch.float64:
        bits = (s.view(torch.int64) + 0xFFFFFFFFFFFFF) & 0x7FF0000000000000
        return bits.clamp(max=0x7FE0000000000000).view(torch.float64)
    bits = (s.view(torch.int32) + 0x7FFFFF) & 0x7F800000
    return bits.clamp(max=0x7F000000).view(torch.float32)
