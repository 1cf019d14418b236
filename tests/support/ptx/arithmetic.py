"""Arithmetic, logic, comparison and selection."""
from __future__ import annotations

import numpy as np

from tritonq.interpreter import exact

from .. import ptx_inline
from .machine import Machine, handles, parts_of
from .numbers import SIGNED, U16, U32, U64, UNSIGNED, decode, encode, flush_subnormals, high_half, join_halves, low_half, nudge
from .program import Instruction, PtxError

FLOATS = ("f16", "bf16", "f32", "f64")
PAIRS = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}


def _minmax(instruction: Instruction):
    """min and max drop a single NaN unless the opcode says ``.NaN``; -0 is below +0."""
    keep_nan, smaller = instruction.has("NaN"), instruction.kind == "min"
    base = (np.minimum if smaller else np.maximum) if keep_nan else (np.fmin if smaller else np.fmax)

    def apply(a, b):
        result = base(a, b)
        zeros = (a == 0) & (b == 0)
        signs = np.signbit(a) | np.signbit(b) if smaller else np.signbit(a) & np.signbit(b)
        return np.where(zeros, np.copysign(result.dtype.type(0), np.where(signs, -1.0, 1.0)), result)

    if instruction.has("xorsign"):
        return lambda a, b: np.copysign(apply(np.abs(a), np.abs(b)), np.where(np.signbit(a) ^ np.signbit(b), -1.0, 1.0))
    return apply


def _fma(kind: str):
    """The unrounded form, where one more rounding follows; float64 is rounded here."""
    return exact.fma if kind == "f64" else exact.fma_unrounded


_UNARY = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda v: 1 / np.sqrt(v),
    "rcp": lambda v: 1 / v,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
_BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
_ROUNDED_TWIN = ("div", "rcp", "sqrt", "rsqrt")  # approximate forms of these exist beside exact ones


def _float_function(instruction: Instruction, kind: str):
    if instruction.has("rz", "rm", "rp", "sat", "relu"):
        raise PtxError(f"rounding or saturation of {'.'.join(instruction.parts)} is not modelled")
    name = instruction.kind
    if name in ("min", "max"):
        return _minmax(instruction)
    if name in ("fma", "mad"):
        return _fma(kind)
    return _BINARY.get(name) or _UNARY[name]


def _exact_quotient(instruction: Instruction, values: list, result: np.ndarray) -> np.ndarray:
    """Where the rounded result of a division or reciprocal is the true one, approximate forms give it too."""
    x, y = (np.float32(1), values[0]) if instruction.kind == "rcp" else (values[0], values[-1])
    if instruction.kind in ("sqrt", "rsqrt"):
        return result.astype(np.float64) ** 2 == values[0]
    return result.astype(np.float64) * y.astype(np.float64) == x.astype(np.float64)


