"""Floor 3. dx[M, K] = dy[M, N] @ w_hat[N, K] straight from the packed weight, for every scheme, layout, shape and dtype.

The scale changes along the sum, so it is multiplied into the weight before the product: in float32 (float64), and then, where dy has 16
bits, rounded once to dy's dtype for the tensor core. Sums are float32. With split-N partial sums go to the workspace and a second launch
adds them in order, so results do not depend on which program came first.
"""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..qtensor import QTensor
from .constants import contracts
from .decode_tile import decode_tile, load_levels, tile_arguments
from .split_k import MOST_SPLIT_TILES, finish_split, partial_sums


def _name(specialization) -> str:
    return f"matmul_dx_{specialization.constants['NAME']}"


@jit(repr=_name)
def matmul_dx_tiles(
    dy_ptr, packed_ptr, scale_ptr, zero_point_ptr, levels_ptr, second_ptr, out_ptr, partial_ptr, counter_ptr,
    M, N, K, dy_row, dy_col, tiles_m, per_split, partial_size, packed_row, scale_row, zero_row, group_rows, group_columns,
    NAME: tl.constexpr, LAYOUT: tl.constexpr, COMPUTE: tl.constexpr, DECODE: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr,
    HAS_SCALE: tl.constexpr, AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, PLACES: tl.constexpr, UPPER_PLACES: tl.constexpr,
    SCALE: tl.constexpr, ZERO: tl.constexpr, UNIT: tl.constexpr,
    DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of K times tiles of M, SPLIT_K); neighbours share a tile of W. SPLIT_K cuts the sum, which runs along N here."""
    tile_k = tl.program_id(0) // tiles_m * BLOCK_K
    m = (tl.program_id(0) % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile_k + tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    first = split * per_split
    last = tl.minimum(first + per_split, tl.cdiv(N, BLOCK_N))
    acc = tl.zeros((BLOCK_M, BLOCK_K), COMPUTE)
    tile_n = first.to(tl.int64) * BLOCK_N
    for _ in range(first, last):
        w = decode_tile(
            packed_ptr, scale_ptr, zero_point_ptr, levels_ptr, second_ptr, tile_n, tile_k, N, K,
            packed_row, scale_row, zero_row, group_rows, group_columns,
            LAYOUT, COMPUTE, DECODE, BITS, SIGNED, HAS_SCALE, AFFINE, FLOAT_ZERO, PLACES, UPPER_PLACES, SCALE, ZERO, UNIT,
            BLOCK_N, BLOCK_K, load_levels)  # fmt: skip
        n = tile_n + tl.arange(0, BLOCK_N)
        at = dy_ptr + m[:, None] * dy_row + n[None, :] * dy_col
        dy = tl.load(at, mask=(m < M)[:, None] & (n < N)[None, :], other=0.0).to(DOT)
        if tl.float64 == COMPUTE:
            acc += tl.sum(dy[:, :, None] * w[None, :, :], 1)
        else:
            acc = tl.dot(dy, w.to(DOT), acc, input_precision="ieee")
        tile_n += BLOCK_N
    finish_split(tl.trans(acc), m, k, M, K, split, None, None, out_ptr, partial_ptr, counter_ptr, 0, 0, 0, partial_size,
                 None, False, 1.0, SPLIT_K, SPLIT_K)  # fmt: skip


_DOT = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}


def config(m: int, n: int, k: int, compute: torch.dtype, multiprocessors: int) -> dict[str, int]:
    """Tile, warps and split: two programs per multiprocessor where N is long enough to give each four tiles."""
    if compute == torch.float64:
        return {"BLOCK_M": 2, "BLOCK_N": 64, "BLOCK_K": 64, "SPLIT_K": 1, "num_warps": 8}
    block_m = 16 if m <= 16 else 32
    tiles, split = triton.cdiv(k, 64) * triton.cdiv(m, block_m), 1
    while split < 16 and tiles * split < 2 * multiprocessors and n >= 2 * split * 4 * 64 and tiles <= MOST_SPLIT_TILES:
        split *= 2
    return {"BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": 64, "SPLIT_K": split, "num_warps": 4}


def matmul_dx(dy: torch.Tensor, q: QTensor, config: dict[str, int], workspace: torch.Tensor | None = None) -> torch.Tensor:
    """dy ``[M, N]`` of any strides -> ``[M, K]`` in its dtype; nothing is launched for an empty result."""
    (m, n), k, split = dy.shape, q.shape[1], config["SPLIT_K"]
    out = torch.empty(m, k, dtype=dy.dtype, device=dy.device)
    if not out.numel():
        return out
    arguments = tile_arguments(q, dy.dtype, config["BLOCK_K"])
    tiles_m, tiles_n = triton.cdiv(m, config["BLOCK_M"]), triton.cdiv(n, config["BLOCK_N"])
    tiles, partial, counter = triton.cdiv(k, config["BLOCK_K"]) * tiles_m, None, None
    if split > 1:
        partial, counter = partial_sums(workspace, split * m * k, tiles, dy.device)
    matmul_dx_tiles[(tiles, split)](
        dy_ptr=dy, out_ptr=out, partial_ptr=partial, counter_ptr=counter, M=m, dy_row=dy.stride(0), dy_col=dy.stride(1),
        tiles_m=tiles_m, per_split=-(-tiles_n // split), partial_size=m * k,
        DOT=arguments["COMPUTE"] if arguments["COMPUTE"] == tl.float64 else _DOT[dy.dtype],
        enable_fp_fusion=contracts(arguments["COMPUTE"]), **(arguments | config),
    )  # fmt: skip
    return out
