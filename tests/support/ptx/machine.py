"""The state of one simulated launch: registers of all threads of a block, memory with its checks, and the fetch loop.

Blocks run one after another. The threads of a block run in lockstep: those with the lowest program counter execute next, the others
wait, which reconverges structured control flow.
"""
from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from .numbers import U8, U16, U32, U64, UNSIGNED
from .program import Instruction, Program, PtxError

SHARED_BASE = 0x400
_REGISTER = re.compile(r"%(rs|rd|rq|r|p|fd|f|h|hh|b)\d+")
_REGISTER_TYPE = {"rs": U16, "h": U16, "rd": U64, "fd": U64, "p": np.bool_}
Handler = Callable[["Machine", Instruction, np.ndarray], None]
HANDLERS: dict[str, Handler] = {}


def handles(*kinds: str) -> Callable[[Handler], Handler]:
    """Register a function as the meaning of the instructions whose opcode starts with one of these words."""

    def register(function: Handler) -> Handler:
        for kind in kinds:
            HANDLERS[kind] = function
        return function

    return register


@functools.lru_cache(maxsize=65536)
def _literal(text: str) -> int | None:
    if text == "global_smem":
        return SHARED_BASE
    if re.fullmatch(r"0[fFdD][0-9a-fA-F]{8,16}", text):
        return int(text[2:], 16)
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
        return int(text.rstrip("U"), 0)
    return None


def parts_of(operand: str) -> list[str]:
    """The registers of a vector operand ``{a, b}``, or the operand itself."""
    return [part.strip() for part in operand[1:-1].split(",")] if operand[0] == "{" else [operand]


