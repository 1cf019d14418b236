"""Floor 2. Affine integer codes in plain torch: what every kernel is held to, and what CPU tensors run.

All functions see tensors as ``[outer, axis, inner]`` and scales as ``[1 or outer, groups]``: position ``a`` of the axis
uses group ``a // group_size``, and the last group may be short. Per tensor is ``[1, 1, numel]`` with one group, per
channel ``[before, channels, after]`` with group_size 1, per token ``[n, 1, d]`` and per group ``[outer, axis, 1]``.

Arithmetic is float64 for float64 and float32 for everything else; one rounding to the result's type at the end.
NaN counts as zero, +-Inf saturates, and a scale that is not positive makes every code the zero point.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch

from ..dtypes import compute_dtype

_SLAB = 1 << 20  # elements worked on at once, so that intermediate tensors stay small
_FAR = 2.0**62  # beyond every int32 zero point, and inside int64 even after one was added


def _spread(per_group: torch.Tensor, shape: torch.Size, group_size: int) -> torch.Tensor:
    """``[1 or outer, groups]`` as a view or small copy ``[outer, axis, 1]``: one value per position of the axis."""
    outer, axis, _ = shape
    if per_group.shape[1] > 1:
        per_group = per_group.repeat_interleave(group_size, 1)[:, :axis]
    return per_group.unsqueeze(-1).expand(outer, axis, 1)


def _slabs(shape: torch.Size) -> Iterator[tuple[slice, slice, slice]]:
    """Index triples that cover ``[outer, axis, inner]`` in pieces of about ``_SLAB`` elements."""
    outer, axis, inner = shape
    inner_step = max(1, min(inner, _SLAB))
    axis_step = max(1, min(axis, _SLAB // inner_step))
    outer_step = max(1, _SLAB // (inner_step * axis_step))
    for o in range(0, outer, outer_step):
        for a in range(0, axis, axis_step):
            for i in range(0, inner, inner_step):
                yield slice(o, o + outer_step), slice(a, a + axis_step), slice(i, i + inner_step)


def _unclamped_code(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """``round_half_even(x / scale) + zero_point`` as int64; it neither wraps nor loses a bit."""
    quotient = torch.where(scale > 0, x / scale, 0).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return quotient.round_().clamp_(-_FAR, _FAR).to(torch.int64) + zero_point


def quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, *, q_min: int, q_max: int, group_size: int, out: torch.Tensor
) -> None:
    """``out = clamp(round_half_even(x / scale) + zero_point, q_min, q_max)``, rounded first, then added, saturating.

    Args:
        x: ``[outer, axis, inner]``, float16, bfloat16, float32 or float64.
        scale: ``[1 or outer, groups]``, any of these types.
        zero_point: same shape, int32, any value.
        out: same shape as ``x``, an integer type that holds ``q_min`` and ``q_max``.

    Example:
        >>> codes = torch.empty(1, 1, 3, dtype=torch.int8)
        >>> quantize(torch.tensor([[[0.5, 1.5, 9e9]]]), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32),
        ...          q_min=-128, q_max=127, group_size=1, out=codes)
        >>> codes.flatten().tolist()
        [0, 2, 127]
    """
    s, z = _spread(scale.to(compute_dtype(x.dtype)), x.shape, group_size), _spread(zero_point, x.shape, group_size)
    for at in _slabs(x.shape):
        out[at] = _unclamped_code(x[at].to(s.dtype), s[at[:2]], z[at[:2]]).clamp_(q_min, q_max)


def quantize_backward(
    x: torch.Tensor, d_output: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, *,
    q_min: int, q_max: int, group_size: int, out: torch.Tensor,
) -> None:  # fmt: skip
    """Straight-through gradient of :func:`quantize`: ``d_output / scale`` where ``q_min <= unclamped code <= q_max``, else 0."""
    _backward(x, d_output, scale, zero_point, q_min, q_max, group_size, out, divide=True)


def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, *, q_min: int, q_max: int, group_size: int, out: torch.Tensor
) -> None:
    """``out = (code - zero_point) * scale`` with the code of :func:`quantize`, in the type of ``out``."""
    s, z = _spread(scale.to(compute_dtype(x.dtype)), x.shape, group_size), _spread(zero_point, x.shape, group_size)
    for at in _slabs(x.shape):
        codes = _unclamped_code(x[at].to(s.dtype), s[at[:2]], z[at[:2]]).clamp_(q_min, q_max)
        out[at] = (codes - z[at[:2]]).to(s.dtype) * s[at[:2]]


def fake_quantize_backward(
    x: torch.Tensor, d_output: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, *,
    q_min: int, q_max: int, group_size: int, out: torch.Tensor,
) -> None:  # fmt: skip
    """Straight-through gradient of :func:`fake_quantize`: ``d_output`` where ``q_min <= unclamped code <= q_max``, else 0."""
    _backward(x, d_output, scale, zero_point, q_min, q_max, group_size, out, divide=False)


def _backward(x, d_output, scale, zero_point, q_min, q_max, group_size, out, *, divide: bool) -> None:
    s, z = _spread(scale.to(compute_dtype(x.dtype)), x.shape, group_size), _spread(zero_point, x.shape, group_size)
    for at in _slabs(x.shape):
        code, sat = _unclamped_code(x[at].to(s.dtype), s[at[:2]], z[at[:2]]), s[at[:2]]
        passes = (code >= q_min) & (code <= q_max) & (sat > 0)
        gradient = d_output[at].to(s.dtype)
        out[at] = torch.where(passes, gradient / sat if divide else gradient, 0)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, *, group_size: int, out: torch.Tensor) -> None:
    """``out = (codes - zero_point) * scale``: the difference exact, then rounded to the arithmetic's type, then multiplied."""
    s, z = _spread(scale.to(compute_dtype(out.dtype)), codes.shape, group_size), _spread(zero_point, codes.shape, group_size)
    for at in _slabs(codes.shape):
        out[at] = (codes[at].to(torch.int64) - z[at[:2]]).to(s.dtype) * s[at[:2]]


def dequantize_backward(d_output: torch.Tensor, scale: torch.Tensor, *, group_size: int, out: torch.Tensor) -> None:
    """``out = d_output * scale``, the gradient with respect to the codes as real numbers."""
    s = _spread(scale.to(compute_dtype(d_output.dtype)), d_output.shape, group_size)
    for at in _slabs(d_output.shape):
        out[at] = d_output[at].to(s.dtype) * s[at[:2]]
