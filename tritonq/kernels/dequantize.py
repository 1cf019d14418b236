"""Floor 3. Packed codes back to numbers."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..formats.packing import load_code
from ..qtensor import QTensor
from .constants import decode_constants
from .numerics import cast
from .parameters import decode_value


def _name(specialization) -> str:
    return f"dequantize_{specialization.constants['NAME']}"


@jit
def load_parameters(
    scale_ptr, zero_point_ptr, rows, cols, mask, groups, group_rows, group_columns,
    COMPUTE: tl.constexpr, HAS_SCALE: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """Scale and zero point of each element (rows, cols), in COMPUTE; 1 and 0 where the scheme has none."""
    scale = tl.full((1, 1), 1.0, COMPUTE)
    zero_point = tl.full((1, 1), 0.0, COMPUTE)
    if HAS_SCALE:
        at = (rows // group_rows) * groups + cols // group_columns
        scale = tl.load(scale_ptr + at, mask=mask, other=1.0).to(COMPUTE)
        if AFFINE:
            zero_point = tl.load(zero_point_ptr + at, mask=mask, other=0).to(COMPUTE)
    return scale, zero_point


@jit(repr=_name)
def dequantize_tiles(
    packed_ptr, scale_ptr, zero_point_ptr, out_ptr, N, K, row_bytes, groups, group_rows, group_columns,
    NAME: tl.constexpr, COMPUTE: tl.constexpr, DECODE: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr,
    HAS_SCALE: tl.constexpr, AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[N, K] = scale * (level(code) - zero_point); one program per BLOCK_N x BLOCK_K tile."""
    tiles_k = tl.cdiv(K, BLOCK_K)
    pid = tl.program_id(0)
    rows = ((pid // tiles_k).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    cols = ((pid % tiles_k).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
    mask = (rows < N) & (cols < K)
    code = load_code(packed_ptr + rows * row_bytes, cols, mask, BITS)
    scale, zero_point = load_parameters(scale_ptr, zero_point_ptr, rows, cols, mask, groups, group_rows, group_columns,
                                        COMPUTE, HAS_SCALE, AFFINE)  # fmt: skip
    value = decode_value(code, scale, zero_point, COMPUTE, DECODE, BITS, SIGNED, AFFINE, FLOAT_ZERO)
    tl.store(out_ptr + rows * K + cols, cast(value, out_ptr.dtype.element_ty), mask=mask)


def weight_sizes(q: QTensor) -> dict:
    """The sizes that every kernel on the ``row`` layout takes."""
    group_rows, group_columns = q.scheme.group_shape(*q.shape)
    return {"row_bytes": q.scheme.format.row_bytes(q.shape[1]), "groups": q.scheme.scale_shape(*q.shape)[1] if q.scheme.has_scale else 1,
            "group_rows": group_rows, "group_columns": group_columns}  # fmt: skip


def weight_arguments(q: QTensor) -> dict:
    """The tensors and sizes that every kernel on the ``row`` layout takes; another layout is turned back first."""
    q = q.relayout("row")
    return {"packed_ptr": q.packed, "scale_ptr": q.group_scale, "zero_point_ptr": q.zero_point, **weight_sizes(q)}


def config(k: int) -> dict[str, int]:
    return {"BLOCK_N": 4, "BLOCK_K": 512, "num_warps": 4}


def dequantize(q: QTensor, dtype: torch.dtype, config: dict[str, int]) -> torch.Tensor:
    """Decoded values ``[N, K]``; nothing is launched for an empty matrix."""
    n, k = q.shape
    out = torch.empty(n, k, dtype=dtype, device=q.device)
    if out.numel():
        grid = (triton.cdiv(n, config["BLOCK_N"]) * triton.cdiv(k, config["BLOCK_K"]),)
        constants = decode_constants(q.scheme, dtype)
        dequantize_tiles[grid](out_ptr=out, N=n, K=k, **weight_arguments(q), **constants, **config, enable_fp_fusion=False)
    return out
