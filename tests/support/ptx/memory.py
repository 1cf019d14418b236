"""Loads, stores, asynchronous copies, atomics, and the fences between them."""
from __future__ import annotations

import numpy as np

from .arithmetic import FLOATS, PAIRS
from .machine import Machine, handles, parts_of
from .numbers import SIGNED, U8, U16, UNSIGNED, decode, encode, high_half, join_halves, low_half
from .program import Instruction, PtxError


def space_of(instruction: Instruction) -> str:
    if instruction.has("global", "shared"):
        return "global" if instruction.has("global") else "shared"
    raise PtxError("only global and shared memory are modelled (local memory means a spill)")


def _register_bits(register: str) -> int:
    return 64 if register.startswith("%rd") else 16 if register.startswith("%rs") else 32


def _parameter(machine: Machine, instruction: Instruction) -> np.ndarray:
    value, bits = machine.parameters[instruction.operands[1].strip("[]")], instruction.bits
    if isinstance(value, float):
        value = int(encode(np.array([value]), {16: "f16", 32: "f32", 64: "f64"}[bits])[0])
    if instruction.signed:
        bits = max(bits, _register_bits(instruction.operands[0]))  # a wider register is filled with the sign
    return np.full(machine.threads, value & ((1 << bits) - 1), U16 if bits == 8 else UNSIGNED[bits])


