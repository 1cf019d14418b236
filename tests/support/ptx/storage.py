"""Global and shared memory of a simulated launch, with their checks: bounds, alignment, and races between warps."""
from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from .numbers import U8, U64, units
from .program import PtxError
from .races import GlobalRaces, SharedRaces

SHARED_BASE = 0x400


class Storage:
    """What the tensors of a launch and the shared memory of the blocks that run now hold.

    Every tensor has an address range of its own, which keeps its alignment; every block finds its shared memory at SHARED_BASE.
    """

    def __init__(self, shared_bytes: int, num_warps: int):
        self.shared_bytes, self.num_warps, self.block_threads = max(shared_bytes, 16), num_warps, 32 * num_warps
        self.block_bytes = -(-self.shared_bytes // 16) * 16  # from one block's shared memory to the next: no access crosses a multiple
        self.buffers: list[tuple[int, np.ndarray]] = []
        self.global_races = GlobalRaces()

    def bind(self, index: int, argument):
        """The value of a kernel's argument: an address for a tensor."""
        if not isinstance(argument, torch.Tensor):
            return argument
        extent = sum((size - 1) * stride for size, stride in zip(argument.shape, argument.stride())) + 1 if argument.numel() else 0
        size = extent * argument.element_size()
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(argument.data_ptr())) if size else np.zeros(0, U8)
        base = ((index + 1) << 40) + argument.data_ptr() % 256
        self.buffers.append((base, memory))
        return base

    def start(self, blocks: Sequence[tuple[int, int, int]]) -> None:
        """Give the blocks that run next shared memory that nobody wrote."""
        self.blocks = blocks
        self.shared = np.full(len(blocks) * self.block_bytes, 0xFF, U8)  # what was not written reads as NaN
        self.generic_writes = np.zeros(len(self.shared), bool)  # since the last fence.proxy.async
        self.shared_races = SharedRaces(len(self.shared), self.num_warps)
        self.global_races.start(len(blocks), self.num_warps)

    def where(self, thread: int, address: int) -> str:
        block, thread = divmod(thread, self.block_threads)
        return f"block {self.blocks[block]} thread {thread} address {address:#x}"

    def access(self, space: str, address: np.ndarray, size: int, active: np.ndarray, store: np.ndarray | None = None) -> np.ndarray:
        """Load or store ``size`` bytes per active thread in "global" or "shared" memory; returns [threads, size] bytes.

        Raises PtxError for addresses outside every argument or outside the block's shared memory, for misaligned ones, and for bytes
        that another warp touched with nothing in between that orders the two.
        """
        out = np.zeros((len(active), size), U8)
        threads = np.nonzero(active)[0]
        address = address[threads]
        if (address % U64(size)).any():
            first = int(np.nonzero(address % U64(size))[0][0])
            raise PtxError(f"misaligned {space} access of {size} bytes: {self.where(threads[first], int(address[first]))}")
        if not len(threads):
            return out
        if space == "shared":
            self._access_shared(self.shared_offsets(threads, address, size), size, threads, out, store)
        else:
            self._access_global(address, size, threads, out, store)
        return out

    def _move(self, memory: np.ndarray, offset: np.ndarray, size: int, threads: np.ndarray, out: np.ndarray, store) -> None:
        first = int(offset[0]) % size
        elements, index = units(memory, size, first), (offset - first) // size
        if store is None:
            out[threads] = elements[index].view(U8).reshape(-1, size)
            return
        data = np.ascontiguousarray(store[threads])
        elements[index] = data.view(elements.dtype)[:, 0]
        if (elements[index].view(U8).reshape(-1, size) != data).any():
            raise PtxError("two threads store different values at one address")

    def _access_global(self, address, size, threads, out, store) -> None:
        missing = np.ones(len(threads), bool)
        for number, (base, memory) in enumerate(self.buffers):
            offset = (address - U64(base)).astype(np.int64)
            inside = missing & (offset >= 0) & (offset + size <= len(memory))
            if inside.any():
                every = inside.all()
                chosen, offset = (threads, offset) if every else (threads[inside], offset[inside])
                self.global_races.note(number, memory, offset, size, chosen // 32, None if store is None else store[chosen])
                self._move(memory, offset, size, chosen, out, store)
                if every:
                    return
                missing &= ~inside
        if missing.any():
            first = int(np.nonzero(missing)[0][0])
            what = "load" if store is None else "store"
            place = self.where(threads[first], int(address[first]))
            raise PtxError(f"global {what} out of bounds: {place} ({int(missing.sum())} threads)")

    def shared_offsets(self, threads: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
        """Where in ``shared`` the bytes at these threads' addresses begin."""
        offset = address.astype(np.int64) - SHARED_BASE
        if (offset < 0).any() or (offset + size > self.shared_bytes).any():
            block = self.blocks[threads[0] // self.block_threads]
            raise PtxError(f"shared memory access out of bounds: block {block}, {self.shared_bytes} bytes")
        return offset + threads // self.block_threads * self.block_bytes

    def _access_shared(self, offset, size, threads, out, store) -> None:
        self._note_shared(offset, size, threads // 32, None if store is None else store[threads])
        self._move(self.shared, offset, size, threads, out, store)

    def _note_shared(self, offset: np.ndarray, size: int, warps: np.ndarray, store: np.ndarray | None) -> None:
        warps = warps % self.num_warps  # of their block
        if store is None:
            self.shared_races.read(offset, size, warps)
        else:
            self.shared_races.write(self.shared, offset, size, warps, store)
            units(self.generic_writes.view(U8), size)[offset // size] = b"\1" * size

    def load_rows(self, offsets: np.ndarray, warps: np.ndarray) -> np.ndarray:
        """Rows of 16 bytes at offsets [warp, row] of shared memory, as [warp, row, 16]."""
        self._note_shared(offsets.reshape(-1), 16, np.repeat(warps, offsets.shape[1]), None)
        return units(self.shared, 16)[offsets // 16].view(U8).reshape(*offsets.shape, 16)

    def store_rows(self, offsets: np.ndarray, warps: np.ndarray, rows: np.ndarray) -> None:
        """The opposite; the rows of a warp are stored in order of their number."""
        rows = np.ascontiguousarray(rows.reshape(-1, 16))
        self._note_shared(offsets.reshape(-1), 16, np.repeat(warps, offsets.shape[1]), rows)
        elements = units(self.shared, 16)
        elements[offsets.reshape(-1) // 16] = rows.view(elements.dtype)[:, 0]

    def cell(self, space: str, thread: int, address: int, size: int) -> np.ndarray:
        """A writable view of ``size`` bytes at one thread's address, for atomics."""
        if address % size:
            raise PtxError(f"misaligned {space} atomic of {size} bytes: {self.where(thread, address)}")
        if space == "shared":
            offset = int(self.shared_offsets(np.array([thread]), np.array([address]), size)[0])
            return self.shared[offset : offset + size]
        for base, memory in self.buffers:
            if base <= address <= base + len(memory) - size:
                return memory[address - base : address - base + size]
        raise PtxError(f"{space} atomic out of bounds: {self.where(thread, address)}")

    def barrier(self, active: np.ndarray) -> None:
        """All warps of the blocks with active threads meet.

        Raises PtxError where a block's threads are not all there: hardware waits for them, or goes on without.
        """
        here = active.reshape(len(self.blocks), -1)
        if (here.any(1) != here.all(1)).any():
            raise PtxError("a barrier that only some threads of a block reach")
        blocks = here[:, 0]
        self.shared_races.meet(blocks)
        self.global_races.meet(blocks)

    def fence_proxy(self, active: np.ndarray) -> None:
        """What was stored to shared memory is visible to wgmma."""
        self.generic_writes.reshape(len(self.blocks), -1)[active.reshape(len(self.blocks), -1).any(1)] = False

    def order(self, active: np.ndarray, *, release: bool, acquire: bool) -> None:
        """A fence or an atomic of the active threads orders global memory between blocks."""
        self.global_races.order(np.unique(np.nonzero(active)[0] // 32), release, acquire)
