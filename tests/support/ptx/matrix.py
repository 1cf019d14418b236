"""Tensor-core products: ``mma.sync`` and ``wgmma``. Products and sums are exact in float64 and rounded once per instruction."""
from __future__ import annotations

import re

import numpy as np

from .machine import SHARED_BASE, Machine, handles, parts_of
from .numbers import U8, U32, UNSIGNED, decode, high_half, low_half
from .program import Instruction, PtxError

_BYTES = {"f16": 2, "bf16": 2, "s8": 1, "u8": 1, "e4m3": 1, "e5m2": 1, "tf32": 4}
_SWIZZLE_BYTES = {1: 128, 2: 64, 3: 32, 0: 16}
_SWIZZLE_MASK = {1: 7, 2: 3, 3: 1}
_GROUP, _IN_GROUP = np.arange(32) // 4, np.arange(32) % 4


def _numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    """Elements (unsigned, of their own width) as float64, which holds all of them exactly."""
    bits = np.ascontiguousarray(bits)
    if kind == "s8":
        return bits.view(np.int8).astype(np.float64)
    if kind == "u8":
        return bits.astype(np.float64)
    if kind == "tf32":
        return (bits & U32(0xFFFFE000)).view(np.float32).astype(np.float64)  # the low 13 bits are ignored
    return decode(bits, kind)


