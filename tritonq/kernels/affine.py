"""Floor 3. Affine codes under scales that the caller gives: one kernel body for every granularity and direction.

Every launcher takes views ``[outer, axis, inner]``, scale and zero point ``[1 or outer, groups]`` with one group per
``group_size`` positions of ``axis`` (the last may be short), and a contiguous ``out``. Inputs may have any strides.
"""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from .constants import compute_type
from .numerics import divide, split_zero_point, unclamped_code

TILE = 2048  # elements per program: 16 per thread at 4 warps


# What is computed per element. ``high + low`` is the zero point, see split_zero_point; unused arguments keep one signature.


@jit
def quantize_value(x, d_output, scale, high, low, q_min, q_max):
    return tl.minimum(tl.maximum(unclamped_code(x, scale, high, low), q_min), q_max).to(tl.int32)


@jit
def quantize_backward_value(x, d_output, scale, high, low, q_min, q_max):
    code = unclamped_code(x, scale, high, low)
    passes = (code >= q_min) & (code <= q_max) & (scale > 0.0)
    return tl.where(passes, divide(d_output, tl.broadcast_to(scale, d_output.shape)), 0.0)


@jit
def fake_quantize_value(x, d_output, scale, high, low, q_min, q_max):
    code = tl.minimum(tl.maximum(unclamped_code(x, scale, high, low), q_min), q_max)
    return ((code - low) - high) * scale


@jit
def fake_quantize_backward_value(x, d_output, scale, high, low, q_min, q_max):
    code = unclamped_code(x, scale, high, low)
    return tl.where((code >= q_min) & (code <= q_max) & (scale > 0.0), d_output, 0.0)


@jit
def dequantize_value(codes, d_output, scale, high, low, q_min, q_max):
    return ((codes - low) - high) * scale


@jit
def dequantize_backward_value(x, d_output, scale, high, low, q_min, q_max):
    return d_output * scale


def _name(specialization) -> str:
    return f"affine_{specialization.constants['VALUE'].__name__.removesuffix('_value')}"


