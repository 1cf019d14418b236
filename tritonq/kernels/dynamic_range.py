"""Floor 3. Ranges reduced in the kernel: scale, zero point and codes of a group in one launch.

A segment is one group of one row. A program holds several segments side by side, so small groups fill it too, and reads
a segment that is longer than its tile twice. One scale for a whole tensor takes a launch for partial ranges, one that
joins them, and :func:`tritonq.kernels.affine.quantize`.
"""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from .affine import TILE
from .constants import compute_type
from .numerics import divide, round_half_even, split_zero_point, unclamped_code

CHUNK = 1 << 16  # elements per partial range of a whole tensor


@jit
def finite_or_zero(x):
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@jit
def scale_of_range(low, high, q_min, q_max, ASYMMETRIC: tl.constexpr, STORED: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr):
    """The stored scale and the int32 zero point of ``low <= 0 <= high``; see the reference's ``scale_and_zero_point``."""
    if ASYMMETRIC:
        steps = tl.zeros_like(high) + (q_max - q_min)
        extent = high - low
        scale = tl.where(extent < float("inf"), divide(extent, steps), divide(high * 0.5 - low * 0.5, steps) * 2.0)
    else:
        extent = tl.maximum(-low, high)
        scale = divide(extent, tl.zeros_like(high) + q_max)
    stored = scale.to(STORED).to(high.dtype)
    stored = tl.where(stored > 0.0, stored, tl.full(high.shape, SMALLEST, high.dtype))
    stored = tl.where(stored < float("inf"), stored, tl.full(high.shape, LARGEST, high.dtype))
    stored = tl.where(extent > 0.0, stored, tl.full(high.shape, 1.0, high.dtype))
    zero_point = tl.zeros(high.shape, tl.int32)
    if ASYMMETRIC:
        zero_point = q_min - round_half_even(divide(low, stored)).to(tl.int32)
        zero_point = tl.minimum(tl.maximum(zero_point, q_min), q_max)
    return stored, zero_point


@jit
def _segments(first, count, groups, length, group_size, BLOCK_S: tl.constexpr):
    """(row, group, whether it exists, number of elements) of the segments ``first ...``."""
    segment = first + tl.arange(0, BLOCK_S)
    row = segment // groups
    group = segment % groups
    return row, group, segment < count, tl.minimum(group_size, length - group * group_size)


@jit
def _load(x_ptr, base, at, exists, size, group_size, x_col, COMPUTE: tl.constexpr, RAGGED: tl.constexpr):
    """Elements ``at`` of every segment, and which of them there are. Only a short last group needs ``size``: the compiler sees
    that ``at < group_size`` is the same for 16 neighbours, and so loads 16 bytes at once."""
    mask = exists[:, None] & (at < group_size)[None, :]
    if RAGGED:
        mask = mask & (at[None, :] < size[:, None])
    return tl.load(x_ptr + base[:, None] + (at * x_col)[None, :], mask=mask, other=0.0).to(COMPUTE), mask


