"""Floor 3. The linear layers of the seed plans: int8 x int8 on the integer units, and NF4 weights in row pairs."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..formats.nf4 import nf4_decode
from .constants import compute_type


@jit
def _tile_of(pid, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """(first row, first column) as int64. ``GROUP`` tile rows go together: a weight tile is read again while still in the L2 cache."""
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    band = pid // (GROUP * tiles_n)
    height = tl.minimum(tiles_m - band * GROUP, GROUP)
    inside = pid % (GROUP * tiles_n)
    tile_m, tile_n = band * GROUP + inside % height, inside // height
    return tile_m.to(tl.int64) * BLOCK_M, tile_n.to(tl.int64) * BLOCK_N


@jit
def w8a8_linear(
    act_ptr, weight_ptr, act_scale_ptr, weight_scale_ptr, out_ptr, m, n, k, act_row, act_col, weight_row, weight_col, act_scale_step,
    COMPUTE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """int32 sums of int8 products; lanes outside the matrices add zero, so any m, n and k will do."""
    first_m, first_n = _tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP)
    row, col = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_K).to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, k, BLOCK_K):
        at = start + lane
        act = tl.load(act_ptr + (row * act_row)[:, None] + (at * act_col)[None, :], mask=(row < m)[:, None] & (at < k)[None, :], other=0)
        weight = tl.load(
            weight_ptr + (at * weight_col)[:, None] + (col * weight_row)[None, :], mask=(at < k)[:, None] & (col < n)[None, :], other=0
        )
        total = tl.dot(act, weight, total, out_dtype=tl.int32)
    act_scale = tl.load(act_scale_ptr + row * act_scale_step, mask=row < m, other=0.0).to(COMPUTE)
    weight_scale = tl.load(weight_scale_ptr + col, mask=col < n, other=0.0).to(COMPUTE)
    value = (act_scale[:, None] * weight_scale[None, :]) * total.to(COMPUTE)
    mask = (row < m)[:, None] & (col < n)[None, :]
    tl.store(out_ptr + row[:, None] * n + col[None, :], value.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def nf4_row_pair_dequantize(weight_ptr, absmax_ptr, out_ptr, pairs, k, blocks, block_size, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """One tile of bytes becomes the same tile of the even rows and of the odd rows."""
    tiles = tl.cdiv(k, BLOCK_K)
    pid = tl.program_id(0)
    pair = (pid // tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    col = (pid % tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (pair < pairs)[:, None] & (col < k)[None, :]
    byte = tl.load(weight_ptr + pair[:, None] * k + col[None, :], mask=mask, other=0).to(tl.int32)
    for odd in tl.static_range(2):
        row = 2 * pair + odd
        absmax = tl.load(absmax_ptr + row[:, None] * blocks + (col // block_size)[None, :], mask=mask, other=0.0)
        value = nf4_decode((byte >> (4 * odd)) & 15) * absmax
        tl.store(out_ptr + row[:, None] * k + col[None, :], value.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def nf4_row_pair_matmul(
    act_ptr, weight_ptr, absmax_ptr, out_ptr, m, pairs, k, blocks, block_size, act_row, act_col,
    BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Two float32 accumulators, for the even and for the odd rows that share a tile of bytes."""
    first_m, first_pair = _tile_of(tl.program_id(0), m, pairs, BLOCK_M, BLOCK_P, GROUP)
    row, pair = first_m + tl.arange(0, BLOCK_M), first_pair + tl.arange(0, BLOCK_P)
    lane = tl.arange(0, BLOCK_K)
    even, odd = tl.zeros((BLOCK_M, BLOCK_P), tl.float32), tl.zeros((BLOCK_M, BLOCK_P), tl.float32)
    for start in range(0, k, BLOCK_K):
        at = start + lane
        act_mask, mask = (row < m)[:, None] & (at < k)[None, :], (at < k)[:, None] & (pair < pairs)[None, :]
        act = tl.load(act_ptr + (row * act_row)[:, None] + (at.to(tl.int64) * act_col)[None, :], mask=act_mask, other=0.0).to(tl.float32)
        byte = tl.load(weight_ptr + pair[None, :] * k + at[:, None], mask=mask, other=0).to(tl.int32)
        absmax_at = absmax_ptr + (2 * pair * blocks)[None, :] + (at // block_size)[:, None]
        low = nf4_decode(byte & 15) * tl.load(absmax_at, mask=mask, other=0.0)
        high = nf4_decode(byte >> 4) * tl.load(absmax_at + blocks, mask=mask, other=0.0)
        even = tl.dot(act, low, even, input_precision="ieee")
        odd = tl.dot(act, high, odd, input_precision="ieee")
    mask = (row < m)[:, None] & (pair < pairs)[None, :]
    out_at = out_ptr + row[:, None] * (2 * pairs) + (2 * pair)[None, :]
    tl.store(out_at, even.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_at + 1, odd.to(out_ptr.dtype.element_ty), mask=mask)


def w8a8(act_q: torch.Tensor, weight_q: torch.Tensor, act_scale: torch.Tensor, weight_scale: torch.Tensor, *, out: torch.Tensor) -> None:
    """``out = (act_scale[:, None] * weight_scale) * (act_q @ weight_q.T)``; act_q ``[m, k]``, weight_q ``[n, k]``, ``out`` contiguous."""
    (m, k), n = act_q.shape, weight_q.shape[0]
    block_m, block_n = (16 if m <= 16 else 64 if m <= 64 else 128), (64 if m <= 64 else 128)
    w8a8_linear[(triton.cdiv(m, block_m) * triton.cdiv(n, block_n),)](
        act_q, weight_q, act_scale, weight_scale, out, m, n, k, act_q.stride(0), act_q.stride(1), weight_q.stride(0), weight_q.stride(1),
        1 if act_scale.numel() > 1 else 0, COMPUTE=compute_type(out.dtype), BLOCK_M=block_m, BLOCK_N=block_n,
        BLOCK_K=128 if block_m == 16 else 64, GROUP=8, num_warps=4 if block_m <= 64 else 8, enable_fp_fusion=False,
    )  # fmt: skip


def nf4_dequantize(weight: torch.Tensor, absmax: torch.Tensor, *, out: torch.Tensor) -> None:
    """``out[n, k]`` from bytes ``[n / 2, k]`` and absmax ``[n, k / block]``, all contiguous."""
    (pairs, k), blocks = weight.shape, absmax.shape[1]
    block_k = min(triton.next_power_of_2(k), 512)
    block_r = min(triton.next_power_of_2(pairs), 1024 // block_k)
    nf4_row_pair_dequantize[(triton.cdiv(pairs, block_r) * triton.cdiv(k, block_k),)](
        weight, absmax, out, pairs, k, blocks, k // blocks, BLOCK_R=block_r, BLOCK_K=block_k, enable_fp_fusion=False
    )


def nf4_matmul(activation: torch.Tensor, weight: torch.Tensor, absmax: torch.Tensor, *, out: torch.Tensor) -> None:
    """``out[m, n] = activation[m, k] @ w_hat.T`` in float32; the activation may have any strides."""
    m, k = activation.shape
    pairs, blocks = weight.shape[0], absmax.shape[1]
    block_m = 16 if m <= 16 else 32
    nf4_row_pair_matmul[(triton.cdiv(m, block_m) * triton.cdiv(pairs, 32),)](
        activation, weight, absmax, out, m, pairs, k, blocks, k // blocks, activation.stride(0), activation.stride(1),
        BLOCK_M=block_m, BLOCK_P=32, BLOCK_K=32, GROUP=8, enable_fp_fusion=False,
    )  # fmt: skip