@jit(repr=_name)
def affine_kernel(
    x_ptr, d_output_ptr, scale_ptr, zero_point_ptr, out_ptr, rows, cols, axis,
    x_outer, x_row, x_col, d_outer, d_row, d_col,
    scale_outer, scale_group, row_group, col_group, q_min, q_max,
    VALUE: tl.constexpr, COMPUTE: tl.constexpr, HAS_X: tl.constexpr, HAS_D_OUTPUT: tl.constexpr, HAS_ZERO_POINT: tl.constexpr,
    GROUPED_COLS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``out[row, col] = VALUE(...)``. A row is one (outer, axis) pair, or one outer index with the axis along the columns.

    Divisions by axis and group sizes are 64-bit once per program and 32-bit per row or column.
    """
    pid = tl.program_id(0)
    col_tiles = tl.cdiv(cols, BLOCK_C)
    first_row = (pid // col_tiles).to(tl.int64) * BLOCK_R
    first_col = (pid % col_tiles).to(tl.int64) * BLOCK_C
    row = first_row + tl.arange(0, BLOCK_R)
    col = first_col + tl.arange(0, BLOCK_C)
    mask = (row < rows)[:, None] & (col < cols)[None, :]

    position = (first_row % axis).to(tl.int32) + tl.arange(0, BLOCK_R)
    outer = first_row // axis + position // axis
    position = position % axis
    scale_offset = (outer * scale_outer + (position // row_group) * scale_group)[:, None]
    if GROUPED_COLS:
        group = first_col // col_group + ((first_col % col_group).to(tl.int32) + tl.arange(0, BLOCK_C)) // col_group
        scale_offset = scale_offset + (group * scale_group)[None, :]
        scale_mask = mask
    else:
        scale_mask = (row < rows)[:, None]
    scale = tl.load(scale_ptr + scale_offset, mask=scale_mask, other=1.0).to(COMPUTE)
    zero_point = tl.zeros(scale.shape, tl.int32)
    if HAS_ZERO_POINT:
        zero_point = tl.load(zero_point_ptr + scale_offset, mask=scale_mask, other=0)

    x = tl.zeros((BLOCK_R, BLOCK_C), COMPUTE)
    if HAS_X:
        x_offset = (outer * x_outer + position.to(tl.int64) * x_row)[:, None] + (col * x_col)[None, :]
        x = tl.load(x_ptr + x_offset, mask=mask, other=0).to(COMPUTE)
    d_output = x
    if HAS_D_OUTPUT:
        d_offset = (outer * d_outer + position.to(tl.int64) * d_row)[:, None] + (col * d_col)[None, :]
        d_output = tl.load(d_output_ptr + d_offset, mask=mask, other=0.0).to(COMPUTE)
    high, low = split_zero_point(zero_point, scale)
    value = VALUE(x, d_output, scale, high, low, q_min, q_max)
    tl.store(out_ptr + row[:, None] * cols + col[None, :], value.to(out_ptr.dtype.element_ty), mask=mask)


def _strides(t: torch.Tensor | None, by_row: bool) -> tuple[int, int, int]:
    """(outer, row, column) strides: the columns are ``inner`` where there is one, else ``axis``."""
    if t is None:
        return 0, 0, 0
    return (t.stride(0), t.stride(1), t.stride(2)) if by_row else (t.stride(0), 0, t.stride(1))


def _launch(value, x, d_output, scale, zero_point, out, group_size, q_min=0, q_max=0) -> None:
    if out.numel() == 0:
        return
    outer, axis, inner = out.shape
    groups = scale.shape[1]
    by_row = inner > 1  # else the axis runs along the columns
    rows, cols, row_axis = (outer * axis, inner, axis) if by_row else (outer, axis, 1)
    block_c = min(triton.next_power_of_2(cols), TILE // 2)
    block_r = min(triton.next_power_of_2(rows), TILE // block_c)
    float_dtype = next(t.dtype for t in (d_output, x, out) if t is not None and t.is_floating_point())
    affine_kernel[(triton.cdiv(rows, block_r) * triton.cdiv(cols, block_c),)](
        x if x is not None else d_output, d_output if d_output is not None else x,
        scale, zero_point if zero_point is not None else scale, out, rows, cols, row_axis,
        *_strides(x, by_row), *_strides(d_output, by_row),
        groups if scale.shape[0] > 1 else 0, 1 if groups > 1 else 0, group_size if groups > 1 else row_axis,
        group_size if groups > 1 else 1, q_min, q_max,
        VALUE=value, COMPUTE=compute_type(float_dtype), HAS_X=x is not None, HAS_D_OUTPUT=d_output is not None,
        HAS_ZERO_POINT=zero_point is not None, GROUPED_COLS=not by_row and groups > 1,
        BLOCK_R=block_r, BLOCK_C=block_c, enable_fp_fusion=False,
    )  # fmt: skip


def quantize(x, scale, zero_point, *, q_min: int, q_max: int, group_size: int, out) -> None:
    """``out = clamp(round(x / scale) + zero_point, q_min, q_max)``; see :func:`tritonq.reference.affine.quantize`."""
    _launch(quantize_value, x, None, scale, zero_point, out, group_size, q_min, q_max)


def quantize_backward(x, d_output, scale, zero_point, *, q_min: int, q_max: int, group_size: int, out) -> None:
    """``out = d_output / scale`` where the unclamped code of ``x`` is in range, else 0."""
    _launch(quantize_backward_value, x, d_output, scale, zero_point, out, group_size, q_min, q_max)


def fake_quantize(x, scale, zero_point, *, q_min: int, q_max: int, group_size: int, out) -> None:
    """``out = (code - zero_point) * scale``, the value that quantizing and dequantizing gives."""
    _launch(fake_quantize_value, x, None, scale, zero_point, out, group_size, q_min, q_max)


def fake_quantize_backward(x, d_output, scale, zero_point, *, q_min: int, q_max: int, group_size: int, out) -> None:
    """``out = d_output`` where the unclamped code of ``x`` is in range, else 0."""
    _launch(fake_quantize_backward_value, x, d_output, scale, zero_point, out, group_size, q_min, q_max)


def dequantize(codes, scale, zero_point, *, group_size: int, out) -> None:
    """``out = (codes - zero_point) * scale``."""
    _launch(dequantize_value, codes, None, scale, zero_point, out, group_size)


def dequantize_backward(d_output, scale, *, group_size: int, out) -> None:
    """``out = d_output * scale``, the gradient with respect to the codes."""
    _launch(dequantize_backward_value, None, d_output, scale, None, out, group_size)
