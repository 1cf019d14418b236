"""Floor 3. Packed codes back to numbers: ``dequantize_rows`` where runs of neighbours share bytes and scale, else ``dequantize_tiles``."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..formats.core import Format
from ..formats.packing import load_code
from ..kept import kept
from ..qtensor import QTensor
from ..scheme import Scheme
from .constants import MAX_GRID_Y, decode_constants, next_power_of_two
from .dequantize_rows import dequantize_rows
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
    return {"packed_ptr": q.packed, "scale_ptr": loadable_scale(q), "zero_point_ptr": q.zero_point, **weight_sizes(q)}


def loadable_scale(q: QTensor) -> torch.Tensor | None:
    """16-bit scales are widened by the kernel that loads them; 8-bit and two-level ones are expanded, and kept."""
    stored = q.stored_scale
    return stored if stored is not None and stored.dtype.itemsize == 2 else q.group_scale


def run_length(scheme: Scheme, dtype: torch.dtype) -> int:
    """Neighbours that a thread of dequantize_rows decodes at once: 16 bytes of results, and whole bytes of codes."""
    return max(16 // dtype.itemsize, scheme.format.unit)


def runs_refused(scheme: Scheme, n: int, k: int, dtype: torch.dtype) -> str | None:
    """Why dequantize_rows does not take a matrix, None where it does."""
    run, columns = run_length(scheme, dtype), scheme.group_shape(n, k)[1] if scheme.has_scale else k
    if n * k == 0:
        return "there is nothing to launch"
    if k % run or (columns < k and columns % run):
        return f"{run} neighbours share a scale and fill whole bytes; {scheme} on k={k} has groups of {min(columns, k)} columns"
    return None


def is_flat(scheme: Scheme, n: int, k: int) -> bool:
    """Whether groups follow each other through the whole matrix, so that it may be taken for one long row."""
    rows, columns = scheme.group_shape(n, k) if scheme.has_scale else (n, k)
    return (rows >= n and columns >= k) or (rows == 1 and columns < k and k % columns == 0)


def rows_config(scheme: Scheme, n: int, k: int, dtype: torch.dtype) -> dict[str, int]:
    """One warp, so that nothing waits for a barrier; at most eight runs per thread, as many as divide a row where that is possible."""
    if is_flat(scheme, n, k):
        n, k = 1, n * k
    run = run_length(scheme, dtype)
    threads = min(next_power_of_two(k // run), 32)
    steps = next((steps for steps in (8, 4, 2) if k % (steps * threads * run) == 0), min(next_power_of_two(-(-k // (threads * run))), 8))
    return {"BLOCK_N": 32 // threads, "THREADS": threads, "BLOCK_K": steps * threads * run, "PER_THREAD": run, "num_warps": 1}


TILES = {"BLOCK_N": 4, "BLOCK_K": 512, "num_warps": 4}  # of dequantize_tiles


@kept
def levels_tensor(fmt: Format, device: torch.device) -> torch.Tensor | None:
    """float32 [32]: the levels of a code book, over and over, one for each lane of a warp; None where dequantize_rows looks up none."""
    if fmt.is_integer or fmt.bits > 5:
        return None
    return fmt.levels.repeat(32 // len(fmt.levels)).to(device)


def dequantize_by_rows(q: QTensor, dtype: torch.dtype, config: dict[str, int]) -> torch.Tensor:
    """Decoded values ``[N, K]`` of a matrix that ``runs_refused`` does not refuse."""
    n, k = q.shape
    out = torch.empty(n, k, dtype=dtype, device=q.device)
    fmt, arguments = q.scheme.format, weight_arguments(q)
    columns = arguments["group_columns"]
    arguments = {name: arguments[name] for name in ("scale_ptr", "zero_point_ptr", "groups", "group_rows")}
    group = columns if columns < k else 0
    if is_flat(q.scheme, n, k):
        arguments["groups"], arguments["group_rows"], n, k = 1, 1, 1, n * k
    packed, word = q.relayout("row").packed, config["PER_THREAD"] * fmt.bits // 8
    word = min(word & -word, 4)
    if packed.data_ptr() % word or packed.storage_offset() % word:
        packed = packed.clone()
    packed = packed.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[word])
    tiles = triton.cdiv(n, config["BLOCK_N"])
    deep = triton.cdiv(tiles, MAX_GRID_Y)
    dequantize_rows[triton.cdiv(k, config["BLOCK_K"]), triton.cdiv(tiles, deep), deep](
        packed_ptr=packed, levels_ptr=levels_tensor(fmt, q.device), out_ptr=out, N=n, K=k, row_words=fmt.row_bytes(k) // word,
        GROUP=group, FULL=n % config["BLOCK_N"] == k % config["BLOCK_K"] == tiles % deep == 0,
        **arguments, **decode_constants(q.scheme, dtype), **config, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def dequantize(q: QTensor, dtype: torch.dtype, config: dict[str, int]) -> torch.Tensor:
    """Decoded values ``[N, K]`` of any matrix; nothing is launched for an empty one."""
    n, k = q.shape
    out = torch.empty(n, k, dtype=dtype, device=q.device)
    if out.numel():
        grid = (triton.cdiv(n, config["BLOCK_N"]) * triton.cdiv(k, config["BLOCK_K"]),)
        constants = decode_constants(q.scheme, dtype)
        dequantize_tiles[grid](out_ptr=out, N=n, K=k, **weight_arguments(q), **constants, **config, enable_fp_fusion=False)
    return out
