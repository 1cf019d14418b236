"""What the threads of a warp do together: shuffles, votes, reductions, matrix loads and stores."""
from __future__ import annotations

import numpy as np

from .machine import Machine, handles, parts_of
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
    if (warps(active).any(1) != warps(active).all(1)).any():
        raise PtxError("redux in a part of a warp is not modelled")
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


def _row_offsets(machine: Machine, operand: str, matrix: int, active: np.ndarray) -> np.ndarray:
    """Where in shared memory the eight rows of an 8x8 matrix start, per active warp: lanes 8i to 8i+7 hold the addresses of matrix i."""
    threads = np.arange(machine.threads).reshape(-1, 32)[warps(active).any(1), 8 * matrix : 8 * matrix + 8]
    offsets = machine.storage.shared_offsets(threads.reshape(-1), machine.address(operand)[threads.reshape(-1)], 16)
    if (offsets % 16).any():
        raise PtxError("matrix row misaligned")
    return offsets.reshape(-1, 8)


def _element_positions(instruction: Instruction) -> tuple[tuple, tuple]:
    """Row and column of the two elements of every lane."""
    row, column = LANES // 4, 2 * (LANES % 4)
    if instruction.has("trans"):
        return (column, row), (column + 1, row)
    return (row, column), (row, column + 1)


@handles("ldmatrix")
def load_matrix(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Rows of 16 bytes; active lanes hold their addresses, the whole warp gets the elements."""
    first, second = _element_positions(instruction)
    here = warps(active).any(1)
    targets, loaded = parts_of(instruction.operands[0]), []
    for index in range(len(targets)):
        rows = machine.storage.load_rows(_row_offsets(machine, instruction.operands[1], index, active), np.nonzero(here)[0])
        matrix = rows.view(U16)  # [warp, row, column]
        value = np.zeros((machine.threads // 32, 32), U32)
        value[here] = join_halves(matrix[(slice(None), *first)], matrix[(slice(None), *second)])
        loaded.append(value.reshape(-1))
    for register, value in zip(targets, loaded):  # only now: one may hold the addresses
        machine.write(register, value, active)


@handles("stmatrix")
def store_matrix(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    first, second = _element_positions(instruction)
    here = warps(active).any(1)
    for index, register in enumerate(parts_of(instruction.operands[1])):
        value = warps(machine.read(register, 32))[here]
        matrix = np.zeros((len(value), 8, 8), U16)
        matrix[(slice(None), *first)], matrix[(slice(None), *second)] = low_half(value), high_half(value)
        machine.storage.store_rows(_row_offsets(machine, instruction.operands[0], index, active), np.nonzero(here)[0], matrix.view(U8))


@handles("elect")
def elect(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    targets = instruction.operands[0].split("|")
    machine.write(targets[0], np.zeros(machine.threads, U32), active)
    machine.write(targets[-1], np.tile(LANES == 0, machine.threads // 32), active)
