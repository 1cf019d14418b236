"""Floor 3. Configuration and launch of :mod:`matmul_ksplit`."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..layouts import ksplit
from ..qtensor import QTensor
from ..scheme import Scheme
from .bound import BoundMatmul
from .constants import kernel_name
from .ksplit_codes import codec, level_table
from .matmul import ACTIVATIONS
from .matmul_ksplit import matmul_ksplit
from .split_k import MOST_SPLIT_TILES


def config(m: int, n: int, k: int, scheme: Scheme, multiprocessors: int, hip: bool) -> dict[str, int]:
    """Tile, warps, stages and split for a product ``[m, k] x [n, k]`` on a device with that many multiprocessors.

    Two warps per program: mma.sync on every NVIDIA GPU, and so no dependence on the proxy fence that Triton 3.6 leaves out between
    cp.async and wgmma. Tiles are as large as registers allow; AMD has twice as many, and its matrix instructions take 16 rows of x.
    """
    plain, run = scheme.format.is_integer and not scheme.float_zero, run_columns(scheme, k)
    rows = (16, 32, 64) if hip else (8, 16, 32) if plain and run >= 64 else (8, 16) if run >= 16 else (8,)
    block_m = next((size for size in rows if m <= size), rows[-1])
    block_n = 64 if hip or (plain and not scheme.format.affine and run >= 32 and block_m <= 16) else 32
    blocks, tiles = triton.cdiv(k, ksplit.BLOCK), triton.cdiv(n, block_n) * triton.cdiv(m, block_m)
    programs, split = multiprocessors * 256 // block_n, 1  # in flight at once, to hide the latency of memory
    while split < 8 and tiles * split * 2 <= programs and blocks >= 4 * split and tiles <= MOST_SPLIT_TILES:
        split *= 2
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": ksplit.BLOCK, "SPLIT_K": split, "STAGES": 2 if hip else 3, "num_warps": 2}


def run_columns(scheme: Scheme, k: int) -> int:
    """Columns that surely share a group and are summed in one accumulator: a power of two, at most those of a block."""
    columns = scheme.group_shape(1, k)[1]
    return ksplit.BLOCK if columns >= k else min(columns & -columns, ksplit.BLOCK)


@jit
def _as_float(stored):
    return stored.to(tl.float32)


def _constants(q: QTensor, dtype: torch.dtype) -> dict:
    scheme, fmt = q.scheme, q.scheme.format
    chosen, columns = codec(fmt, dtype), scheme.group_shape(*q.shape)[1]
    return {
        "NAME": kernel_name(scheme), "UNPACK": chosen.unpack, "TABLE": chosen.table, "BITS": fmt.bits,
        "GROUP": 0 if columns >= q.shape[1] else columns, "RUN": run_columns(scheme, q.shape[1]),
        "SCALE": _as_float if "dq" in scheme.options else scheme.scale_format(q.dtype).decode,
        "INTEGER_ZERO": _as_float if fmt.affine and not scheme.float_zero else None,
        "FLOAT_ZERO": scheme.zero_format(q.dtype).decode if scheme.float_zero else None,
        "OFFSET": float(2 ** (fmt.bits - 1)) if fmt.signed else 0.0,
    }  # fmt: skip


def bind(x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None, activation: str | None,
         config: dict[str, int], shape: tuple[int, ...]) -> BoundMatmul:  # fmt: skip
    """x ``[M, K]`` float16 or bfloat16 of any strides, q in layout ``ksplit``; nothing is launched for an empty result."""
    m, n, k = x.shape[0], *q.shape
    blocks, tiles_m = triton.cdiv(k, ksplit.BLOCK), triton.cdiv(m, config["BLOCK_M"])
    scale = q.stored_scale if q.expanded_scale is None else q.expanded_scale
    second = q.second_scale if q.scheme.recipe == "nv" else None
    return BoundMatmul(
        matmul_ksplit, (triton.cdiv(n, config["BLOCK_N"]) * tiles_m, config["SPLIT_K"]), x, q, bias, residual, shape=shape,
        weight=(q.packed, level_table(q.scheme.format, x.dtype, x.device), scale, second, q.zero_point),
        constants={
            "w_row": q.packed.shape[1], "scale_row": scale.shape[1], "tiles_m": tiles_m, "blocks": blocks,
            "per_split": -(-blocks // config["SPLIT_K"]), "ACTIVATION": ACTIVATIONS[activation], "EVEN_K": k % ksplit.BLOCK == 0,
            **_constants(q, x.dtype), **config,
        },
    )  # fmt: skip
