"""``cvt`` between every pair of types that Triton uses."""
from __future__ import annotations

import re

import numpy as np

from .machine import Machine, handles
from .numbers import (
    SIGNED,
    U8,
    U16,
    U32,
    UNSIGNED,
    decode,
    encode,
    float_to_bf16,
    float_to_f16,
    flush_subnormals,
    high_half,
    join_halves,
    low_half,
)
from .program import Instruction, PtxError, bits_of

_TYPE = re.compile(r"[su]\d+|b?f\d+(x2)?|tf32|e4m3x2|e5m2x2")
_TWO_ROUNDINGS = {"bf16": float_to_bf16, "f16": float_to_f16}
_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _is_float(kind: str) -> bool:
    return kind[0] == "f" or kind == "bf16"


def _source_integers(machine: Machine, operand: str, kind: str) -> np.ndarray:
    bits = bits_of(kind)
    value = machine.read(operand, max(bits, 16)).astype(UNSIGNED[bits])
    return value.view(SIGNED[bits]) if kind[0] == "s" else value


def _float_to_integer(values: np.ndarray, kind: str, rounding: str) -> np.ndarray:
    """Rounds, saturates; NaN gives 0 (the smallest number for 64 bits)."""
    bits = bits_of(kind)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    rounded = _TO_INTEGER[rounding](values.astype(np.float64))
    nan, above, below = np.isnan(rounded), rounded >= float(high), rounded <= float(low)
    inside = np.where(nan | above | below, 0, rounded).astype(np.int64 if kind[0] == "s" else np.uint64)
    result = np.where(above, inside.dtype.type(high), np.where(below, inside.dtype.type(low), inside))
    of_nan = 1 << 63 if bits == 64 else 0
    return np.where(nan, np.array([of_nan], np.uint64).astype(result.dtype), result)


def _clip_integer(values: np.ndarray, kind: str) -> np.ndarray:
    bits = bits_of(kind)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    return np.clip(values.astype(np.int64), low, min(high, 2**63 - 1))


def _to_register(values: np.ndarray, kind: str) -> np.ndarray:
    """Integers truncated to the type; 8-bit types live, extended by their sign, in 16-bit registers."""
    bits = bits_of(kind)
    narrow = values.astype(SIGNED[bits] if kind[0] == "s" else UNSIGNED[bits])
    return narrow.astype(np.int16).view(U16) if bits == 8 else narrow.view(UNSIGNED[bits])


def _to_float(machine: Machine, instruction: Instruction, source: str, target: str, rounding: str | None) -> np.ndarray:
    operand = instruction.operands[1]
    if not _is_float(source):
        values = _source_integers(machine, operand, source)
        # int64 -> float32 must round once, so not by way of float64
        return encode(values.astype(np.float32 if target == "f32" else np.float64), target)
    values = decode(machine.read(operand, bits_of(source)), source)
    if instruction.has("ftz") and source == "f32":
        values = flush_subnormals(values)
    if rounding in _TO_INTEGER:
        values = _TO_INTEGER[rounding](values)
    if target in _TWO_ROUNDINGS:
        return _TWO_ROUNDINGS[target](values, rounding == "rz")
    if rounding not in (None, "rn", *_TO_INTEGER):
        raise PtxError(f"rounding {rounding} is not modelled")
    return encode(values, target)


def _pair(machine: Machine, instruction: Instruction, source: str, target: str) -> np.ndarray:
    """Two numbers at once; of two f32 operands the first goes to the upper half."""
    operands = instruction.operands
    if source == "f32":
        high, low = (decode(machine.read(o, 32), "f32") for o in operands[1:3])
        if instruction.has("relu"):
            raise PtxError("relu is not modelled")
        if target[:-2] in _TWO_ROUNDINGS:
            return join_halves(*(_TWO_ROUNDINGS[target[:-2]](v, instruction.has("rz")) for v in (low, high)))
    elif source in ("f16x2", "bf16x2"):
        register = machine.read(operands[1], 32)
        low, high = (decode(half(register), source[:-2]) for half in (low_half, high_half))
    else:
        register = machine.read(operands[1], 16)
        low, high = (decode(((register >> U16(s)) & U16(0xFF)).astype(U8), source[:-2]) for s in (0, 8))
    low_bits, high_bits = encode(low, target[:-2]), encode(high, target[:-2])
    if target in ("e4m3x2", "e5m2x2"):
        return low_bits.astype(U16) | (high_bits.astype(U16) << U16(8))
    return join_halves(low_bits, high_bits)


@handles("cvt")
def convert(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    target, source = [part for part in instruction.parts[1:] if _TYPE.fullmatch(part)][:2]
    rounding = next((part for part in instruction.parts[1:] if re.fullmatch(r"rna|r[nzmp]i?", part)), None)
    if target.endswith("x2"):
        result = _pair(machine, instruction, source, target)
    elif target == "tf32":
        bits = machine.read(instruction.operands[1], 32)
        half = U32(0x1000) if rounding == "rna" else U32(0xFFF) + ((bits >> U32(13)) & U32(1))
        result = np.where(np.isfinite(bits.view(np.float32)), (bits + half) & U32(0xFFFFE000), bits)
    elif _is_float(target):
        result = _to_float(machine, instruction, source, target, rounding)
    elif _is_float(source):
        values = decode(machine.read(instruction.operands[1], bits_of(source)), source)
        result = _to_register(_float_to_integer(values, target, rounding), target)
    else:
        values = _source_integers(machine, instruction.operands[1], source)
        result = _to_register(_clip_integer(values, target) if instruction.has("sat") else values, target)
    if instruction.has("sat") and _is_float(target):
        raise PtxError("saturation of floats is not modelled")
    machine.write(instruction.operands[0], result, active)
