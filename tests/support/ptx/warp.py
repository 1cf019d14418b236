"""What the threads of a warp do together: shuffles, votes, reductions, matrix loads and stores."""
from __future__ import annotations

import numpy as np

from .machine import SHARED_BASE, Machine, handles, parts_of
from .numbers import U8, U16, U32, U64, high_half, join_halves, low_half
from .program import Instruction, PtxError

LANES = np.arange(32)


def warps(register: np.ndarray) -> np.ndarray:
    return register.reshape(-1, 32)


@handles("shfl")
def shuffle(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """``shfl.sync.mode d|p, a, b, c``: c holds the clamp lane and the mask of segments; p tells whether the source was in range."""
    value, amount, control = (warps(machine.read(o, 32)) for o in instruction.operands[1:4])
    amount, control = amount.astype(np.int64), control.astype(np.int64)
    segment, clamp = (control >> 8) & 31, control & 31
    lane = np.broadcast_to(LANES, value.shape)
    last, first = (lane & segment) | (clamp & ~segment & 31), lane & segment
    mode = instruction.parts[2]
    source = {
        "up": lane - (amount & 31),
        "down": lane + (amount & 31),
        "bfly": lane ^ (amount & 31),
        "idx": first | (amount & 31 & ~segment),
    }[mode]
    valid = source >= last if mode == "up" else source <= last
    result = np.take_along_axis(value, np.where(valid, source, lane), 1)
    targets = instruction.operands[0].split("|")
    machine.write(targets[0], result.reshape(-1), active)
    if len(targets) > 1:
        machine.write(targets[1], valid.reshape(-1), active)


@handles("vote")
def vote(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    given = warps(machine.predicate(instruction.operands[1]))
    taking_part = warps(active)
    if instruction.has("ballot"):
        bits = ((given & taking_part).astype(U64) << LANES.astype(U64)).sum(1).astype(U32)
        machine.write(instruction.operands[0], np.repeat(bits, 32), active)
    elif instruction.has("any"):
        machine.write(instruction.operands[0], np.repeat((given & taking_part).any(1), 32), active)
    elif instruction.has("all"):
        machine.write(instruction.operands[0], np.repeat((given | ~taking_part).all(1), 32), active)
    else:
        raise PtxError("this vote is not modelled")


@handles("redux")
def reduce(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    if not active.all():
        raise PtxError("redux in a part of a block is not modelled")
    value = warps(machine.read(instruction.operands[1], 32))
    typed = value.view(np.int32) if instruction.signed else value
    name = instruction.parts[2]
    if name == "add":
        result = value.sum(1, dtype=U32)
    elif name in ("min", "max"):
        result = (typed.min(1) if name == "min" else typed.max(1)).view(U32)
    else:
        result = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[name].reduce(value, 1)
    machine.write(instruction.operands[0], np.repeat(result, 32), active)


def _matrix_count(instruction: Instruction) -> int:
    return next(count for word, count in (("x1", 1), ("x2", 2), ("x4", 4)) if instruction.has(word))


def _row_offsets(machine: Machine, operand: str, warp: int, matrix: int) -> np.ndarray:
    """Where the eight rows of an 8x8 matrix start in shared memory: lanes 8i to 8i+7 hold the addresses of matrix i."""
    offsets = warps(machine.address(operand))[warp, 8 * matrix : 8 * matrix + 8].astype(np.int64) - SHARED_BASE
    if (offsets < 0).any() or (offsets + 16 > len(machine.shared)).any() or (offsets % 16).any():
        raise PtxError("matrix row outside shared memory or misaligned")
    return offsets


def _element_positions(instruction: Instruction) -> tuple[tuple, tuple]:
    """Row and column of the two elements of every lane."""
    row, column = LANES // 4, 2 * (LANES % 4)
    if instruction.has("trans"):
        return (column, row), (column + 1, row)
    return (row, column), (row, column + 1)


@handles("ldmatrix")
def load_matrix(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    first, second = _element_positions(instruction)
    targets = parts_of(instruction.operands[0])
    out = np.zeros((len(targets), machine.threads // 32, 32), U32)
    for warp in range(machine.threads // 32):
        for index in range(_matrix_count(instruction)):
            offsets = _row_offsets(machine, instruction.operands[1], warp, index)
            matrix = np.stack([machine.shared[o : o + 16].view(U16) for o in offsets])
            out[index, warp] = join_halves(matrix[first], matrix[second])
    for register, value in zip(targets, out):
        machine.write(register, value.reshape(-1), active)


@handles("stmatrix")
def store_matrix(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    first, second = _element_positions(instruction)
    values = [warps(machine.read(register, 32)) for register in parts_of(instruction.operands[1])]
    for warp in range(machine.threads // 32):
        for index in range(_matrix_count(instruction)):
            matrix = np.zeros((8, 8), U16)
            matrix[first], matrix[second] = low_half(values[index][warp]), high_half(values[index][warp])
            for offset, row in zip(_row_offsets(machine, instruction.operands[0], warp, index), matrix):
                machine.shared[offset : offset + 16] = row.view(U8)
                machine.generic_writes[offset : offset + 16] = True


@handles("elect")
def elect(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    targets = instruction.operands[0].split("|")
    machine.write(targets[0], np.zeros(machine.threads, U32), active)
    machine.write(targets[-1], np.tile(LANES == 0, machine.threads // 32), active)