class Machine:
    """One launch of ``program``; see ``tests.support.ptx_sim.launch`` for the meaning of the arguments."""

    def __init__(self, program: Program, grid: Sequence[int], arguments: Sequence, num_warps: int, shared: int, lazy: bool, max_steps: int):
        self.program, self.lazy, self.shared_bytes, self.max_steps = program, lazy, shared, max_steps
        self.grid = (*grid, *(1,) * (3 - len(grid)))
        self.threads = num_warps * 32
        self.steps = self.unfenced = 0
        self.buffers: list[tuple[int, np.ndarray]] = []
        values = [self._bind(index, argument) for index, argument in enumerate(arguments)]
        values += [0] * (len(program.parameters) - len(values))  # Triton's scratch pointers, which nothing reads
        self.parameters = dict(zip(program.parameters, values))

    def _bind(self, index: int, argument):
        """A tensor gets an address range of its own that keeps its alignment; scalars stay."""
        if not isinstance(argument, torch.Tensor):
            return argument
        extent = sum((size - 1) * stride for size, stride in zip(argument.shape, argument.stride())) + 1 if argument.numel() else 0
        size = extent * argument.element_size()
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(argument.data_ptr())) if size else np.zeros(0, U8)
        base = ((index + 1) << 40) + argument.data_ptr() % 256
        self.buffers.append((base, memory))
        return base

    # ---- operands

    def _special(self, name: str) -> np.ndarray | None:
        thread = np.arange(self.threads, dtype=U32)
        by_name = {"%tid.x": thread, "%laneid": thread & U32(31), "%warpid": thread >> U32(5)}
        if name in by_name:
            return by_name[name]
        constant = {"%ntid.x": self.threads, "%ntid.y": 1, "%ntid.z": 1, "%tid.y": 0, "%tid.z": 0}
        for axis, (block, count) in zip("xyz", zip(self.block, self.grid)):
            constant[f"%ctaid.{axis}"], constant[f"%nctaid.{axis}"] = block, count
        return np.full(self.threads, constant[name], U32) if name in constant else None

    def read(self, operand: str, bits: int) -> np.ndarray:
        """An operand of every thread as an unsigned array of the given width (bool for 1)."""
        dtype = UNSIGNED[bits]
        if operand in self.pending and not self.finishing:
            self.finish_products()
        value = self.registers.get(operand)
        if value is None and operand[0] == "%":
            value = self._special(operand)
            if value is None:
                found = _REGISTER.fullmatch(operand)
                if not found:
                    raise PtxError(f"read of unset register {operand}")
                # LLVM may read an undefined register where the value does not matter
                value = np.zeros(self.threads, _REGISTER_TYPE.get(found[1], U32))
        if value is None:
            number = _literal(operand)
            if number is None:
                raise PtxError(f"operand {operand} is neither a register nor a number")
            return np.full(self.threads, bool(number)) if bits == 1 else np.full(self.threads, number & ((1 << bits) - 1), dtype)
        return value if value.dtype == dtype else value.astype(dtype)

    def predicate(self, operand: str) -> np.ndarray:
        """A predicate register of every thread; ``!`` in front negates."""
        value = self.read(operand.lstrip("!"), 1)
        return ~value if operand[0] == "!" else value

    def write(self, register: str, value: np.ndarray, active: np.ndarray) -> None:
        """Set a register in the active threads."""
        if register == "_":
            return
        if register in self.pending and not self.finishing:
            self.finish_products()
        old = self.registers.get(register)
        if old is None or active.all():
            self.registers[register] = np.ascontiguousarray(value).copy()
        else:
            self.registers[register] = np.where(active, value, old.astype(value.dtype))

    def address(self, operand: str) -> np.ndarray:
        """The byte address of ``[base+offset]`` in every thread."""
        found = re.fullmatch(r"\[\s*(%?[\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if not found:
            raise PtxError(f"address {operand}")
        base = self.read(found[1], 64)
        return base + U64(int(found[2], 0) & 0xFFFFFFFFFFFFFFFF) if found[2] else base

    # ---- what a lazy machine puts off

    def defer(self, targets: Sequence[str], action: Callable[[], None], group: int = -1) -> None:
        """Put off writing ``targets`` until the wait for the given group of products (the open one unless said)."""
        self.products[group].append((targets, action))
        self.pending.update(targets)

    def finish_products(self, keep: int | None = None) -> None:
        """Complete all but the last ``keep`` committed groups; all of them, where other instructions touch their registers.

        The assembler sees to such registers itself (it serialises), so that is no fault; shared memory it does not see.
        """
        self.finishing = True
        if keep is None:
            self.products.append([])
        while len(self.products) > (keep or 0) + 1:
            for _targets, action in self.products.pop(0):
                action()
        self.finishing = False
        self.pending = {register for group in self.products for targets, _action in group for register in targets}

    # ---- memory

    def access(self, space: str, address: np.ndarray, size: int, active: np.ndarray, store: np.ndarray | None = None) -> np.ndarray:
        """Load or store ``size`` bytes per active thread in "global" or "shared" memory; returns [threads, size] bytes.

        Raises PtxError for addresses outside every argument or outside the block's shared memory, and for misaligned ones.
        """
        if active.any() and (address[active] % U64(size)).any():
            thread = int(np.nonzero(active & (address % U64(size) != 0))[0][0])
            raise PtxError(f"misaligned {space} access of {size} bytes: {self._where(thread, address)}")
        return (self._global if space == "global" else self._shared)(address, size, active, store)

    def _where(self, thread: int, address: np.ndarray) -> str:
        return f"block {self.block} thread {thread} address {int(address[thread]):#x}"

    def _global(self, address, size, active, store):
        out = np.zeros((self.threads, size), U8)
        missing = active.copy()
        for base, memory in self.buffers:
            offset = (address - U64(base)).astype(np.int64)
            inside = missing & (offset >= 0) & (offset + size <= len(memory))
            if inside.any():
                index = offset[inside][:, None] + np.arange(size)
                if store is None:
                    out[inside] = memory[index]
                else:
                    memory[index] = store[inside]
                missing &= ~inside
        if missing.any():
            thread = int(np.nonzero(missing)[0][0])
            what = "load" if store is None else "store"
            raise PtxError(f"global {what} out of bounds: {self._where(thread, address)} ({int(missing.sum())} threads)")
        return out

    def _shared(self, address, size, active, store):
        out = np.zeros((self.threads, size), U8)
        offset = address.astype(np.int64) - SHARED_BASE
        if not active.any():
            return out
        if (offset[active] < 0).any() or (offset[active] + size > len(self.shared)).any():
            raise PtxError(f"shared memory access out of bounds: block {self.block}, {len(self.shared)} bytes")
        index = offset[active][:, None] + np.arange(size)
        if store is None:
            out[active] = self.shared[index]
        else:
            self.shared[index] = store[active]
            self.generic_writes[index] = True
        return out

    def cell(self, space: str, address: int, size: int) -> np.ndarray:
        """A writable view of ``size`` bytes at one address, for atomics."""
        if address % size:
            raise PtxError(f"misaligned {space} atomic of {size} bytes: block {self.block} address {address:#x}")
        for base, memory in [(SHARED_BASE, self.shared)] if space == "shared" else self.buffers:
            if base <= address <= base + len(memory) - size:
                return memory[address - base : address - base + size]
        raise PtxError(f"{space} atomic out of bounds: block {self.block} address {address:#x}")

    # ---- running

    def run(self, order: Callable[[int], Iterable[int]] | None = None) -> None:
        """Run every block; ``order`` maps their number to the sequence of indices (x fastest)."""
        x, y, z = self.grid
        blocks = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
        for index in range(len(blocks)) if order is None else order(len(blocks)):
            self._run_block(blocks[index])

    def _run_block(self, block: tuple[int, int, int]) -> None:
        self.block = block
        self.registers: dict[str, np.ndarray] = {}
        self.shared = np.full(max(self.shared_bytes, 16), 0xFF, U8)  # what was not written reads as NaN
        self.generic_writes = np.zeros(len(self.shared), bool)  # since the last fence.proxy.async
        self.copies: list[list] = [[]]  # groups of asynchronous copies not yet waited for (lazy only)
        self.products: list[list] = [[]]  # groups of wgmma not yet waited for (lazy only): written registers, action
        self.pending: set[str] = set()
        self.finishing = False
        code, end = self.program.code, len(self.program.code)
        counter = np.zeros(self.threads, np.int64)
        while (current := int(counter.min())) < end:
            here = counter == current
            instruction = code[current]
            active = here
            if instruction.predicate is not None:
                value = self.read(instruction.predicate, 1)
                active = here & (~value if instruction.negated else value)
            self.steps += 1
            if self.steps > self.max_steps:
                raise PtxError(f"more than {self.max_steps} instructions: an endless loop, or a block that waits for a later one")
            counter[here] = current + 1
            if instruction.kind == "bra":
                counter[active] = self.program.labels[instruction.operands[0]]
            elif instruction.kind in ("ret", "exit"):
                counter[active] = end
            elif active.any():
                self._execute(instruction, active)

    def _execute(self, instruction: Instruction, active: np.ndarray) -> None:
        handler = HANDLERS.get(instruction.kind)
        if handler is None:
            raise PtxError(f"not modelled: {instruction.text}")
        try:
            with np.errstate(all="ignore"):
                handler(self, instruction, active)
        except PtxError as error:
            raise PtxError(f"{error} [{instruction.text}]") from None
        except Exception as error:
            raise PtxError(f"{instruction.text}: {type(error).__name__}: {error}") from error