@jit
def quantize_rows_kernel(
    x_ptr, scale_ptr, zero_point_ptr, out_ptr, count, groups, length, group_size,
    x_row, x_col, out_row, out_col, scale_row, scale_col, q_min, q_max,
    ASYMMETRIC: tl.constexpr, COMPUTE: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr, RAGGED: tl.constexpr,
    ONE_TILE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Range, scale, zero point and codes of ``BLOCK_S`` segments."""
    row, group, exists, size = _segments(tl.program_id(0).to(tl.int64) * BLOCK_S, count, groups, length, group_size, BLOCK_S)
    base = row * x_row + group * group_size * x_col
    out_base = row * out_row + group * group_size * out_col
    lane = tl.arange(0, BLOCK_L).to(tl.int64)
    if ONE_TILE:
        x, mask = _load(x_ptr, base, lane, exists, size, group_size, x_col, COMPUTE, RAGGED)
        finite = finite_or_zero(x)
        low, high = tl.minimum(tl.min(finite, axis=1), 0.0), tl.maximum(tl.max(finite, axis=1), 0.0)
    else:
        low, high = tl.zeros((BLOCK_S,), COMPUTE), tl.zeros((BLOCK_S,), COMPUTE)
        for start in range(0, group_size, BLOCK_L):
            x, mask = _load(x_ptr, base, start + lane, exists, size, group_size, x_col, COMPUTE, RAGGED)
            finite = finite_or_zero(x)
            low, high = tl.minimum(low, tl.min(finite, axis=1)), tl.maximum(high, tl.max(finite, axis=1))
    scale, zero_point = scale_of_range(low, high, q_min, q_max, ASYMMETRIC, scale_ptr.dtype.element_ty, SMALLEST, LARGEST)
    scale_offset = row * scale_row + group * scale_col
    tl.store(scale_ptr + scale_offset, scale.to(scale_ptr.dtype.element_ty), mask=exists)
    tl.store(zero_point_ptr + scale_offset, zero_point, mask=exists)

    scale = scale[:, None]
    high, low = split_zero_point(zero_point[:, None], scale)
    if ONE_TILE:
        codes = tl.minimum(tl.maximum(unclamped_code(x, scale, high, low), q_min), q_max).to(tl.int32)
        tl.store(out_ptr + out_base[:, None] + (lane * out_col)[None, :], codes.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        for start in range(0, group_size, BLOCK_L):
            x, mask = _load(x_ptr, base, start + lane, exists, size, group_size, x_col, COMPUTE, RAGGED)
            codes = tl.minimum(tl.maximum(unclamped_code(x, scale, high, low), q_min), q_max).to(tl.int32)
            tl.store(out_ptr + out_base[:, None] + ((start + lane) * out_col)[None, :], codes.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def partial_range_kernel(x_ptr, partials_ptr, count, groups, length, chunk, x_row, x_col, COMPUTE: tl.constexpr, BLOCK_L: tl.constexpr):
    """Lowest and highest finite value of one chunk of a row to ``partials[0, segment]`` and ``partials[1, segment]``."""
    segment = tl.program_id(0).to(tl.int64)
    row, group, exists, size = _segments(segment, count, groups, length, chunk, 1)
    base = row * x_row + group * chunk * x_col
    low, high = tl.zeros((1,), COMPUTE), tl.zeros((1,), COMPUTE)
    for start in range(0, chunk, BLOCK_L):
        x, _mask = _load(x_ptr, base, start + tl.arange(0, BLOCK_L).to(tl.int64), exists, size, chunk, x_col, COMPUTE, True)
        finite = finite_or_zero(x)
        low, high = tl.minimum(low, tl.min(finite, axis=1)), tl.maximum(high, tl.max(finite, axis=1))
    at = segment + tl.arange(0, 1)
    tl.store(partials_ptr + at, low)
    tl.store(partials_ptr + count + at, high)


@jit
def join_ranges_kernel(
    partials_ptr, scale_ptr, zero_point_ptr, count, q_min, q_max,
    ASYMMETRIC: tl.constexpr, COMPUTE: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the scale and zero point of all partial ranges."""
    low, high = tl.zeros((1, BLOCK), COMPUTE), tl.zeros((1, BLOCK), COMPUTE)
    for start in range(0, count, BLOCK):
        at = (start + tl.arange(0, BLOCK))[None, :]
        low = tl.minimum(low, tl.load(partials_ptr + at, mask=at < count, other=0.0))
        high = tl.maximum(high, tl.load(partials_ptr + count + at, mask=at < count, other=0.0))
    low, high = tl.min(low, axis=1), tl.max(high, axis=1)
    scale, zero_point = scale_of_range(low, high, q_min, q_max, ASYMMETRIC, scale_ptr.dtype.element_ty, SMALLEST, LARGEST)
    one = tl.arange(0, 1)
    tl.store(scale_ptr + one, scale.to(scale_ptr.dtype.element_ty))
    tl.store(zero_point_ptr + one, zero_point)


def _constants(asymmetric: bool, dtype: torch.dtype, stored: torch.dtype) -> dict:
    info = torch.finfo(stored)
    return {"ASYMMETRIC": asymmetric, "COMPUTE": compute_type(dtype), "SMALLEST": info.tiny * info.eps, "LARGEST": info.max}


def quantize_rows(
    x: torch.Tensor, *, q_min: int, q_max: int, asymmetric: bool, group_size: int,
    scale: torch.Tensor, zero_point: torch.Tensor, out: torch.Tensor,
) -> None:  # fmt: skip
    """Fill ``scale``, ``zero_point`` (``[rows, groups]``, equal strides) and the codes ``out`` of ``x`` ``[rows, length]``."""
    rows, length = x.shape
    groups = scale.shape[1]
    count = rows * groups
    # Rows that are neighbours in memory go side by side, so that a warp's loads stay together.
    block_l = min(triton.next_power_of_2(min(group_size, length)), TILE // 2 if x.stride(1) == 1 else 32)
    block_s = min(triton.next_power_of_2(count), TILE // block_l)
    quantize_rows_kernel[(triton.cdiv(count, block_s),)](
        x, scale, zero_point, out, count, groups, length, group_size, x.stride(0), x.stride(1), out.stride(0), out.stride(1),
        scale.stride(0), scale.stride(1), q_min, q_max, **_constants(asymmetric, x.dtype, scale.dtype),
        RAGGED=length % group_size != 0, ONE_TILE=min(group_size, length) <= block_l, BLOCK_S=block_s, BLOCK_L=block_l,
        enable_fp_fusion=False,
    )  # fmt: skip


def tensor_range(
    x: torch.Tensor, *, q_min: int, q_max: int, asymmetric: bool, scale: torch.Tensor, zero_point: torch.Tensor, partials: torch.Tensor
) -> None:
    """Fill ``scale`` and ``zero_point`` (one element each) of all of ``x`` ``[rows, length]``; ``partials`` is ``[2, rows * chunks]``."""
    rows, length = x.shape
    count = partials.shape[1]
    chunk = min(CHUNK, triton.next_power_of_2(length))
    partial_range_kernel[(count,)](
        x, partials, count, count // rows, length, chunk, x.stride(0), x.stride(1),
        COMPUTE=compute_type(x.dtype), BLOCK_L=min(chunk, TILE), enable_fp_fusion=False,
    )  # fmt: skip
    join_ranges_kernel[(1,)](
        partials, scale, zero_point, count, q_min, q_max, **_constants(asymmetric, x.dtype, scale.dtype), BLOCK=1024, enable_fp_fusion=False
    )
