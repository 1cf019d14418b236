"""Tensor-core products: ``mma.sync`` and ``wgmma``. Products and sums are exact in float64 and rounded once per instruction."""
from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np

from .machine import Machine, handles, parts_of
from .numbers import U8, U32, UNSIGNED, decode, high_half, low_half
from .program import Instruction, PtxError
from .storage import SHARED_BASE

_BYTES = {"f16": 2, "bf16": 2, "s8": 1, "u8": 1, "e4m3": 1, "e5m2": 1, "tf32": 4}
_SWIZZLE_BYTES = {1: 128, 2: 64, 3: 32, 0: 16}
_SWIZZLE_MASK = {1: 7, 2: 3, 3: 1, 0: 0}
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


def _fragment(machine: Machine, registers: tuple[str, ...], kind: str) -> np.ndarray:
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


@functools.lru_cache(maxsize=4096)
def _tile_index(descriptor: int, swizzle: int, rows: int, depth: int, transposed: int, size: int) -> np.ndarray:
    """The bytes [rows, depth, size] in a block's shared memory that a wgmma matrix descriptor names; ``swizzle`` masks address bits.

    What its two offsets mean: PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout"; CUTLASS lists the same as canonical
    layouts (``make_gmma_desc``). Of operands that are not K-major they change places where nothing is swizzled.
    """
    start, width = (descriptor & 0x3FFF) << 4, _SWIZZLE_BYTES[(descriptor >> 62) & 3]
    leading, stride = ((descriptor >> 16) & 0x3FFF) << 4, ((descriptor >> 32) & 0x3FFF) << 4
    r, k = np.meshgrid(np.arange(rows), np.arange(depth), indexing="ij")
    if transposed:
        per = width // size
        along_r, along_k = (leading, stride) if swizzle else (stride, leading)
        offset = (r // per) * along_r + (r % per) * size + (k % 8) * width + (k // 8) * along_k
    else:
        offset = (r // 8) * stride + (r % 8) * width + (k * size % width) + (k * size // width) * leading
    address = start + offset
    return (address ^ (((address >> 7) & swizzle) << 4))[..., None] - SHARED_BASE + np.arange(size)


def _shared_tile(machine: Machine, group: int, descriptor: int, rows: int, depth: int, transposed: int, kind: str) -> np.ndarray:
    """The [rows, depth] operand of a warp group that a matrix descriptor names, K-major unless ``transposed``."""
    size, storage = _BYTES[kind], machine.storage
    index = _tile_index(descriptor, _SWIZZLE_MASK[(descriptor >> 62) & 3], rows, depth, transposed, size)
    if index.min() < 0 or index.max() >= storage.shared_bytes:
        raise PtxError("wgmma operand outside shared memory")
    index = index + group * 128 // storage.block_threads * storage.block_bytes
    storage.shared_races.read_by_all(index)
    machine.unfenced += int(storage.generic_writes[index].any())
    return _numbers(np.ascontiguousarray(storage.shared[index]).view(UNSIGNED[8 * size])[..., 0], kind)


def _register_tile(machine: Machine, registers: tuple[str, ...], depth: int, kind: str) -> np.ndarray:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Product:
    """One wgmma as issued: descriptors and flags are read then; registers and shared memory when it runs."""

    kind: str
    integer: bool
    shape: tuple[int, int, int]
    target: tuple[str, ...]
    a_registers: tuple[str, ...]
    a_descriptor: np.ndarray | None
    b_descriptor: np.ndarray
    keep: np.ndarray
    sign: int
    transpose: tuple[int, int]
    active: np.ndarray


def _issue(machine: Machine, instruction: Instruction, active: np.ndarray) -> _Product:
    kind, result_type = instruction.type, instruction.parts[-3]
    if result_type not in ("f32", "s32") or kind not in _BYTES or instruction.has("sp"):
        raise PtxError("this type of wgmma is not modelled")
    a_operand, b_operand, scale, *flags = instruction.operands[1:]
    immediate = [int(value) for value in flags]
    from_registers = a_operand[0] == "{"
    return _Product(
        kind=kind,
        integer=result_type == "s32",
        shape=_shape(instruction),
        target=parts_of(instruction.operands[0]),
        a_registers=parts_of(a_operand) if from_registers else (),
        a_descriptor=None if from_registers else machine.read(a_operand, 64).copy(),
        b_descriptor=machine.read(b_operand, 64).copy(),
        keep=machine.read(scale, 1).copy(),
        sign=immediate[0] * immediate[1] if len(immediate) >= 2 else 1,
        transpose=(immediate[2] if len(immediate) >= 4 else 0, immediate[-1] if len(immediate) >= 3 else 0),
        active=active.copy(),
    )


def _finish(machine: Machine, p: _Product) -> None:
    """``wgmma.mma_async.m64nNk*``: D [64, N] += A [64, K] (registers or shared) times B [N, K] transposed (shared)."""
    _, columns, depth = p.shape
    groups = machine.threads // 128
    carried = np.stack([machine.read(r, 32) for r in p.target], -1).view(np.int32 if p.integer else np.float32).astype(np.float64)
    tiles = _register_tile(machine, p.a_registers, depth, p.kind) if p.a_registers else None
    lane_sums = np.zeros((groups, 4, 32, len(p.target)))
    for group in range(groups):
        first = group * 128
        if not p.active[first]:
            continue
        b = _shared_tile(machine, group, int(p.b_descriptor[first]), columns, depth, p.transpose[1], p.kind)
        if tiles is not None:
            a = tiles[group]
        else:
            a = _shared_tile(machine, group, int(p.a_descriptor[first]), 64, depth, p.transpose[0], p.kind)
        product = p.sign * (a @ b.T)
        for warp in range(4):
            for index in range(len(p.target)):
                row, column = 16 * warp + _GROUP + 8 * ((index % 4) // 2), 8 * (index // 4) + 2 * _IN_GROUP + index % 2
                lane_sums[group, warp, :, index] = product[row, column]
    result = _rounded(np.where(p.keep[:, None], carried, 0) + lane_sums.reshape(machine.threads, -1), p.integer)
    for index, register in enumerate(p.target):
        machine.write(register, np.ascontiguousarray(result[:, index]), p.active)


@handles("wgmma")
def warpgroup(machine: Machine, instruction: Instruction, active: np.ndarray) -> None:
    """At issue, or, in a lazy machine, when the wait for its group lets it finish."""
    if instruction.starts("wgmma.mma_async"):
        product = _issue(machine, instruction, active)
        if machine.lazy:
            machine.defer(product.target, lambda: _finish(machine, product))
        else:
            _finish(machine, product)
    elif instruction.starts("wgmma.commit_group"):
        machine.products.append([])
    elif instruction.starts("wgmma.wait_group"):
        machine.finish_products(int(instruction.operands[0], 0))
    elif not instruction.starts("wgmma.fence"):
        raise PtxError("this wgmma instruction is not modelled")