@handles("ld")
def load(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Loads of 1 to 32 bytes per thread; the threads of a false predicate keep their registers."""
    if instruction.has("param"):
        machine.write(instruction.operands[0], _parameter(machine, instruction), np.ones(machine.threads, bool))
        return
    targets, size = parts_of(instruction.operands[0]), instruction.bits // 8
    data = machine.storage.access(space_of(instruction), machine.address(instruction.operands[1]), size * len(targets), active)
    for index, register in enumerate(targets):
        value = np.ascontiguousarray(data[:, index * size : (index + 1) * size]).view(UNSIGNED[instruction.bits])[:, 0]
        if instruction.signed:  # a wider register is filled with the sign
            width = _register_bits(register)
            value = value.view(SIGNED[instruction.bits]).astype(SIGNED[width]).view(UNSIGNED[width])
        elif instruction.bits == 8:
            value = value.astype(U16)
        machine.write(register, value, active)


@handles("st")
def store(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    sources, size = parts_of(instruction.operands[1]), instruction.bits // 8
    dtype = UNSIGNED[instruction.bits]
    columns = [np.ascontiguousarray(machine.read(s, max(instruction.bits, 8)).astype(dtype)).view(U8).reshape(-1, size) for s in sources]
    address = machine.address(instruction.operands[0])
    machine.storage.access(space_of(instruction), address, size * len(sources), active, np.concatenate(columns, 1))


def _copy_async(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Global to shared; the optional fourth operand is the number of bytes to read, the rest is zero."""
    operands = instruction.operands
    target, source, size = machine.address(operands[0]), machine.address(operands[1]), int(operands[2], 0)
    count = machine.read(operands[3], 32).astype(np.int64) if len(operands) > 3 else np.full(machine.threads, size)
    data = np.zeros((machine.threads, size), U8)
    for length in (int(c) for c in np.unique(count[active]) if c):
        chosen = active & (count == length)
        data[chosen, :length] = machine.storage.access("global", source, length, chosen)[chosen]
    copy = ("shared", target.copy(), size, active.copy(), data)
    if machine.lazy:
        machine.copies[-1].append(copy)
    else:
        machine.storage.access(*copy)


def _finish_copies(machine: Machine, keep: int) -> None:
    while len(machine.copies) > keep + 1:
        for copy in machine.copies.pop(0):
            machine.storage.access(*copy)


@handles("cp")
def asynchronous_copy(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    if instruction.starts("cp.async.ca", "cp.async.cg"):
        _copy_async(machine, instruction, active)
    elif instruction.starts("cp.async.commit_group"):
        machine.copies.append([])
    elif instruction.starts("cp.async.wait_group"):
        _finish_copies(machine, int(instruction.operands[0], 0))
    elif instruction.starts("cp.async.wait_all"):
        machine.copies.append([])
        _finish_copies(machine, 0)
    else:
        raise PtxError("bulk copies (TMA) are not modelled")


@handles("fence", "membar", "bar", "barrier")
def fence(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Nothing to wait for in lockstep: what they order is noted. The proxy fence makes generic writes to shared memory visible to wgmma."""
    if instruction.has("red"):
        raise PtxError("barriers with a reduction are not modelled")
    if instruction.starts("fence.proxy.async"):
        machine.storage.fence_proxy(active)
    elif instruction.kind in ("bar", "barrier") and not instruction.has("warp"):
        machine.storage.barrier(active)
    elif instruction.starts("fence.acq_rel.gpu", "fence.sc", "membar.gl"):
        machine.storage.order(active, release=True, acquire=True)


@handles("griddepcontrol", "setmaxnreg", "prefetch", "discard", "applypriority", "nanosleep")
def hint(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Without effect on values."""


@handles("createpolicy")
def cache_policy(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    machine.write(instruction.operands[0], np.zeros(machine.threads, np.uint64), active)


@handles("trap")
def trap(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    thread = int(np.nonzero(active)[0][0])
    raise PtxError(f"trap in block {machine.blocks[thread // machine.block_threads]}")


_INTEGER_ATOMICS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
}


def _combine(instruction: Instruction, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The new memory content of one element, as unsigned bits."""
    name = next((part for part in instruction.parts[1:] if part in _INTEGER_ATOMICS), None)
    if name is None:
        raise PtxError("this atomic is not modelled")
    kind = instruction.type
    if name == "exch":
        return new
    if kind in FLOATS:
        function = {"add": np.add, "min": np.fmin, "max": np.fmax}[name]
        return encode(function(decode(old, kind), decode(new, kind)), kind)
    if kind in PAIRS:
        half_kind = PAIRS[kind]
        halves = [encode(decode(half(old), half_kind) + decode(half(new), half_kind), half_kind) for half in (low_half, high_half)]
        return join_halves(*halves)
    if instruction.signed:
        old, new = old.view(SIGNED[instruction.bits]), new.view(SIGNED[instruction.bits])
    return _INTEGER_ATOMICS[name](old, new).view(UNSIGNED[instruction.bits])


@handles("atom", "red")
def atomic(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """Threads act one after another, in order of their number."""
    returns = instruction.kind == "atom"
    operands = instruction.operands[1:] if returns else instruction.operands
    bits, space = instruction.bits, space_of(instruction)
    size, dtype = bits // 8, UNSIGNED[bits]
    address = machine.address(operands[0])
    values = [machine.read(register, bits) for register in parts_of(operands[1])]
    swapped = machine.read(operands[2], bits) if instruction.has("cas") else None
    previous = np.zeros((len(values), machine.threads), dtype)
    for thread in np.nonzero(active)[0]:
        for index, value in enumerate(values):
            memory = machine.storage.cell(space, int(thread), int(address[thread]) + index * size, size)
            old = memory.view(dtype).copy() if memory.ctypes.data % size == 0 else np.frombuffer(memory.tobytes(), dtype)
            new = value[thread : thread + 1]
            previous[index, thread] = old[0]
            if swapped is None:
                memory[:] = np.ascontiguousarray(_combine(instruction, old, new)).view(U8)
            elif old[0] == new[0]:
                memory[:] = swapped[thread : thread + 1].copy().view(U8)
    machine.storage.order(active, release=instruction.has("release", "acq_rel"), acquire=instruction.has("acquire", "acq_rel"))
    if returns:
        for register, value in zip(parts_of(instruction.operands[0]), previous):
            machine.write(register, value, active)
