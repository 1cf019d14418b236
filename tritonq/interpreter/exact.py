"""Floor 0. Roundings that numpy does not have: fused multiply-add with one, float64 to bfloat16 with one."""
from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np

_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fma.restype = ctypes.c_double
_libm.fma.argtypes = [ctypes.c_double] * 3
_fma64 = np.frompyfunc(_libm.fma, 3, 1)


def fma_unrounded(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """``x * y + z`` of float32 or narrower inputs as float64 rounded to odd, so that one more rounding gives the right result.

    The product of two float32 is exact in float64; TwoSum finds the sign of what the addition lost, and setting the last bit
    where anything was lost keeps a later rounding from seeing a false tie.
    """
    with np.errstate(all="ignore"):
        product, addend = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
        total = np.asarray(product + addend)
        virtual = total - product
        lost = (product - (total - virtual)) + (addend - virtual)
        pattern = total.view(np.int64)
        inexact = (lost != 0) & ((pattern & 1) == 0) & np.isfinite(total)
        step = np.where((lost > 0) == (total > 0), 1, -1)
        return np.where(inexact, pattern + step, pattern).view(np.float64)


def fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """``x * y + z`` with one rounding, in the type of ``z`` (float16, float32 or float64)."""
    with np.errstate(all="ignore"):
        if z.dtype == np.float64:
            return np.asarray(_fma64(x, y, z), dtype=np.float64)
        return fma_unrounded(x, y, z).astype(z.dtype)


def to_float32_odd(values: np.ndarray) -> np.ndarray:
    """float64 -> float32, rounding what is inexact to the neighbour with an odd last bit, so that a later rounding is not a second one."""
    with np.errstate(all="ignore"):
        near = np.ascontiguousarray(values, np.float64).astype(np.float32)
        bits = near.view(np.uint32)
        toward_zero = np.where(np.abs(near.astype(np.float64)) > np.abs(values), bits - np.uint32(1), bits)
        inexact = (near.astype(np.float64) != values) & ~np.isnan(values)
    return np.where(inexact, toward_zero | np.uint32(1), bits).view(np.float32)


def float_to_bf16(values: np.ndarray, toward_zero: bool = False) -> np.ndarray:
    """float32 or float64 to bf16 bits with one rounding (nearest even unless ``toward_zero``); NaN becomes 0x7FFF."""
    single = to_float32_odd(values) if values.dtype == np.float64 else np.ascontiguousarray(values, np.float32)
    bits = single.view(np.uint32)
    if not toward_zero:
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(single), np.uint32(0x7FFF), bits >> np.uint32(16)).astype(np.uint16)
