"""Floor 3. The end of a fused matmul: split-K in one launch, then the epilogue.

Partial sums go to the workspace; the program that arrives last adds them in a fixed order and stores the result, so that a result does
not depend on which came last.
"""
from __future__ import annotations

import threading
from typing import NamedTuple

import torch

from .._triton import jit, tl
from ..errors import InvalidProblemError
from .launcher import current_stream
from .numerics import cast

# Split-K is for matrices with few tiles; its counters live in one small buffer per stream.
MOST_SPLIT_TILES = 4096


@jit
def finish(
    acc, m, n, M, N, bias_ptr, residual_ptr, out_ptr, residual_row, residual_col, bias_step,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """out[m, n] = activation(acc^T / FACTOR + bias) + residual, cast once.

    GATED: rows n are some below N / 2 and then, in the same order, those N / 2 further on, which multiply the activation of the former.
    """
    if FACTOR != 1.0:
        acc = acc * (1.0 / FACTOR)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n * bias_step, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if GATED:
        gate, up = tl.split(acc.reshape(2, acc.shape[0] // 2, acc.shape[1]).trans(1, 2, 0))
        acc = ACTIVATION(gate) * up
        n, _ = tl.split(n.reshape(2, n.shape[0] // 2).trans(1, 0))
        N = N // 2
    elif ACTIVATION is not None:
        acc = ACTIVATION(acc)
    mask = (m < M)[None, :] & (n < N)[:, None]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + m[None, :] * residual_row + n[:, None] * residual_col, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + m[None, :] * N + n[:, None], cast(acc, out_ptr.dtype.element_ty), mask=mask)


@jit
def finish_split(
    acc, m, n, M, N, split, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr, residual_row, residual_col, bias_step, partial_size,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, FACTOR: tl.constexpr, SPLIT_K: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """``finish`` of the sum over the programs (program_id(0), 0 .. SPLIT_K - 1), of which this is ``split``.

    AT_ONCE: partial sums that the last one loads before it waits for them; divides SPLIT_K where it is less.
    """
    if SPLIT_K == 1:
        finish(acc, m, n, M, N, bias_ptr, residual_ptr, out_ptr, residual_row, residual_col, bias_step,
               ACTIVATION, GATED, FACTOR)  # fmt: skip
    else:
        mask = (m < M)[None, :] & (n < N)[:, None]
        if acc.shape[0] * acc.shape[1] >= 2048:  # 64-bit offsets of so many sums would spill, and fewer than 2**31 are split
            at = partial_ptr + (m.to(tl.int32)[None, :] * N + n.to(tl.int32)[:, None])
        else:
            at = partial_ptr + m[None, :] * N + n[:, None]
        tl.store(at + split.to(tl.int64) * partial_size, acc, mask=mask)
        tl.debug_barrier()  # every thread's partial sums precede the release below
        counter = counter_ptr + tl.program_id(0)
        arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLIT_K - 1:  # the last one adds, in a fixed order
            tl.atomic_xchg(counter, 0, sem="relaxed")  # for the next launch, which starts after this one
            total = tl.zeros(acc.shape, tl.float32)
            if AT_ONCE < SPLIT_K:  # a loop whose end the compiler does not know, or it would load all of them first, and spill
                for first in tl.range(0, tl.num_programs(1), AT_ONCE):
                    for i in tl.static_range(AT_ONCE):
                        total += tl.load(at + (first + i) * partial_size, mask=mask, other=0.0, cache_modifier=".cg")
            else:
                for i in tl.static_range(SPLIT_K):
                    total += tl.load(at + i * partial_size, mask=mask, other=0.0, cache_modifier=".cg")
            finish(total, m, n, M, N, bias_ptr, residual_ptr, out_ptr, residual_row, residual_col, bias_step,
                   ACTIVATION, GATED, FACTOR)  # fmt: skip


def sums_at_once(config: dict[str, int]) -> int:
    """AT_ONCE of :func:`finish_split` for a tile ``[BLOCK_N, BLOCK_M]``: 8 at most, and those that 128 registers of a thread hold.

    64 of them with 8 warps, which leaves two programs per multiprocessor.
    """
    registers = 64 if config["num_warps"] == 8 else 128
    few = min(8, max(1, registers * 32 * config["num_warps"] // (config["BLOCK_N"] * config["BLOCK_M"])))
    return few if config["SPLIT_K"] % few == 0 else config["SPLIT_K"]


def workspace_size(m: int, n: int, config: dict[str, int]) -> int:
    """Bytes of partial sums; any contents will do."""
    return 4 * config["SPLIT_K"] * m * n if config["SPLIT_K"] > 1 else 0


def partial_sums(workspace: torch.Tensor | None, sums: int, tiles: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``sums`` float32 at the start of the caller's workspace (contiguous), or this stream's own; and a counter a tile.

    Raises:
        InvalidProblemError: a workspace whose address 16 does not divide; sums are stored 16 bytes at a time.
    """
    if workspace is not None and workspace.data_ptr() % 16:
        raise InvalidProblemError("workspace must start at a multiple of 16 bytes; torch.empty gives one that does")
    index = device.index if device.type == "cuda" else None
    stream = None if index is None else current_stream(index)
    own, counters = scratch(device, index, stream, 0 if workspace is not None else sums, tiles).tensors
    return own if workspace is None else workspace.view(-1).view(torch.uint8)[: 4 * sums].view(torch.float32), counters


class GraphCounters:
    """Counters of one GPU for products in CUDA graphs: zeros made ahead, since to make them inside would be one launch more per product.

    A part is never given out twice: graphs may be replayed side by side, and at any time, so that it is never given back either.
    """

    CHUNK = 2**20  # 4 MiB: 8192 captured products of 128 tiles

    def __init__(self, device: torch.device):
        self._device, self._chunks, self._left, self._lock = device, [], 0, threading.Lock()

    def refill(self) -> None:
        """Have enough for a capture to come; not while one is under way."""
        with self._lock:
            if self._left < self.CHUNK // 2:
                self._chunks.append(torch.zeros(self.CHUNK, dtype=torch.int32, device=self._device))
                self._left = self.CHUNK
                int(self._chunks[-1][0])  # wait: no stream that replays a graph knows of this one

    def take(self, tiles: int) -> torch.Tensor:
        """``tiles`` zeros; where none are left, made by the graph in every replay."""
        size = -(-tiles // 32) * 32  # lines of 128 bytes
        with self._lock:
            if size > self._left:
                return torch.zeros(tiles, dtype=torch.int32, device=self._device)
            first = self.CHUNK - self._left
            self._left -= size
            return self._chunks[-1][first : first + tiles]


class Scratch(NamedTuple):
    """What split-K adds up in: sums and counters, and where they are."""

    tensors: tuple[torch.Tensor, torch.Tensor]
    addresses: tuple[int, int]
    sums: int

    @classmethod
    def of(cls, sums: torch.Tensor, counters: torch.Tensor) -> Scratch:
        return cls((sums, counters), (sums.data_ptr(), counters.data_ptr()), sums.numel())


_scratch: dict[int | None, dict[int | None, Scratch]] = {}  # by GPU and stream
_for_graphs: dict[int, GraphCounters] = {}


def reserve(device: torch.device, index: int | None) -> None:
    """Prepare for products of GPU ``index`` in CUDA graphs, outside of any."""
    if index is not None:
        _for_graphs.setdefault(index, GraphCounters(device)).refill()


def by_stream(index: int | None) -> dict[int | None, Scratch]:
    """What the streams of a GPU have; :func:`scratch` makes it."""
    return _scratch.setdefault(index, {})


def scratch(device: torch.device, index: int | None, stream: int | None, sums: int, tiles: int) -> Scratch:
    """At least ``sums`` float32 of any contents, and ``tiles`` counters: zeros that every launch leaves as zeros.

    One of each per GPU (``index``; None on the CPU) and stream, because launches on a stream do not overlap; the sums are of few tiles, so
    that they stay below a few MB. A product that is captured in a CUDA graph has its own, since the graph may be replayed on any stream.
    """
    if stream and torch.cuda.is_current_stream_capturing():  # CUDA captures no stream 0
        own = _for_graphs.get(index) or GraphCounters(device)
        return Scratch.of(torch.empty(sums, dtype=torch.float32, device=device), own.take(tiles))
    found = by_stream(index).get(stream)
    if found is None or found.sums < sums:
        reserve(device, index)
        zeros = torch.zeros(MOST_SPLIT_TILES, dtype=torch.int32, device=device) if found is None else found.tensors[1]
        found = _scratch[index][stream] = Scratch.of(torch.empty(sums, dtype=torch.float32, device=device), zeros)
    return found
