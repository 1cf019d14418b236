"""Accesses of two warps to one byte with nothing in between that orders them: what runs here in lockstep, hardware runs in any order.

A store that leaves a byte as it is counts as none: several warps may hold and store the same value.
"""
from __future__ import annotations

import numpy as np

from .numbers import U8, units
from .program import PtxError


def _get(shadow: np.ndarray, offset: np.ndarray, size: int) -> np.ndarray:
    """Shadow items of the ``size`` bytes from each offset on, [accesses, size]; all offsets are equal modulo ``size``."""
    first = int(offset[0]) % size
    return units(shadow, size, first)[(offset - first) // size].view(shadow.dtype).reshape(-1, size)


def _set(shadow: np.ndarray, offset: np.ndarray, size: int, value: np.ndarray) -> None:
    first = int(offset[0]) % size
    elements = units(shadow, size, first)
    elements[(offset - first) // size] = np.ascontiguousarray(value, shadow.dtype).view(elements.dtype)[:, 0]


class SharedRaces:
    """Which warps of its block read and wrote each byte of shared memory since the last barrier (a bit each; warps beyond 8 share bits)."""

    def __init__(self, size: int, num_warps: int):
        self.num_warps = num_warps
        self.readers, self.writers = np.zeros(size, U8), np.zeros(size, U8)

    def _note(self, shadow: np.ndarray, offset: np.ndarray, size: int, warps: np.ndarray) -> None:
        for warp in range(self.num_warps):
            if len(mine := offset[warps == warp]):
                _set(shadow, mine, size, _get(shadow, mine, size) | U8(1 << warp % 8))

    def read(self, offset: np.ndarray, size: int, warps: np.ndarray) -> None:
        mine, writers = (U8(1) << (warps % 8).astype(U8))[:, None], _get(self.writers, offset, size)
        if ((writers != 0) & (writers & mine == 0)).any():
            raise PtxError("race: shared memory that another warp wrote is read with no barrier in between")
        self._note(self.readers, offset, size, warps)

    def write(self, shared: np.ndarray, offset: np.ndarray, size: int, warps: np.ndarray, store: np.ndarray) -> None:
        mine = (U8(1) << (warps % 8).astype(U8))[:, None]
        touched = (_get(self.readers, offset, size) | _get(self.writers, offset, size)) & ~mine
        if ((touched != 0) & (_get(shared, offset, size) != store)).any():
            raise PtxError("race: shared memory that another warp reads or wrote is overwritten with no barrier in between")
        self._note(self.writers, offset, size, warps)

    def read_by_all(self, index: np.ndarray) -> None:
        """A warp group's matrix instruction reads these bytes."""
        if self.writers[index].any():
            raise PtxError("race: shared memory is an operand of wgmma with no barrier after it was written")
        self.readers[index] = 0xFF

    def meet(self, blocks: np.ndarray) -> None:
        for shadow in (self.readers, self.writers):
            shadow.reshape(len(blocks), -1)[blocks] = 0


class GlobalRaces:
    """Which warp of the launch stored each byte of global memory last, and when.

    Warps of a block are ordered by barriers. Blocks are ordered by a fence or atomic that releases what was stored, and a later one that
    acquires; either holds for its own warp at once and for the others of its block from barrier to barrier. Atomics themselves are no
    stores. Time counts accesses.
    """

    def __init__(self) -> None:
        self.time = 1
        self.last: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of each buffer that was stored to: warp, time of every byte
        self.before = 0  # warps of blocks that ran earlier
        self.released = np.zeros(0, np.int64)  # of every warp: what is at most that old is released
        self.now = 0

    def start(self, blocks: int, num_warps: int) -> None:
        self.before += self.now
        self.now, self.num_warps = blocks * num_warps, num_warps
        self.released = np.concatenate((self.released, np.zeros(self.now, np.int64)))
        self.met = np.zeros(blocks, np.int64)  # the last barrier
        self.acquired = np.zeros(self.now, np.int64)  # the last acquire that holds for a warp

    def note(self, number: int, memory: np.ndarray, offset: np.ndarray, size: int, warps: np.ndarray, store: np.ndarray | None) -> None:
        """These warps (of those running now) load or store these bytes of buffer ``number``."""
        self.time += 1
        if number not in self.last:
            if store is None:
                return
            self.last[number] = np.full(len(memory), -1, np.int32), np.zeros(len(memory), np.int64)
        last, times = self.last[number]
        writer, time = _get(last, offset, size), _get(times, offset, size)
        other = (writer >= 0) & (writer != (warps + self.before)[:, None])
        if store is not None:
            other &= _get(memory, offset, size) != store
        if other.any() and not self._ordered(writer, time, warps)[other].all():
            what = "read" if store is None else "overwritten"
            raise PtxError(f"race: global memory that another warp stored is {what} with nothing in between that orders them")
        if store is not None:
            _set(last, offset, size, np.repeat(warps[:, None] + self.before, size, 1))
            _set(times, offset, size, np.full((len(offset), size), self.time))

    def _ordered(self, writer: np.ndarray, time: np.ndarray, warps: np.ndarray) -> np.ndarray:
        block = (warps // self.num_warps)[:, None]
        same_block = (writer - self.before) // self.num_warps == block
        of_others = (self.released[np.maximum(writer, 0)] >= time) & (self.acquired[warps][:, None] > time)
        return np.where(same_block, self.met[block] > time, of_others)

    def meet(self, blocks: np.ndarray) -> None:
        self.time += 1
        self.met[blocks] = self.time
        acquired = self.acquired.reshape(len(blocks), -1)
        acquired[blocks] = acquired[blocks].max(1, keepdims=True)

    def order(self, warps: np.ndarray, release: bool, acquire: bool) -> None:
        """A fence or an atomic of these warps."""
        self.time += 1
        if release:
            for warp in warps:
                block = warp // self.num_warps
                first = self.before + block * self.num_warps
                self.released[first : first + self.num_warps] = np.maximum(self.released[first : first + self.num_warps], self.met[block])
                self.released[self.before + warp] = self.time
        if acquire:
            self.acquired[warps] = self.time
