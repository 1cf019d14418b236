"""Device arithmetic with one meaning on every backend: the same bits compiled, interpreted and in the torch reference.

Kernels that use these run with ``enable_fp_fusion=False``: contracting a multiplication and an addition skips a rounding.
"""
from __future__ import annotations

from .._triton import jit, tl


@jit
def round_half_even(u):
    """Nearest integer, ties to even, of float32 or float64: every magnitude, +-Inf, NaN and the sign of zero as ``torch.round``.

    Adding 2**23 (2**52) to a smaller magnitude leaves no bit for a fraction, so the addition itself rounds; whatever is not
    smaller has no fraction.
    """
    magnitude = tl.abs(u)
    if u.dtype == tl.float64:
        whole = (magnitude + 4503599627370496.0) - 4503599627370496.0
        fractional = (magnitude < 4503599627370496.0) & (u != 0.0)
    else:
        whole = (magnitude + 8388608.0) - 8388608.0
        fractional = (magnitude < 8388608.0) & (u != 0.0)
    return tl.where(fractional, tl.where(u < 0.0, -whole, whole), u)


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
def unclamped_code(x, scale, zero_point):
    """``round_half_even(x / scale) + zero_point`` as int64. NaN, and any ``x`` under a scale that is not positive, counts as 0.

    The quotient is clamped to +-2**62 before it becomes an integer, so the sum neither wraps nor loses a bit.
    """
    scale = tl.broadcast_to(scale, x.shape)
    quotient = nan_to_zero(divide(x, scale))
    whole = round_half_even(tl.where(scale > 0.0, quotient, 0.0))
    whole = tl.minimum(tl.maximum(whole, -4611686018427387904.0), 4611686018427387904.0)
    return whole.to(tl.int64) + zero_point.to(tl.int64)
