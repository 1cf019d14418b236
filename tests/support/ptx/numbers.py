"""Register bits to numbers and back. Registers are unsigned arrays; f16 and bf16 are computed on as float64, which holds them exactly."""
from __future__ import annotations

import numpy as np
import torch

from tritonq.interpreter.exact import float_to_bf16, to_float32_odd

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
UNSIGNED = {1: np.bool_, 8: U8, 16: U16, 32: U32, 64: U64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_FP8 = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}
_MIN_NORMAL = np.float32(2.0**-126)


def units(memory: np.ndarray, size: int, first: int = 0) -> np.ndarray:
    """The items from ``first`` on, ``size`` of them as one element, which numpy moves at once."""
    whole = (len(memory) - first) // size * size
    return memory[first : first + whole].view(np.dtype((np.void, size * memory.itemsize)))


def low_half(register: np.ndarray) -> np.ndarray:
    """Bits 0 to 15 of a 32-bit register."""
    return (register & U32(0xFFFF)).astype(U16)


def high_half(register: np.ndarray) -> np.ndarray:
    """Bits 16 to 31 of a 32-bit register."""
    return (register >> U32(16)).astype(U16)


def join_halves(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Two 16-bit values in one 32-bit register."""
    return low.astype(U32) | (high.astype(U32) << U32(16))


def bf16_to_float(bits: np.ndarray) -> np.ndarray:
    """bf16 bits as float32."""
    return (bits.astype(U32) << U32(16)).view(np.float32)


def float_to_f16(values: np.ndarray, toward_zero: bool = False) -> np.ndarray:
    """float32 or float64 to f16 bits with one rounding; NaN becomes 0x7FFF."""
    with np.errstate(all="ignore"):
        near = np.ascontiguousarray(values.astype(np.float16))
        bits = near.view(U16)
        if toward_zero:
            bits = np.where(np.abs(near.astype(np.float64)) > np.abs(values), bits - U16(1), bits)
    return np.where(np.isnan(values), U16(0x7FFF), bits)


def decode(bits: np.ndarray, kind: str) -> np.ndarray:
    """Register bits of type f16, bf16, f32, f64, e4m3 or e5m2 as floats: f32 stays float32, everything else is float64."""
    bits = np.ascontiguousarray(bits)
    if kind == "f32":
        return bits.view(np.float32)
    if kind == "f64":
        return bits.view(np.float64)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float64)
    if kind == "bf16":
        with np.errstate(invalid="ignore"):  # numpy remarks on signalling NaNs
            return bf16_to_float(bits).astype(np.float64)
    return torch.from_numpy(bits.copy()).view(_FP8[kind][0]).to(torch.float64).numpy()  # torch takes no read-only memory


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Floats rounded once (nearest even) to register bits; fp8 saturates (``satfinite``), NaN of f32 and f16 is the canonical one."""
    with np.errstate(all="ignore"):
        if kind == "f32":
            bits = np.ascontiguousarray(values.astype(np.float32)).view(U32)
            return np.where(np.isnan(values), U32(0x7FFFFFFF), bits)
        if kind == "f64":
            return np.ascontiguousarray(values.astype(np.float64)).view(U64)
        if kind == "f16":
            return float_to_f16(values)
        if kind == "bf16":
            return float_to_bf16(values)
    dtype, largest = _FP8[kind]
    tensor = torch.from_numpy(to_float32_odd(values) if values.dtype == np.float64 else np.array(values))
    return torch.where(torch.isnan(tensor), tensor, tensor.clamp(-largest, largest)).to(dtype).view(torch.uint8).numpy()


def flush_subnormals(values: np.ndarray) -> np.ndarray:
    """``.ftz``: float32 subnormals become zero of the same sign."""
    return np.where(np.abs(values) < _MIN_NORMAL, np.copysign(np.float32(0), values), values)


def nudge(exact: np.ndarray) -> np.ndarray:
    """A float32 result moved by one unit in the last place, up or down by its own bits.

    Hardware's approximate division, reciprocal and roots differ from the rounded result by such amounts; a kernel that must be
    bit-exact may not use them, and one that may use them is held to a tolerance.
    """
    bits = np.ascontiguousarray(exact, np.float32).view(U32)
    up = ((bits >> U32(3)) ^ bits) & U32(1) == 1
    moved = np.where(up, bits + U32(1), bits - U32(1)).view(np.float32)
    ordinary = np.isfinite(exact) & (np.abs(exact) >= _MIN_NORMAL * 2) & np.isfinite(moved)
    return np.where(ordinary, moved, exact)
