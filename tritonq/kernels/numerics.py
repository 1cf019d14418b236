"""Floor 3. Device arithmetic with one meaning on every backend: the same bits compiled, interpreted and in the torch reference.

Kernels that use these run with ``enable_fp_fusion=False``: contracting a multiplication and an addition skips a rounding.
"""
from __future__ import annotations

from .._triton import jit, tl
from ..formats.numerics import narrow, round_half_even


@jit
def nan_to_zero(u):
    """``u`` with every NaN replaced by 0."""
    return tl.where(u == u, u, 0.0)


@jit
def divide(x, y):
    """IEEE ``x / y`` of equally shaped float32 or float64 tensors (a plain ``/`` is approximate in compiled float32)."""
    if x.dtype == tl.float64:
        quotient = x / y
    else:
        quotient = tl.div_rn(x, y)
    return quotient


@jit
def cast(value, DTYPE: tl.constexpr):
    """``value`` rounded once to DTYPE; float64 reaches 16 bits by way of a float32 rounded to odd."""
    if value.dtype == tl.float64 and DTYPE.primitive_bitwidth == 16:
        value = narrow(value)
    return value.to(DTYPE)


@jit
def divide_by_inverse(x, y, inverse):
    """IEEE ``x / y`` of float32 where ``inverse`` is the correctly rounded 1 / y and nothing overflows or underflows: 3 instructions.

    (Markstein, IBM Journal of Research and Development 34(1), 1990, theorem 3: one exact remainder corrects the last bit.) The remainder
    is negated, because an exact one is +0: what is added then is -0, which leaves -0 / y its sign. (x * -1.0, not -x, which Triton 3.6
    subtracts from 0.)
    """
    quotient = x * inverse
    return tl.fma(tl.fma(quotient, y, x * -1.0), inverse * -1.0, quotient)


@jit
def place_short_quotient(x, inverse, ORIGIN: tl.constexpr):
    """ORIGIN + x / y, ready to be rounded to integers, for x and y of at most 11 significant bits, no overflow or underflow.

    ORIGIN is even, so ties keep their side, and either |x / y| < 256 and the sum lies in 512 .. 1024, or |x / y| < 64 and in 128 .. 256.
    Two such numbers that are no tie lie at least 2**-13 from one: |2x - (2k+1)y| is a multiple of the smaller last place. x * inverse is
    off by less than 2**-24 of the quotient. So rounding the sum to its units, multiples of 2**-14 (2**-16), puts every tie exactly on its
    place and moves nothing across one; what then rounds to integers, ties to even, does so as IEEE does.
    """
    return tl.fma(x, inverse, ORIGIN)


@jit
def round_short_quotient(x, inverse, OFFSET: tl.constexpr):
    """round_half_even(x / y) + OFFSET + 1.5 * 2**23, |x / y| < 256; OFFSET is even."""
    return place_short_quotient(x, inverse, 768.0) + (12582144.0 + OFFSET)


@jit
def split_zero_point(zero_point, like):
    """An int32 zero point as two floats of the type of ``like`` that lose nothing: a multiple of 2**16, and the rest in 0..2**16-1."""
    high = (zero_point >> 16) << 16
    return high.to(like.dtype), (zero_point - high).to(like.dtype)


@jit
def unclamped_code(x, scale, high, low):
    """``round_half_even(x / scale) + zero_point`` as a float; NaN, and any ``x`` under a scale that is not positive, counts as 0.

    Exact where it lies in +-2**22, and beyond that on its side of it: floats add integers without rounding unless the sum reaches
    2**24, so ``high`` brings the sum near zero or leaves it too far outside for ``low`` to bring it back.
    """
    scale = tl.broadcast_to(scale, x.shape)
    quotient = nan_to_zero(divide(x, scale))
    return (round_half_even(tl.where(scale > 0.0, quotient, 0.0)) + high) + low
