"""The yardstick of benchmarks/codegen.py: an int4 matmul as Triton kernels for GPTQ-like weights are usually written.

Words of eight consecutive k along N, so that every element of a tile has a pointer of its own (``k // 8``) and each word is fetched eight
times; shift, mask, int-to-float, zero point and scale per element; x the left operand, the decoded weight the right one, which therefore
goes through shared memory; mma.sync. The tile is 16 x 64 x 128 with four warps. Written for this comparison, after no particular source.
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl

GROUP = 128
ROWS = 16  # of x: the smallest tile that tl.dot takes as its left operand


@triton.jit
def peer_style(
    x_ptr, w_ptr, scale_ptr, zero_ptr, out_ptr, M, N, K,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out[M, N] = x[M, K] @ w[K, N]; w int32 ``[K / 8, N]``, scale and zero point ``[K / GROUP, N]``. N and K whole tiles."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = (m < M)[:, None]
    x_at = x_ptr + m[:, None] * K + k[None, :]
    w_at = w_ptr + (k[:, None] // 8) * N + n[None, :]
    shift = (k[:, None] % 8) * 4
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in tl.range(0, K // BLOCK_K, num_stages=STAGES):
        x = tl.load(x_at, mask=inside, other=0.0)
        group = (step * BLOCK_K // GROUP) * N + n
        scale, zero = tl.load(scale_ptr + group), tl.load(zero_ptr + group)
        code = (tl.load(w_at) >> shift) & 15
        w = (code.to(x_ptr.dtype.element_ty) - zero[None, :]) * scale[None, :]
        acc = tl.dot(x, w, acc)
        x_at += BLOCK_K
        w_at += (BLOCK_K // 8) * N
    tl.store(out_ptr + m[:, None] * N + n[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15 ``[K, N]`` -> int32 ``[K / 8, N]``, the first k in the lowest bits."""
    nibbles = codes.to(torch.int64).reshape(-1, 8, codes.shape[1]) << (4 * torch.arange(8))[None, :, None]
    return nibbles.sum(1).to(torch.int32)


def matmul(x: torch.Tensor, words: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """x ``[M, K]``, words of :func:`pack`, scale and zero point ``[K / 128, N]`` in x's dtype; N a multiple of 64, K of 128."""
    (m, k), n = x.shape, words.shape[1]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    peer_style[triton.cdiv(m, ROWS), n // 64](
        x, words, scale, zero, out, m, n, k, GROUP=GROUP, BLOCK_M=ROWS, BLOCK_N=64, BLOCK_K=128, STAGES=4, num_warps=4
    )
    return out
