"""Floor 3. What follows a float32 product that lies in memory: bias, activation, residual, one cast."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from .matmul import ACTIVATIONS, GATED
from .numerics import cast


@jit
def epilogue_tiles(
    sum_ptr, bias_ptr, residual_ptr, out_ptr, M, N, out_row, residual_row, residual_col, bias_step, bias_half,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out[M, N] = activation(sums + bias) + residual; GATED: sums are ``[2, M, N]``, and the second half multiplies the activation."""
    tiles = tl.cdiv(N, BLOCK_N)
    m = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (m < M)[:, None] & (n < N)[None, :]
    y = add_bias(sum_ptr + m[:, None] * N + n[None, :], mask, bias_ptr, n, N, 0, bias_step)
    if ACTIVATION is not None:
        y = ACTIVATION(y)
    if GATED:
        y *= add_bias(sum_ptr + (M + m)[:, None] * N + n[None, :], mask, bias_ptr, n, N, bias_half, bias_step)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + m[:, None] * residual_row + n[None, :] * residual_col, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + m[:, None] * out_row + n[None, :], cast(y, out_ptr.dtype.element_ty), mask=mask)


@jit
def add_bias(at, mask, bias_ptr, n, N, half, step):
    y = tl.load(at, mask=mask, other=0.0)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + half + n * step, mask=n < N, other=0.0).to(tl.float32)[None, :]
    return y


def epilogue(sums: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None, activation: str | None,
             residual: torch.Tensor | None) -> None:  # fmt: skip
    """float32 sums ``[1, M, N]`` (gated: ``[2, M, N]``), dense, to ``out`` ``[M, N]``, whose rows are dense.

    bias is ``[N]`` (gated: ``[2, N]``), residual ``[M, N]``, both of any strides and dtype.
    """
    m, n = out.shape
    block_m, block_n = 4, 256
    epilogue_tiles[(triton.cdiv(m, block_m) * triton.cdiv(n, block_n),)](
        sum_ptr=sums, bias_ptr=bias, residual_ptr=residual, out_ptr=out, M=m, N=n, out_row=out.stride(0),
        residual_row=0 if residual is None else residual.stride(0), residual_col=0 if residual is None else residual.stride(1),
        bias_step=0 if bias is None else bias.stride(-1), bias_half=0 if bias is None else bias.stride(0),
        ACTIVATION=ACTIVATIONS[activation], GATED=activation in GATED, BLOCK_M=block_m, BLOCK_N=block_n, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
