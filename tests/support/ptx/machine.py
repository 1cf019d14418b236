"""The state of one simulated launch: registers of all threads of the blocks that run, and the fetch loop.

Blocks that share nothing run together, others one after another. All threads run in lockstep: those with the lowest program counter
execute next, the others wait, which reconverges structured control flow.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .numbers import U16, U32, U64, UNSIGNED
from .program import Instruction, Program, PtxError
from .storage import SHARED_BASE, Storage

TOGETHER = 4096  # threads of blocks that run together: numpy's own time is small beside that of calling it
_REGISTER = re.compile(r"%(rs|rd|rq|r|p|fd|f|h|hh|b)\d+")
_REGISTER_TYPE = {"rs": U16, "h": U16, "rd": U64, "fd": U64, "p": np.bool_}
_ADDRESS = re.compile(r"\[\s*(%?[\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]")
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


@functools.lru_cache(maxsize=65536)
def parts_of(operand: str) -> tuple[str, ...]:
    """The registers of a vector operand ``{a, b}``, or the operand itself."""
    return tuple(part.strip() for part in operand[1:-1].split(",")) if operand[0] == "{" else (operand,)


@functools.lru_cache(maxsize=65536)
def _base_and_offset(operand: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(operand)
    if not found:
        raise PtxError(f"address {operand}")
    return found[1], int(found[2], 0) & 0xFFFFFFFFFFFFFFFF if found[2] else 0


class Machine:
    """One launch of ``program``; see ``tests.support.ptx_sim.launch`` for the meaning of the arguments.

    ``threads`` counts those of all blocks that run now, one block's after another's.
    """

    def __init__(self, program: Program, grid: Sequence[int], arguments: Sequence, num_warps: int, shared: int, lazy: bool, max_steps: int):
        self.program, self.lazy, self.max_steps = program, lazy, max_steps
        self.grid = (*grid, *(1,) * (3 - len(grid)))
        self.block_threads = num_warps * 32
        self.steps = self.unfenced = 0
        self.storage = Storage(shared, num_warps)
        values = [self.storage.bind(index, argument) for index, argument in enumerate(arguments)]
        values += [0] * (len(program.parameters) - len(values))  # Triton's scratch pointers, which nothing reads
        self.parameters = dict(zip(program.parameters, values))

    # ---- operands

    def _special(self, name: str) -> np.ndarray | None:
        thread = np.tile(np.arange(self.block_threads, dtype=U32), len(self.blocks))
        by_name = {"%tid.x": thread, "%laneid": thread & U32(31), "%warpid": thread >> U32(5)}
        if name in by_name:
            return by_name[name]
        of_block = dict(zip(("%ctaid.x", "%ctaid.y", "%ctaid.z"), zip(*self.blocks)))
        if name in of_block:
            return np.repeat(np.array(of_block[name], U32), self.block_threads)
        constant = {"%ntid.x": self.block_threads, "%ntid.y": 1, "%ntid.z": 1, "%tid.y": 0, "%tid.z": 0}
        constant |= dict(zip(("%nctaid.x", "%nctaid.y", "%nctaid.z"), self.grid))
        return np.full(self.threads, constant[name], U32) if name in constant else None

    def _constant(self, operand: str, bits: int) -> np.ndarray:
        """What is no register of the program: a special register, a number, or an undefined value."""
        dtype = UNSIGNED[bits]
        if operand[0] == "%":
            value = self._special(operand)
            if value is None:
                found = _REGISTER.fullmatch(operand)
                if not found:
                    raise PtxError(f"read of unset register {operand}")
                # LLVM may read an undefined register where the value does not matter
                return np.zeros(self.threads, _REGISTER_TYPE.get(found[1], U32)).astype(dtype)
            return value.astype(dtype)
        number = _literal(operand)
        if number is None:
            raise PtxError(f"operand {operand} is neither a register nor a number")
        return np.full(self.threads, bool(number)) if bits == 1 else np.full(self.threads, number & ((1 << bits) - 1), dtype)

    def read(self, operand: str, bits: int) -> np.ndarray:
        """An operand of every thread as an unsigned array of the given width (bool for 1); not to be written to."""
        if operand in self.pending and not self.finishing:
            self.finish_products()
        value = self.registers.get(operand)
        if value is None:
            value = self.constants.get((operand, bits))
            if value is None:
                value = self.constants[operand, bits] = self._constant(operand, bits)
                value.flags.writeable = False
            return value
        dtype = UNSIGNED[bits]
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
        if old is None or active is self.everyone or active.all():
            self.registers[register] = np.ascontiguousarray(value)
        else:
            self.registers[register] = np.where(active, value, old.astype(value.dtype))

    def address(self, operand: str) -> np.ndarray:
        """The byte address of ``[base+offset]`` in every thread."""
        base, offset = _base_and_offset(operand)
        address = self.read(base, 64)
        return address + U64(offset) if offset else address

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

    # ---- running

    def run(self, order: Callable[[int], Iterable[int]] | None = None) -> None:
        """Run every block; ``order`` maps their number to the sequence of indices (x fastest)."""
        x, y, z = self.grid
        blocks = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
        apart = order is not None or self.lazy or self.program.communicates
        together = 1 if apart else max(1, TOGETHER // self.block_threads)
        blocks = blocks if order is None else [blocks[index] for index in order(len(blocks))]
        with np.errstate(all="ignore"):
            for first in range(0, len(blocks), together):
                self._run(blocks[first : first + together])

    def _run(self, blocks: list[tuple[int, int, int]]) -> None:
        self.blocks, self.threads = blocks, self.block_threads * len(blocks)
        self.everyone = np.ones(self.threads, bool)
        self.registers: dict[str, np.ndarray] = {}
        self.constants: dict[tuple[str, int], np.ndarray] = {}
        self.storage.start(blocks)
        self.copies: list[list] = [[]]  # groups of asynchronous copies not yet waited for (lazy only)
        self.products: list[list] = [[]]  # groups of wgmma not yet waited for (lazy only): written registers, action
        self.pending: set[str] = set()
        self.finishing = False
        code, end = self.program.code, len(self.program.code)
        at, apart = 0, None  # the program counter of all threads, or, where they differ, of each
        while at < end:
            instruction = code[at]
            active = here = self.everyone if apart is None else apart == at
            if instruction.predicate is not None:
                value = self.read(instruction.predicate, 1)
                active = here & (~value if instruction.negated else value)
            self.steps += 1
            if self.steps > self.max_steps:
                raise PtxError(f"more than {self.max_steps} instructions: an endless loop, or a block that waits for a later one")
            kind = instruction.kind
            if kind in ("bra", "ret", "exit"):
                goal = self.program.labels[instruction.operands[0]] if kind == "bra" else end
                apart = np.where(active, goal, np.where(here, at + 1, at if apart is None else apart))
            else:
                if apart is not None:
                    apart[here] = at + 1
                if active is here or active.any():
                    self._execute(instruction, active)
            if apart is None:
                at += 1
            else:
                at = int(apart.min())
                if at == apart.max():
                    apart = None

    def _execute(self, instruction: Instruction, active: np.ndarray) -> None:
        handler = HANDLERS.get(instruction.kind)
        if handler is None:
            raise PtxError(f"not modelled: {instruction.text}")
        try:
            handler(self, instruction, active)
        except PtxError as error:
            raise PtxError(f"{error} [{instruction.text}]") from None
        except Exception as error:
            raise PtxError(f"{instruction.text}: {type(error).__name__}: {error}") from error
