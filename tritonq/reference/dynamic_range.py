"""Floor 2. Scales and zero points from the data itself, then the codes of :mod:`tritonq.reference.affine`.

``x`` is ``[rows, length]`` with any strides; scale and zero point are ``[rows, groups]``, one per ``group_size``
elements of a row, the last group possibly short. NaN and +-Inf do not enter the statistics.
"""
from __future__ import annotations

import torch

from ..dtypes import compute_dtype
from . import affine

_SLAB = 1 << 20


def _extent(x: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest finite value of every group, the range extended to contain 0."""
    values = torch.where(x.isfinite(), x, 0)
    rows, length = values.shape
    short = -length % group_size
    if short:
        values = torch.nn.functional.pad(values, (0, short))
    low, high = torch.aminmax(values.reshape(rows, -1, group_size), dim=-1)
    return low.clamp_(max=0), high.clamp_(min=0)


def scale_and_zero_point(
    low: torch.Tensor, high: torch.Tensor, *, q_min: int, q_max: int, asymmetric: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale in ``dtype`` and int32 zero point of the ranges ``low <= 0 <= high``.

    Symmetric: ``max(-low, high) / q_max`` and 0. Asymmetric: ``(high - low) / (q_max - q_min)`` and ``q_min - round(low / scale)``
    with the scale as stored. A range without extent has scale 1; a scale below the smallest positive value becomes that.
    """
    if asymmetric:
        steps = q_max - q_min
        extent = high - low
        halved = (high * 0.5 - low * 0.5) / steps * 2  # where high - low alone overflows
        scale = torch.where(extent.isinf(), halved, extent / steps)
    else:
        extent = torch.maximum(-low, high)
        scale = extent / q_max
    info = torch.finfo(dtype)
    scale = scale.to(dtype).clamp_(info.tiny * info.eps, info.max)
    scale = torch.where(extent > 0, scale, 1)
    if not asymmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = q_min - (low / scale.to(low.dtype)).round_()
    return scale, zero_point.clamp_(q_min, q_max).to(torch.int32)


def quantize_rows(
    x: torch.Tensor, *, q_min: int, q_max: int, asymmetric: bool, group_size: int,
    scale: torch.Tensor, zero_point: torch.Tensor, out: torch.Tensor,
) -> None:  # fmt: skip
    """Fill ``scale``, ``zero_point`` and the codes ``out`` of ``[rows, length]``."""
    step = max(1, _SLAB // x.shape[1])
    for at in range(0, x.shape[0], step):
        rows = slice(at, at + step)
        low, high = _extent(x[rows].to(compute_dtype(x.dtype)), group_size)
        scale[rows], zero_point[rows] = scale_and_zero_point(low, high, q_min=q_min, q_max=q_max, asymmetric=asymmetric, dtype=scale.dtype)
    affine.quantize(x.unsqueeze(-1), scale, zero_point, q_min=q_min, q_max=q_max, group_size=group_size, out=out.unsqueeze(-1))


def tensor_range(
    x: torch.Tensor, *, q_min: int, q_max: int, asymmetric: bool, scale: torch.Tensor, zero_point: torch.Tensor, partials: torch.Tensor
) -> None:
    """Fill ``scale`` and ``zero_point`` (one element each) of all of ``x``; ``partials`` is what the kernels need."""
    low = high = torch.zeros((), dtype=compute_dtype(x.dtype))
    step = max(1, _SLAB // x.shape[1])
    for at in range(0, x.shape[0], step):
        values = x[at : at + step].to(low.dtype)
        values = torch.where(values.isfinite(), values, 0)
        low, high = torch.minimum(low, values.amin()), torch.maximum(high, values.amax())
    s, z = scale_and_zero_point(low, high, q_min=q_min, q_max=q_max, asymmetric=asymmetric, dtype=scale.dtype)
    scale.fill_(s)
    zero_point.fill_(z)
