"""Evaluates the PTX text of an inline-asm block in numpy, so that ``tl.inline_asm_elementwise`` runs in the interpreter.

Elements are grouped along the last axis, ``pack`` at a time, little end first: what the compiler does where consecutive registers of
a thread hold consecutive elements of that axis. An asm block that mixes its elements depends on this; the PTX simulator shows whether
a compiled kernel really has that order.
"""
from __future__ import annotations

import re

import numpy as np

U32 = np.uint32
_UINT = {8: np.uint8, 16: np.uint16, 32: np.uint32}


def prmt(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """``prmt.b32``: pick four of the eight bytes of a and b; bit 3 of a selector nibble replicates the byte's sign."""
    pool = [(a >> U32(8 * i)) & U32(0xFF) for i in range(4)] + [(b >> U32(8 * i)) & U32(0xFF) for i in range(4)]
    pool = np.stack(np.broadcast_arrays(*pool))
    result = np.zeros(pool.shape[1:], U32)
    for i in range(4):
        nibble = np.broadcast_to((selector >> U32(4 * i)) & U32(0xF), result.shape)
        byte = np.take_along_axis(pool, (nibble & U32(7)).astype(np.int64)[None], 0)[0]
        sign = np.where(byte & U32(0x80), U32(0xFF), U32(0))
        result |= np.where(nibble & U32(8), sign, byte).astype(U32) << U32(8 * i)
    return result


def lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: int) -> np.ndarray:
    """``lop3.b32``: any function of three bits, given as its truth table."""
    result = np.zeros(np.broadcast(a, b, c).shape, U32)
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


def _half2(function):
    """A float64 function applied to both halves of f16x2 registers."""

    def apply(*registers):
        registers = [np.ascontiguousarray(r).astype(U32) for r in np.broadcast_arrays(*registers)]
        shape = registers[0].shape
        halves = [r.view(np.float16).reshape(shape + (2,)).astype(np.float64) for r in registers]
        return np.ascontiguousarray(function(*halves).astype(np.float16)).view(U32).reshape(shape)

    return apply


def _float32(function):
    def apply(*registers):
        return function(*(np.ascontiguousarray(r).view(np.float32) for r in np.broadcast_arrays(*registers))).astype(np.float32).view(U32)

    return apply


def _shift(function):
    """PTX clamps the amount of a shift: 32 and more give zero."""
    return lambda a, n: np.where(n > U32(31), U32(0), function(a, np.minimum(n, U32(31)))).astype(U32)


OPERATIONS = {
    "mov.b32": lambda a: a,
    "mov.u32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "not.b32": lambda a: ~a,
    "shl.b32": _shift(lambda a, n: a << n),
    "shr.u32": _shift(lambda a, n: a >> n),
    "shr.b32": _shift(lambda a, n: a >> n),
    "shr.s32": lambda a, n: (a.view(np.int32) >> np.minimum(n, U32(31)).astype(np.int32)).view(U32),
    "add.u32": lambda a, b: a + b,
    "add.s32": lambda a, b: a + b,
    "sub.u32": lambda a, b: a - b,
    "sub.s32": lambda a, b: a - b,
    "mul.lo.u32": lambda a, b: a * b,
    "bfe.u32": lambda a, start, length: (a >> start) & ((U32(1) << length) - U32(1)),
    "prmt.b32": prmt,
    "add.f16x2": _half2(lambda a, b: a + b),
    "sub.f16x2": _half2(lambda a, b: a - b),
    "mul.f16x2": _half2(lambda a, b: a * b),
    "fma.rn.f16x2": _half2(lambda a, b, c: a * b + c),
    "add.rn.f32": _float32(lambda a, b: a + b),
    "sub.rn.f32": _float32(lambda a, b: a - b),
    "mul.rn.f32": _float32(lambda a, b: a * b),
    "div.rn.f32": _float32(lambda a, b: a / b),
    "cvt.rni.f32.f32": _float32(np.rint),
}


def _to_registers(value: np.ndarray, shape: tuple[int, ...], pack: int) -> list[np.ndarray]:
    """One operand as 32-bit registers, each an array over the groups of ``pack`` elements."""
    value = np.ascontiguousarray(np.broadcast_to(value, shape))
    width = value.dtype.itemsize * 8
    groups = value.view(_UINT[width]).reshape(-1, pack)
    per_register = 32 // width
    registers = []
    for first in range(0, pack, per_register):
        register = np.zeros(groups.shape[0], U32)
        for element in range(min(per_register, pack - first)):
            register |= groups[:, first + element].astype(U32) << U32(width * element)
        registers.append(register)
    return registers


def _execute(asm: str, env: dict[str, np.ndarray], count: int) -> None:
    def operand(text: str) -> np.ndarray:
        if text in env:
            return env[text]
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text):
            return np.full(count, int(text, 0) & 0xFFFFFFFF, U32)
        raise KeyError(f"PTX operand {text!r} is read before it is written")

    for statement in re.sub(r"//.*", "", asm).replace("{", " ").replace("}", " ").split(";"):
        statement = statement.strip()
        if not statement or statement.startswith(".reg"):
            continue
        name, rest = statement.split(None, 1)
        target, *sources = (part.strip() for part in rest.split(","))
        if name == "lop3.b32":
            env[target] = lop3(*(operand(s) for s in sources[:3]), int(sources[3], 0))
        elif name in OPERATIONS:
            with np.errstate(all="ignore"):
                env[target] = OPERATIONS[name](*(operand(s) for s in sources)).astype(U32)
        else:
            raise NotImplementedError(f"inline PTX instruction {name}: add it to ptx_inline.OPERATIONS")


def run(asm: str, inputs: list[np.ndarray], out_bits: list[int], pack: int) -> list[np.ndarray]:
    """Evaluate ``asm`` ($0.. are the outputs, then the inputs) on arrays of 8, 16 or 32-bit elements.

    Returns one unsigned array per entry of ``out_bits`` (its width), of the inputs' broadcast shape.
    """
    shape = np.broadcast_shapes(*(value.shape for value in inputs))
    output_registers = [max(1, pack * width // 32) for width in out_bits]
    number, env = sum(output_registers), {}
    for value in inputs:
        for register in _to_registers(value, shape, pack):
            env[f"${number}"] = register
            number += 1
    count = len(env[f"${sum(output_registers)}"])
    _execute(asm, env, count)
    outputs, first = [], 0
    for width, registers in zip(out_bits, output_registers):
        per_register = 32 // width
        out = np.zeros((count, pack), _UINT[width])
        for element in range(pack):
            out[:, element] = (env[f"${first + element // per_register}"] >> U32(width * (element % per_register))).astype(out.dtype)
        outputs.append(out.reshape(shape))
        first += registers
    return outputs