def _fragment(machine: Machine, registers: list[str], kind: str) -> np.ndarray:
    """Operand registers as [warp, lane, register, element]."""
    bits = np.stack([machine.read(r, 32) for r in registers], -1).reshape(machine.threads // 32, 32, len(registers))
    if _BYTES[kind] == 2:
        return _numbers(np.stack([low_half(bits), high_half(bits)], -1), kind)
    if _BYTES[kind] == 4:
        return _numbers(bits[..., None], kind)
    return _numbers(np.ascontiguousarray(bits)[..., None].view(U8), kind)


def _shape(instruction: Instruction) -> tuple[int, int, int]:
    found = next(m for part in instruction.parts if (m := re.fullmatch(r"m(\d+)n(\d+)k(\d+)", part)))
    return int(found[1]), int(found[2]), int(found[3])


def _rounded(total: np.ndarray, integer: bool) -> np.ndarray:
    return np.ascontiguousarray(total.astype(np.int64).astype(np.int32) if integer else total.astype(np.float32)).view(U32)


@handles("mma")
def warp_product(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """``mma.sync.m16n8k*``: A [16, K] row-major, B [K, 8], C and D [16, 8] over the 32 lanes of each warp."""
    result_type, a_type, b_type, c_type = instruction.parts[-4:]
    rows, columns, depth = _shape(instruction)
    if (rows, columns) != (16, 8) or c_type not in ("f32", "s32") or a_type not in _BYTES:
        raise PtxError("this shape or type of mma is not modelled")
    target, a_regs, b_regs, c_regs = (parts_of(o) for o in instruction.operands[:4])
    a_parts, b_parts = _fragment(machine, a_regs, a_type), _fragment(machine, b_regs, b_type)
    warps, per = machine.threads // 32, a_parts.shape[-1]
    a, b = np.zeros((warps, 16, depth)), np.zeros((warps, depth, 8))
    for element in range(per):
        for register in range(len(a_regs)):
            a[:, _GROUP + 8 * (register % 2), _IN_GROUP * per + element + 4 * per * (register // 2)] = a_parts[:, :, register, element]
        for register in range(len(b_regs)):
            b[:, _IN_GROUP * per + element + 4 * per * register, _GROUP] = b_parts[:, :, register, element]
    product, integer = a @ b, result_type == "s32"
    for index, register in enumerate(c_regs):
        carried = machine.read(register, 32).view(np.int32 if integer else np.float32).astype(np.float64)
        added = product[:, _GROUP + 8 * (index // 2), 2 * _IN_GROUP + index % 2].reshape(-1)
        machine.write(target[index], _rounded(carried + added, integer), active)


def _shared_tile(machine: Machine, descriptor: int, rows: int, depth: int, transposed: int, kind: str) -> np.ndarray:
    """The [rows, depth] operand that a wgmma matrix descriptor names, K-major unless ``transposed``."""
    size = _BYTES[kind]
    start = (descriptor & 0x3FFF) << 4
    leading, stride = ((descriptor >> 16) & 0x3FFF) << 4, ((descriptor >> 32) & 0x3FFF) << 4
    swizzle = (descriptor >> 62) & 3
    width = _SWIZZLE_BYTES[swizzle]
    r, k = np.meshgrid(np.arange(rows), np.arange(depth), indexing="ij")
    if transposed:
        per = width // size
        offset = (r // per) * leading + (r % per) * size + (k % 8) * width + (k // 8) * stride
    else:
        offset = (r // 8) * stride + (r % 8) * width + (k * size % width) + (k * size // width) * leading
    address = start + offset
    if swizzle:
        address = address ^ (((address >> 7) & _SWIZZLE_MASK[swizzle]) << 4)
    index = address[..., None] - SHARED_BASE + np.arange(size)
    if index.min() < 0 or index.max() >= len(machine.shared):
        raise PtxError("wgmma operand outside shared memory")
    machine.unfenced += int(machine.generic_writes[index].any())
    return _numbers(np.ascontiguousarray(machine.shared[index]).view(UNSIGNED[8 * size])[..., 0], kind)


def _register_tile(machine: Machine, registers: list[str], depth: int, kind: str) -> np.ndarray:
    """The A operand of wgmma in registers: [warp group, 64, depth]."""
    parts = _fragment(machine, registers, kind).reshape(machine.threads // 128, 4, 32, len(registers), -1)
    per = parts.shape[-1]
    tile = np.zeros((machine.threads // 128, 64, depth))
    for warp in range(4):
        for register in range(4):
            for element in range(per):
                row = 16 * warp + _GROUP + 8 * (register % 2)
                tile[:, row, per * _IN_GROUP + element + 4 * per * (register // 2)] = parts[:, warp, :, register, element]
    return tile


def _group_product(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """``wgmma.mma_async.m64nNk*``: D [64, N] += A [64, K] (registers or shared) times B [N, K] transposed (shared)."""
    kind, result_type = instruction.type, instruction.parts[-3]
    if result_type not in ("f32", "s32") or kind not in _BYTES or instruction.has("sp"):
        raise PtxError("this type of wgmma is not modelled")
    _, columns, depth = _shape(instruction)
    target, (a_operand, b_operand, scale, *immediate) = parts_of(instruction.operands[0]), instruction.operands[1:]
    immediate = [int(value) for value in immediate]
    sign_a, sign_b = immediate[:2] if len(immediate) >= 2 else (1, 1)
    transpose_b = immediate[-1] if len(immediate) >= 3 else 0
    transpose_a = immediate[2] if len(immediate) >= 4 else 0
    groups, integer = machine.threads // 128, result_type == "s32"
    carried = np.stack([machine.read(r, 32) for r in target], -1).view(np.int32 if integer else np.float32).astype(np.float64)
    keep = machine.read(scale, 1)[:, None]
    from_registers = _register_tile(machine, parts_of(a_operand), depth, kind) if a_operand[0] == "{" else None
    lane_sums = np.zeros((groups, 4, 32, len(target)))
    for group in range(groups):
        if not active[group * 128]:
            continue
        b = _shared_tile(machine, int(machine.read(b_operand, 64)[group * 128]), columns, depth, transpose_b, kind)
        if from_registers is not None:
            a = from_registers[group]
        else:
            a = _shared_tile(machine, int(machine.read(a_operand, 64)[group * 128]), 64, depth, transpose_a, kind)
        product = sign_a * sign_b * (a @ b.T)
        for warp in range(4):
            for index in range(len(target)):
                row, column = 16 * warp + _GROUP + 8 * ((index % 4) // 2), 8 * (index // 4) + 2 * _IN_GROUP + index % 2
                lane_sums[group, warp, :, index] = product[row, column]
    result = _rounded(np.where(keep, carried, 0) + lane_sums.reshape(machine.threads, -1), integer)
    for index, register in enumerate(target):
        machine.write(register, np.ascontiguousarray(result[:, index]), active)


@handles("wgmma")
def warpgroup(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """At issue, or, in a lazy machine, when the wait for its group lets it finish."""
    if instruction.starts("wgmma.mma_async"):
        if machine.lazy:
            machine.products[-1].append((instruction, active.copy()))
        else:
            _group_product(machine, instruction, active)
    elif instruction.starts("wgmma.commit_group"):
        machine.products.append([])
    elif instruction.starts("wgmma.wait_group"):
        while len(machine.products) > 1 + int(instruction.operands[0], 0):
            for pending in machine.products.pop(0):
                _group_product(machine, *pending)
    elif not instruction.starts("wgmma.fence"):
        raise PtxError("this wgmma instruction is not modelled")
