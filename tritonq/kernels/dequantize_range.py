"""Floor 3. Any rows and columns of the decoded weight, row-major, from any layout: the whole matrix, or a chunk for a matrix product."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..qtensor import QTensor
from .decode_tile import decode_tile, gather_levels, tile_arguments
from .numerics import cast

STEP = 128  # ranges start at multiples of this: layouts pad to it


def _name(specialization) -> str:
    return f"dequantize_range_{specialization.constants['NAME']}"


@jit(repr=_name)
def dequantize_range_tiles(
    packed_ptr, scale_ptr, zero_point_ptr, levels_ptr, second_ptr, out_ptr, first_row, first_column, rows, columns, out_row, N, K,
    packed_row, scale_row, zero_row, group_rows, group_columns,
    NAME: tl.constexpr, LAYOUT: tl.constexpr, COMPUTE: tl.constexpr, DECODE: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr,
    HAS_SCALE: tl.constexpr, AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, PLACES: tl.constexpr, UPPER_PLACES: tl.constexpr,
    SCALE: tl.constexpr, ZERO: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[rows, columns] = w_hat[first_row:, first_column:]; one program per BLOCK_N x BLOCK_K tile."""
    tiles = tl.cdiv(columns, BLOCK_K)
    tile_n = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N
    tile_k = tl.program_id(0) % tiles * BLOCK_K
    value = decode_tile(
        packed_ptr, scale_ptr, zero_point_ptr, levels_ptr, second_ptr, first_row + tile_n, first_column + tile_k, N, K,
        packed_row, scale_row, zero_row, group_rows, group_columns,
        LAYOUT, COMPUTE, DECODE, BITS, SIGNED, HAS_SCALE, AFFINE, FLOAT_ZERO, PLACES, UPPER_PLACES, SCALE, ZERO, UNIT,
        BLOCK_N, BLOCK_K, gather_levels)  # fmt: skip
    n = tile_n + tl.arange(0, BLOCK_N)
    k = tile_k + tl.arange(0, BLOCK_K)
    at = out_ptr + n[:, None] * out_row + k[None, :]
    tl.store(at, cast(value, out_ptr.dtype.element_ty), mask=(n < rows)[:, None] & (k < columns)[None, :])


def config(layout: str) -> dict[str, int]:
    """One tile for every matrix: whole lines of memory to write; as many warps as keep a thread's share in registers."""
    return {"BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4 if layout == "frag" else 8}


def dequantize_range(q: QTensor, out: torch.Tensor, first_row: int = 0, first_column: int = 0) -> torch.Tensor:
    """``w_hat[first_row :, first_column :]`` into ``out`` ``[rows, columns]``, whose rows are dense; the range starts at multiples of 128.

    ``out`` may be wider than the matrix (by less than 16): those columns get finite values without meaning.
    """
    rows, columns = out.shape
    if out.numel() and q.shape[1]:
        tile = config(q.layout)
        grid = (triton.cdiv(rows, tile["BLOCK_N"]) * triton.cdiv(columns, tile["BLOCK_K"]),)
        dequantize_range_tiles[grid](
            out_ptr=out, first_row=first_row, first_column=first_column, rows=rows, columns=columns, out_row=out.stride(0),
            BLOCK_N=tile["BLOCK_N"], num_warps=tile["num_warps"], enable_fp_fusion=False,
            **tile_arguments(q, out.dtype, tile["BLOCK_K"]),
        )  # fmt: skip
    return out
