"""Floor 3. The end of a fused matmul: split-K in one launch, then the epilogue.

Partial sums go to the workspace; the program that arrives last adds them in a fixed order and stores the result, so that a result does
not depend on which came last.
"""
from __future__ import annotations

import torch

from .._triton import jit, tl
from ..errors import InvalidProblemError
from .numerics import cast

# Split-K is for matrices with few tiles; its counters live in one small buffer per stream.
MOST_SPLIT_TILES = 4096


@jit
def finish(
    acc, m, n, M, N, bias_ptr, residual_ptr, out_ptr, residual_row, residual_col, bias_step,
    ACTIVATION: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """out[m, n] = activation(acc^T / FACTOR + bias) + residual, cast once."""
    mask = (m < M)[None, :] & (n < N)[:, None]
    if FACTOR != 1.0:
        acc = acc * (1.0 / FACTOR)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n * bias_step, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if ACTIVATION is not None:
        acc = ACTIVATION(acc)
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + m[None, :] * residual_row + n[:, None] * residual_col, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + m[None, :] * N + n[:, None], cast(acc, out_ptr.dtype.element_ty), mask=mask)


@jit
def finish_split(
    acc, m, n, M, N, split, bias_ptr, residual_ptr, out_ptr, partial_ptr, counter_ptr, residual_row, residual_col, bias_step, partial_size,
    ACTIVATION: tl.constexpr, FACTOR: tl.constexpr, SPLIT_K: tl.constexpr,
):  # fmt: skip
    """``finish`` of the sum over the programs (program_id(0), 0 .. SPLIT_K - 1), of which this is ``split``."""
    if SPLIT_K == 1:
        finish(acc, m, n, M, N, bias_ptr, residual_ptr, out_ptr, residual_row, residual_col, bias_step, ACTIVATION, FACTOR)
    else:
        mask = (m < M)[None, :] & (n < N)[:, None]
        at = partial_ptr + m[None, :] * N + n[:, None]
        tl.store(at + split.to(tl.int64) * partial_size, acc, mask=mask)
        tl.debug_barrier()  # every thread's partial sums precede the release below
        counter = counter_ptr + tl.program_id(0)
        arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLIT_K - 1:  # the last one adds, in a fixed order
            total = tl.zeros(acc.shape, tl.float32)
            for i in tl.static_range(SPLIT_K):
                total += tl.load(at + i * partial_size, mask=mask, other=0.0, cache_modifier=".cg")
            finish(total, m, n, M, N, bias_ptr, residual_ptr, out_ptr, residual_row, residual_col, bias_step, ACTIVATION, FACTOR)
            tl.atomic_xchg(counter, 0)  # ready for the next launch


def workspace_size(m: int, n: int, config: dict[str, int]) -> int:
    """Bytes of partial sums; any contents will do."""
    return 4 * config["SPLIT_K"] * m * n if config["SPLIT_K"] > 1 else 0


def partial_sums(workspace: torch.Tensor | None, m: int, n: int, config: dict[str, int], device: torch.device) -> torch.Tensor:
    """The float32 tensor for partial sums: the start of the caller's workspace, or a new one."""
    return scratch(workspace, workspace_size(m, n, config), device).view(torch.float32)


def scratch(workspace: torch.Tensor | None, needed: int, device: torch.device) -> torch.Tensor:
    """uint8 ``[needed]``: the start of the caller's workspace, or a new tensor."""
    if workspace is None:
        return torch.empty(needed, dtype=torch.uint8, device=device)
    if workspace.data_ptr() % 16 or not workspace.is_contiguous():
        raise InvalidProblemError("workspace must be contiguous and start at a multiple of 16 bytes; torch.empty gives one that does")
    return workspace.view(-1).view(torch.uint8)[:needed]


_counters: dict[tuple[torch.device, int], torch.Tensor] = {}


def counters(device: torch.device) -> torch.Tensor:
    """Zeros that every launch leaves as zeros: one buffer per stream, because launches on a stream do not overlap.

    While a CUDA graph is captured the zeros belong to the graph: it may be replayed on any stream.
    """
    if device.type != "cuda":
        stream = 0
    elif torch.cuda.is_current_stream_capturing():
        return torch.zeros(MOST_SPLIT_TILES, dtype=torch.int32, device=device)
    else:
        stream = torch.cuda.current_stream(device).cuda_stream
    if (device, stream) not in _counters:
        _counters[device, stream] = torch.zeros(MOST_SPLIT_TILES, dtype=torch.int32, device=device)
    return _counters[device, stream]
