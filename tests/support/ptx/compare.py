"""Comparisons, and selection by their results."""
from __future__ import annotations

import numpy as np

from .arithmetic import FLOATS, PAIRS, integers
from .machine import Machine, handles
from .numbers import decode, flush_subnormals, high_half, low_half
from .program import Instruction, PtxError


@handles("selp")
def select(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    target, yes, no, predicate = instruction.operands
    bits = instruction.bits
    machine.write(target, np.where(machine.predicate(predicate), machine.read(yes, bits), machine.read(no, bits)), active)


def _compare(word: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    unordered = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(a.shape, bool)
    table = {
        "eq": lambda: a == b,
        "ne": lambda: (a != b) & ~unordered,
        "lt": lambda: a < b,
        "le": lambda: a <= b,
        "gt": lambda: a > b,
        "ge": lambda: a >= b,
        "lo": lambda: a < b,
        "ls": lambda: a <= b,
        "hi": lambda: a > b,
        "hs": lambda: a >= b,
        "equ": lambda: (a == b) | unordered,
        "neu": lambda: (a != b) | unordered,
        "ltu": lambda: ~(a >= b),
        "leu": lambda: ~(a > b),
        "gtu": lambda: ~(a <= b),
        "geu": lambda: ~(a < b),
        "num": lambda: ~unordered,
        "nan": lambda: unordered,
    }
    return table[word]()


def _set_pair(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Two comparisons at once: p is that of the lower halves, q of the upper."""
    kind, targets = PAIRS[instruction.type], instruction.operands[0].split("|")
    a, b = (machine.read(o, instruction.bits) for o in instruction.operands[1:3])
    if instruction.bits == 64 or len(targets) != 2 or instruction.has("and", "or", "xor"):
        raise PtxError("this comparison of pairs is not modelled")
    for target, half in zip(targets, (low_half, high_half)):
        machine.write(target.strip(), _compare(instruction.parts[1], decode(half(a), kind), decode(half(b), kind)), active)


@handles("setp")
def set_predicate(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """``setp.cmp[.and|.or|.xor].type p[|q], a, b[, c]``; q is the complement of the comparison."""
    kind, bits, operands = instruction.type, instruction.bits, instruction.operands
    if kind in PAIRS:
        _set_pair(machine, instruction, active)
        return
    if kind in FLOATS:
        a, b = (decode(machine.read(o, bits), kind) for o in operands[1:3])
        if instruction.has("ftz"):
            a, b = flush_subnormals(a), flush_subnormals(b)
    else:
        a, b = (integers(machine, instruction, o) for o in operands[1:3])
    result = _compare(instruction.parts[1], a, b)
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(instruction.parts[2])
    targets = operands[0].split("|")
    for target, value in zip(targets, (result, ~result)):
        machine.write(target.strip(), combine(value, machine.predicate(operands[3])) if combine else value, active)