def float_operation(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    kind = instruction.type
    values = [decode(machine.read(source, instruction.bits), kind) for source in instruction.operands[1:]]
    flush = instruction.has("ftz") and kind == "f32"
    if flush:
        values = [flush_subnormals(v) for v in values]
    result = _float_function(instruction, kind)(*values)
    if kind == "f32" and instruction.kind in _ROUNDED_TWIN and instruction.has("approx", "full"):
        result = np.where(_exact_quotient(instruction, values, result), result, nudge(result))
    if flush:
        result = flush_subnormals(result.astype(np.float32))
    machine.write(instruction.operands[0], encode(result, kind), active)


def pair_operation(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Two numbers in one register."""
    kind = PAIRS[instruction.type]
    function = _float_function(instruction, kind)
    registers = [machine.read(source, instruction.bits) for source in instruction.operands[1:]]
    if instruction.bits == 64:
        pairs = [np.ascontiguousarray(r).view(U32).reshape(-1, 2) for r in registers]
        halves = [encode(function(*(decode(p[:, side], kind) for p in pairs)), kind) for side in (0, 1)]
        value = np.ascontiguousarray(np.stack(halves, 1)).view(U64).reshape(-1)
    else:
        halves = [encode(function(*(decode(half(r), kind) for r in registers)), kind) for half in (low_half, high_half)]
        value = join_halves(*halves)
    machine.write(instruction.operands[0], value, active)


def integers(machine: Machine, instruction: Instruction, operand: str, bits: int | None = None) -> np.ndarray:
    """An integer operand with the signedness of the instruction."""
    if instruction.type[0] not in "sub" or instruction.type == "bf16":
        raise PtxError(f"type {instruction.type} is not modelled")
    bits = bits or instruction.bits
    value = machine.read(operand, bits)
    return value.view(SIGNED[bits]) if instruction.signed else value


def _wide(machine: Machine, instruction: Instruction) -> np.ndarray:
    bits = instruction.bits * 2
    dtype = SIGNED[bits] if instruction.signed else UNSIGNED[bits]
    a, b = (integers(machine, instruction, operand).astype(dtype) for operand in instruction.operands[1:3])
    result = a * b
    if instruction.kind == "mad":
        result = result + machine.read(instruction.operands[3], bits).view(dtype)
    return result.view(UNSIGNED[bits])


def _high(a: np.ndarray, b: np.ndarray, bits: int) -> np.ndarray:
    if bits == 64:
        products = (a.astype(object) * b.astype(object)) >> 64
        return np.array([int(p) & (2**64 - 1) for p in products], U64).view(a.dtype)
    wide = np.int64 if a.dtype.kind == "i" else U64
    return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)


def _integer_pairs(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """min, max and add of two 16-bit halves, which nothing carries between."""
    functions = {"min": np.minimum, "max": np.maximum, "add": np.add}
    if instruction.kind not in functions:
        raise PtxError(f"{instruction.kind}.{instruction.type} is not modelled")
    dtype = SIGNED[16] if instruction.signed else UNSIGNED[16]
    a, b = (machine.read(operand, 32).view(dtype) for operand in instruction.operands[1:])
    machine.write(instruction.operands[0], functions[instruction.kind](a, b).view(UNSIGNED[32]), active)


def integer_operation(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    bits, name = instruction.bits, instruction.kind
    if instruction.has("wide"):
        machine.write(instruction.operands[0], _wide(machine, instruction), active)
        return
    if instruction.has("sat", "cc"):
        raise PtxError("saturation and carries are not modelled")
    if instruction.type in ("s16x2", "u16x2"):
        _integer_pairs(machine, instruction, active)
        return
    values = [integers(machine, instruction, operand) for operand in instruction.operands[1:]]
    if name in ("mul", "mad"):
        result = _high(values[0], values[1], bits) if instruction.has("hi") else values[0] * values[1]
        if name == "mad":
            result = result + values[2]
    elif name in ("min", "max"):
        result = (np.minimum if name == "min" else np.maximum)(*values)
    elif name in ("neg", "abs"):
        result = (np.negative if name == "neg" else np.abs)(values[0])
    elif name in ("div", "rem"):
        a, b = values[0], np.where(values[1] == 0, values[0].dtype.type(1), values[1])
        remainder = np.fmod(a, b)
        result = remainder if name == "rem" else (a - remainder) // b
    else:
        result = _BINARY[name](*values)
    machine.write(instruction.operands[0], np.ascontiguousarray(result).view(UNSIGNED[bits]), active)


@handles("mad", "fma", "rem", "min", "max", *_BINARY, *_UNARY)
def arithmetic(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    if instruction.type in FLOATS:
        float_operation(machine, instruction, active)
    elif instruction.type in PAIRS:
        pair_operation(machine, instruction, active)
    else:
        integer_operation(machine, instruction, active)


@handles("copysign")
def copysign(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    sign, magnitude = (decode(machine.read(o, instruction.bits), instruction.type) for o in instruction.operands[1:])
    machine.write(instruction.operands[0], encode(np.copysign(magnitude, sign), instruction.type), active)


@handles("and", "or", "xor", "not")
def logic(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    values = [machine.read(o, instruction.bits) for o in instruction.operands[1:]]
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}[instruction.kind]
    machine.write(instruction.operands[0], function(*values), active)


@handles("shl", "shr")
def shift(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Amounts of the full width and more give zero (or the sign)."""
    bits = instruction.bits
    value, amount = machine.read(instruction.operands[1], bits), machine.read(instruction.operands[2], 32)
    too_far, amount = amount >= bits, np.minimum(amount, bits - 1)
    if instruction.kind == "shr" and instruction.signed:
        result = (value.view(SIGNED[bits]) >> amount.astype(SIGNED[bits])).view(value.dtype)
    else:
        amount = amount.astype(value.dtype)
        moved = value << amount if instruction.kind == "shl" else value >> amount
        result = np.where(too_far, value.dtype.type(0), moved)
    machine.write(instruction.operands[0], result, active)


@handles("shf")
def funnel_shift(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    low, high, amount = (machine.read(o, 32).astype(U64) for o in instruction.operands[1:])
    amount = amount & U64(31) if instruction.has("wrap") else np.minimum(amount, U64(32))
    both = low | (high << U64(32))
    result = (both << amount) >> U64(32) if instruction.has("l") else both >> amount
    machine.write(instruction.operands[0], result.astype(U32), active)


@handles("bfe", "bfi")
def bit_field(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    bits, operands = instruction.bits, instruction.operands
    dtype = UNSIGNED[bits]
    start, length = (machine.read(o, 32).astype(dtype) for o in operands[-2:])
    mask = (dtype(1) << length) - dtype(1)
    value = machine.read(operands[1], bits)
    if instruction.kind == "bfi":
        result = (machine.read(operands[2], bits) & ~(mask << start)) | ((value << start) & (mask << start))
    else:
        result = (value >> start) & mask
        if instruction.signed:
            spare = dtype(bits) - length
            result = ((result << spare).view(SIGNED[bits]) >> spare.view(SIGNED[bits])).view(dtype)
    machine.write(operands[0], result, active)


@handles("prmt", "lop3")
def byte_or_bit_table(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    values = [machine.read(o, 32) for o in instruction.operands[1:4]]
    if instruction.kind == "prmt":
        if len(instruction.parts) > 2:
            raise PtxError("prmt modes are not modelled")
        result = ptx_inline.prmt(*values)
    else:
        result = ptx_inline.lop3(*values, int(instruction.operands[4], 0))
    machine.write(instruction.operands[0], result, active)


@handles("popc", "clz", "brev")
def count_bits(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    width = instruction.bits
    function = {
        "popc": lambda v: v.bit_count() if hasattr(v, "bit_count") else bin(v).count("1"),
        "clz": lambda v: width - v.bit_length(),
        "brev": lambda v: int(f"{v:0{width}b}"[::-1], 2),
    }[instruction.kind]
    result = [function(int(v)) for v in machine.read(instruction.operands[1], width)]
    machine.write(instruction.operands[0], np.array(result, UNSIGNED[width] if instruction.kind == "brev" else U32), active)


@handles("mov", "cvta")
def move(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Registers, numbers, and packing or unpacking of ``{a, b}``."""
    target, source = instruction.operands
    bits = instruction.bits
    if source in machine.pending and not machine.finishing and target[0] != "{":
        # an accumulator that is still being computed changes its name; the copy happens with the product
        group = max(i for i, waiting in enumerate(machine.products) if any(source in targets for targets, _action in waiting))
        copied = active.copy()
        machine.defer([target], lambda: machine.write(target, machine.read(source, bits), copied), group)
    elif target[0] == "{":
        targets = parts_of(target)
        width = bits // len(targets)
        value = machine.read(source, bits)
        for index, register in enumerate(targets):
            part = (value >> value.dtype.type(width * index)) & value.dtype.type((1 << width) - 1)
            machine.write(register, part.astype({8: U16}.get(width, UNSIGNED[width])), active)
    elif source[0] == "{":
        sources = parts_of(source)
        width, dtype = bits // len(sources), UNSIGNED[bits]
        value = np.zeros(machine.threads, dtype)
        for index, register in enumerate(sources):
            value |= (machine.read(register, max(width, 16)).astype(dtype) & dtype((1 << width) - 1)) << dtype(width * index)
        machine.write(target, value, active)
    else:
        machine.write(target, machine.read(source, bits), active)
