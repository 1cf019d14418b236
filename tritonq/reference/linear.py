"""Floor 2. The linear layers of the seed plans: int8 x int8 with exact sums, and NF4 weights in row pairs."""
from __future__ import annotations

import torch

from ..backend import as_computed
from ..dtypes import compute_dtype
from ..formats.nf4 import LEVELS


def w8a8(act_q: torch.Tensor, weight_q: torch.Tensor, act_scale: torch.Tensor, weight_scale: torch.Tensor, *, out: torch.Tensor) -> None:
    """``out[m, n] = (act_scale[m] * weight_scale[n]) * sum_k act_q[m, k] * weight_q[n, k]``, the sum exact.

    ``act_scale`` has one element or one per row. float64 adds integers below 2**53 without rounding in any order.
    """
    dtype = compute_dtype(out.dtype)
    total = act_q.double() @ weight_q.double().T
    out[:] = (act_scale.to(dtype)[:, None] * weight_scale.to(dtype)[None, :]) * total.to(dtype)


def nf4_dequantize(weight: torch.Tensor, absmax: torch.Tensor, *, out: torch.Tensor) -> None:
    """``out[n, k] = level * absmax[n, k // block]``; byte ``[r, k]`` holds row ``2r`` (low nibble) and row ``2r + 1`` (high nibble)."""
    pairs, k = weight.shape
    codes = torch.stack((weight & 15, weight >> 4), 1).view(2 * pairs, absmax.shape[1], -1).long()
    levels = torch.tensor(LEVELS, dtype=torch.float32, device=weight.device)
    out[:] = (levels[codes] * absmax[..., None]).view(2 * pairs, k)


def nf4_matmul(activation: torch.Tensor, weight: torch.Tensor, absmax: torch.Tensor, *, out: torch.Tensor) -> None:
    """``out[m, n] = sum_k activation[m, k] * w_hat[n, k]`` in float32."""
    w_hat = torch.empty(2 * weight.shape[0], weight.shape[1], dtype=torch.float32, device=weight.device)
    nf4_dequantize(weight, absmax, out=w_hat)
    with as_computed(out.device):
        out[:] = activation.float() @ w_hat.T
