"""Floor 3. From the range of a group to its scale and zero point, on the device; the twin of ``reference/parameters.py``."""
from __future__ import annotations

from .._triton import jit, tl
from ..formats.integer import decode_integer, encode_integer
from ..formats.numerics import round_up_to_power_of_two
from .numerics import divide


@jit
def finite_or(x, other):
    """x where it is finite, else ``other``."""
    return tl.where(tl.abs(x) < float("inf"), x, other)


@jit
def finish_scale(scale, extent, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr):
    """Guard underflow, give groups without range their scale, round up to a power of two where asked."""
    if scale.dtype == tl.float64:
        scale = tl.where((scale == 0.0) & (extent > 0.0), 4.9406564584124654e-324, scale)
    else:
        scale = tl.where((scale == 0.0) & (extent > 0.0), 1.401298464324817e-45, scale)
    scale = tl.where(extent == 0.0, EMPTY_SCALE, scale)
    if ROUND_UP:
        scale = tl.where(scale > 0.0, round_up_to_power_of_two(scale), scale)
    return scale


@jit
def scale_from_absmax(
    absmax, tensor_scale,
    DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr, MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr,
):  # fmt: skip
    """absmax -> scale as stored. MAX_EXPONENT selects the floor rule of the OCP MX specification; tensor_scale (or None) is nvfp4's."""
    if MAX_EXPONENT is not None:
        if absmax.dtype == tl.float64:
            exponent = ((absmax.to(tl.int64, bitcast=True) >> 52) - (1023 - 127)).to(tl.int32)
        else:
            exponent = absmax.to(tl.int32, bitcast=True) >> 23
        stored = tl.minimum(tl.maximum(exponent - MAX_EXPONENT, 0), 254).to(tl.uint8)
    else:
        scale = divide(absmax, tl.full(absmax.shape, DIVISOR, absmax.dtype))
        if tensor_scale is not None:
            scale = divide(scale, tl.broadcast_to(tensor_scale.to(absmax.dtype), scale.shape))
        stored = ENCODE_SCALE(finish_scale(scale, absmax, EMPTY_SCALE, ROUND_UP))
    return stored


@jit
def scale_from_range(
    low, high,
    DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr, FLOAT_ZERO: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr,
):  # fmt: skip
    """Least and greatest finite value (low > high: none) -> scale and zero point as stored."""
    if FLOAT_ZERO:
        there = high - low >= 0.0  # not so of NaN and Inf, which may come in, for results that nobody uses
        low = tl.where(there, low, 0.0)
        high = tl.where(there, high, 0.0)
    else:
        low = tl.minimum(low, 0.0)
        high = tl.maximum(high, 0.0)
    extent = high - low
    scale = divide(extent, tl.full(extent.shape, DIVISOR, extent.dtype))
    stored = ENCODE_SCALE(finish_scale(scale, extent, EMPTY_SCALE, ROUND_UP))
    if FLOAT_ZERO:
        zero_point = ENCODE_ZERO(low + 0.0)  # no -0.0: which zero is the least depends on the order of the reduction
    else:
        ratio = divide(-low, DECODE_SCALE(stored).to(low.dtype))
        zero_point = encode_integer(ratio, 0.0, LOW, HIGH, AWAY).to(tl.uint8)
    return stored, zero_point


@jit
def tensor_scale_from_absmax(absmax):
    """float32 scale of a whole nvfp4 tensor: absmax / (448 * 6), from 2**-149 to the largest float32 / 512; 1 where there is no range."""
    scale = divide(absmax, tl.full(absmax.shape, 2688.0, absmax.dtype))
    scale = tl.minimum(tl.maximum(scale, 1.401298464324817e-45), 6.646139582783767e35).to(tl.float32)
    return tl.where(absmax > 0.0, scale, 1.0)


@jit
def group_parameters(
    low, high, second,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr,
):  # fmt: skip
    """Scale and zero point as stored; a symmetric scheme gives its scale twice."""
    if AFFINE:
        stored, stored_zero = scale_from_range(low, high, DIVISOR, EMPTY_SCALE, ROUND_UP, FLOAT_ZERO, LOW, HIGH, AWAY,
                                               ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
    else:
        absmax = tl.maximum(tl.maximum(-low, high), 0.0)
        stored = scale_from_absmax(absmax, second, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, ENCODE_SCALE)
        stored_zero = stored
    return stored, stored_zero


@jit
def decode_scale(stored, second, COMPUTE: tl.constexpr, DECODE_SCALE: tl.constexpr):
    """A stored scale as a number in COMPUTE, times the tensor's scale where there is one."""
    scale = DECODE_SCALE(stored)
    if second is not None:
        scale = scale * second
    return scale.to(COMPUTE)


@jit
def decode_zero(stored, COMPUTE: tl.constexpr, AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr):
    """A stored zero point as a number in COMPUTE; 0 where the scheme has none."""
    if FLOAT_ZERO:
        zero_point = DECODE_ZERO(stored).to(COMPUTE)
    elif AFFINE:
        zero_point = stored.to(COMPUTE)
    else:
        zero_point = tl.zeros(stored.shape, COMPUTE)
    return zero_point


@jit
def encode_value(
    x, scale, zero_point,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr, FLOAT_ZERO: tl.constexpr,
):  # fmt: skip
    """Stored code (int32, modulo 2**BITS) of ``x``. ``scale`` None is a plain cast; ``zero_point`` is a number in x's dtype, or 0.

    NaN is coded as zero; a scale of 0 (a code-book group without range) divides by 1 instead.
    """
    x = tl.where(x == x, x, 0.0)
    if FLOAT_ZERO:
        x = x - zero_point
    if scale is not None:
        u = divide(x, tl.broadcast_to(tl.where(scale == 0.0, 1.0, scale), x.shape))
    else:
        u = x
    if ENCODE is None:
        if FLOAT_ZERO:
            code = encode_integer(u, 0.0, LOW, HIGH, AWAY)
        else:
            code = encode_integer(u, zero_point, LOW, HIGH, AWAY)
    else:
        code = ENCODE(u)
    return code & (2**BITS - 1)


@jit
def decode_value(
    code, scale, zero_point, COMPUTE: tl.constexpr,
    DECODE: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr, AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr,
):  # fmt: skip
    """``scale * (level - zero_point)``, or ``zero_point + scale * level``: two roundings in COMPUTE."""
    if DECODE is None:
        level = decode_integer(code, BITS, SIGNED).to(COMPUTE)
    else:
        level = DECODE(code).to(COMPUTE)
    return scaled_level(level, scale, zero_point, AFFINE, FLOAT_ZERO)


@jit
def scaled_level(level, scale, zero_point, AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr):
    """``scale * (level - zero_point)``, or ``zero_point + scale * level``."""
    if FLOAT_ZERO:
        value = level * scale + zero_point
    elif AFFINE:
        value = (level - zero_point) * scale
    else:
        value = level * scale
    return value
