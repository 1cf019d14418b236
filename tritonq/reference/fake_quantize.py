"""Floor 2. The straight-through gradients of fake quantization with scales that are learned."""
from __future__ import annotations

from dataclasses import replace
from math import sqrt

import torch
import torch.nn.functional as F

from ..dtypes import compute_dtype
from ..formats.numerics import round_half_away_ref
from ..scheme import Scheme
from .matrix import dequantize, quantize_scaled


def stored_scale(scale: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> torch.Tensor:
    """A learned float scale as a weight of ``dtype`` stores it; at least the smallest normal float32, 2**-126."""
    return scheme.scale_format(dtype).encode_ref(scale.detach().to(compute_dtype(scale.dtype)).clamp(min=2.0**-126))


def fake_quantize_backward(grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None,
                           scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(gradient of x ``[N, K]``, of ``scale``) from that of ``scale * level(x / scale)``, by Learned Step Size Quantization.

    Rounding counts as the identity: x has the gradient 1 inside the range of codes and 0 beyond it, the scale ``level - x / scale`` inside
    and the end's level beyond, summed over its group and divided by sqrt(elements of the group * largest level), which keeps its steps
    in proportion to the weights'. Esser et al., "Learned Step Size Quantization" (arXiv 1902.08153), equations 3 and 5 and section 2.2.
    """
    compute = compute_dtype(x.dtype)
    stored = stored_scale(scale, scheme, x.dtype)
    q = quantize_scaled(x, scheme, stored, zero_point)
    zero = None if zero_point is None else spread(zero_point.to(compute), scheme, x.shape)
    units = replace(q, stored_scale=torch.ones_like(stored), zero_point=torch.zeros_like(zero_point) if scheme.float_zero else zero_point)
    level = dequantize(units, compute)
    each = spread(scheme.scale_format(x.dtype).decode_ref(stored).to(compute), scheme, x.shape)
    quotient = (x.to(compute) - zero if scheme.float_zero else x.to(compute)) / each
    if scheme.format.is_integer:
        low, high = scheme.code_range
        code = round_half_away_ref(quotient) if "away" in scheme.options else quotient.round()
        code = code if zero is None or scheme.float_zero else code + zero
        inside, largest = (code >= low) & (code <= high), max(abs(low), high)
    else:
        inside, largest = quotient.abs() <= scheme.format.max_abs, scheme.format.max_abs
    grad = grad.to(compute)
    rows, columns = scheme.group_shape(*x.shape)
    d_scale = gather(grad * (level - torch.where(inside, quotient, 0)), scheme) / sqrt(rows * columns * largest)
    return torch.where(inside, grad, 0).to(x.dtype), d_scale.to(scale.dtype)


def spread(per_group: torch.Tensor, scheme: Scheme, shape: tuple[int, int]) -> torch.Tensor:
    """``[N, K]`` of one value per group."""
    rows, columns = scheme.group_shape(*shape)
    return per_group.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]


def gather(values: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Sums over the groups of ``[N, K]``."""
    rows, columns = scheme.group_shape(*values.shape)
    n, k = scheme.scale_shape(*values.shape)
    padded = F.pad(values, (0, k * columns - values.shape[1], 0, n * rows - values.shape[0]))
    return padded.view(n, rows, k, columns).sum((1, 3))
