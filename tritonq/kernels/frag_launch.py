"""Floor 3. Configuration and launch of :mod:`matmul_frag`: tiles, splits, tables, counters."""
from __future__ import annotations

import torch

from .._triton import LACKS_PROXY_FENCE, tl, triton
from ..formats import Format
from ..kept import kept
from ..layouts import frag, frag_codes
from ..layouts.byte_planes import byte_planes
from ..qtensor import QTensor
from ..scheme import Scheme
from .bound import BoundMatmul
from .constants import kernel_name
from .fragment_asm import BOOK_FACTORS, unpacker, zero_point_asm
from .matmul import ACTIVATIONS, GATED
from .matmul_frag import matmul_frag
from .split_k import MOST_SPLIT_TILES, sums_at_once

GATED_ROWS = 32  # of the gate, and as many of up, that a program with a gated activation takes at least
SPLITS = (1, 2, 4, 8, 16)  # that the heuristics choose from


def config(m: int, n: int, k: int, scheme: Scheme, multiprocessors: int, arch: int | None, *, gated: bool = False) -> dict[str, int]:
    """Tile, warps, stages and split for a product ``[m, k] x [n, k]`` on a device with that many multiprocessors."""
    if arch == 90 and m > (32 if scheme.float_zero else 16):  # ptxas serialises wgmma with two sums of 32 rows
        return _wgmma_config(m, n, k, scheme, multiprocessors, gated)
    # Two warps per program make mma.sync everywhere: the shortest loop and the most programs per multiprocessor.
    spills = scheme.float_zero and scheme.format.bits == 3  # with 32 rows of x: two sums, and 256 columns at once
    block_m = 8 if m <= 8 else 16 if m <= 16 or spills else 32
    return _tall_config(block_m, m, n, k, scheme, multiprocessors, gated) or _base_config(block_m, m, n, k, scheme, multiprocessors)


def _tall_config(block_m: int, m: int, n: int, k: int, scheme: Scheme, multiprocessors: int, gated: bool) -> dict[str, int] | None:
    """128 rows of W per program, from 9 rows of x on; None where they would spill, or leave too few programs.

    x crosses from L2 half as often as with 64, and a register of x serves twice as many weights.
    """
    if block_m == 8 or block_m == 32 and not _holds_32_by_128(scheme, k) or gated and n % 128:
        return None
    block_k = max(128, frag_codes.k_multiple(scheme.format))
    tiles, steps = triton.cdiv(n, 128) * triton.cdiv(m, block_m), frag.wide(scheme, (n, k)) // block_k
    split = next((split for split in SPLITS if tiles * split >= 2.5 * multiprocessors), None)
    if split is None or steps < 4 * split:
        return None
    return {"BLOCK_M": block_m, "BLOCK_N": 128, "BLOCK_K": block_k, "SPLIT_K": split, "STAGES": 3, "num_warps": 2}


def _holds_32_by_128(scheme: Scheme, k: int) -> bool:
    """Whether two warps hold the sums of 128 rows of W and 32 of x without spilling."""
    bits, group = scheme.format.bits, group_constant(scheme, k)
    return not scheme.float_zero and not frag_codes.is_book(scheme.format) and (bits == 8 or bits != 3 and (group & -group) % 128 == 0)


def _base_config(block_m: int, m: int, n: int, k: int, scheme: Scheme, multiprocessors: int) -> dict[str, int]:
    """64 rows of W per program."""
    wide, book, bits = frag.wide(scheme, (n, k)), frag_codes.is_book(scheme.format), scheme.format.bits
    narrow = block_m < 32 and not book  # leaves registers for 256 columns at once
    # 16 groups in 256 columns keep the compiler at work for ten seconds and save 4 % of the instructions; dots of 16 8-bit columns spill.
    group = group_constant(scheme, k)
    short = group == 16 or bits == 8 and group % 32 > 0
    block_k = 256 if frag_codes.k_multiple(scheme.format) == 256 or wide % 256 == 0 and narrow and not short else 128
    # In flight at once, to hide the latency of memory; a code book with 8 rows is bound by instructions, of which none may have more.
    programs = multiprocessors * (4 if block_m > 8 else 8 if book else 6)
    split = _split(triton.cdiv(n, 64) * triton.cdiv(m, block_m), wide // block_k, programs)
    chosen = {"BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": block_k, "SPLIT_K": split, "STAGES": 3, "num_warps": 2}
    # Unasked, ptxas stops at 80 registers with 8 rows, which some of these loops pass by a few bytes on some architecture (of 128 they take
    # 75 to 120).
    return {**chosen, "maxnreg": 128} if block_m == 8 and narrow and (scheme.float_zero or bits < 8) else chosen


def _wgmma_config(m: int, n: int, k: int, scheme: Scheme, multiprocessors: int, gated: bool) -> dict[str, int]:
    """More than 16 rows on Hopper: W, still in registers, multiplies 32 or 64 rows of x at a time.

    x crosses from L2 once per 128 rows of W. With 64 rows of x two programs of 8 warps per multiprocessor unpack and multiply in turns,
    which takes at most 128 registers: groups of 32 columns need more, of 64 with float zero points, and 4 warps.
    """
    wide, group = frag.wide(scheme, (n, k)), group_constant(scheme, k)
    block_m = 32 if m <= 32 else 64
    few = gated and (n % 128 > 0 or scheme.float_zero) or block_m == 64 and 0 < group <= (64 if scheme.float_zero else 32)
    block_n, block_k = 64 if few else 128, max(128, frag_codes.k_multiple(scheme.format))
    warps = 8 if block_m == 64 and not few else 4
    tiles, least = triton.cdiv(n, block_n) * triton.cdiv(m, block_m), 256 if warps == 8 else block_k
    # 256 columns at once do not leave registers for a second program; nor do float zero points or masks with split-K.
    bits, book, tight = scheme.format.bits, frag_codes.is_book(scheme.format), scheme.float_zero or k % block_k > 0
    alone = warps == 8 and (block_k == 256 or tight)
    split = _split(tiles, wide // least, multiprocessors * (1 if alone else 2))
    chosen = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "SPLIT_K": split, "STAGES": 3, "num_warps": warps}
    # Unasked these loops take a few registers more than 128; code books only with many splits, and with fewer they spill if told.
    crowded = split == 1 and (scheme.float_zero or bits in (2, 8)) if tight else split > 2 or not book
    crowded = crowded and warps == 8 and block_k == 128
    return {**chosen, "maxnreg": 128} if crowded else chosen


def _split(tiles: int, steps: int, programs: int) -> int:
    """Programs along K: as long as twice as many still run side by side and have four steps each."""
    split = 1
    while split < SPLITS[-1] and tiles * split * 2 <= programs and steps >= 8 * split and tiles <= MOST_SPLIT_TILES:
        split *= 2
    return split


def gathers(m: int, scheme: Scheme) -> bool:
    """Whether the kernel itself gathers x by ``column_order``; otherwise a launch ahead of it does.

    A model, not a measurement: up to 8 rows this is 0.7 instructions per weight, which only code books cannot hide behind memory.
    """
    return m <= 8 and not frag_codes.is_book(scheme.format)


def dot_columns(k: int, scheme: Scheme, config: dict[str, int]) -> int:
    """Columns summed in one fresh accumulator: the largest power of two that divides a group, BLOCK_K at most."""
    group = group_constant(scheme, k)
    return min(config["BLOCK_K"], group & -group or config["BLOCK_K"])


def group_constant(scheme: Scheme, k: int) -> int:
    """Columns of a group, 0 where a group is a whole row."""
    columns = scheme.group_shape(1, k)[1]
    return 0 if columns >= k else columns


@kept
def table_words(fmt: Format, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """The byte planes of a code book and the factors of their asm on the device, each word 8 times; None for other codes."""
    if not frag_codes.is_book(fmt):
        return None
    return torch.tensor((*byte_planes(fmt, dtype).words, *BOOK_FACTORS), dtype=torch.int32).repeat_interleave(8).to(device)


def _constants(q: QTensor, dtype: torch.dtype, config: dict[str, int], arch: int | None) -> dict:
    scheme, (_, k) = q.scheme, q.shape
    fmt, affine = scheme.format, scheme.format.affine and not scheme.float_zero
    pattern = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: "rows"}
    zero = frag.loaded_dtype(scheme.zero_format(q.dtype).dtype) if scheme.float_zero else None
    how = unpacker(fmt, dtype, affine, arch)
    return {
        "NAME": kernel_name(scheme), "BITS": fmt.bits, "ASM": how.asm, "CONSTRAINTS": how.constraints, "FACTOR": how.factor,
        "ZERO_ASM": zero_point_asm(dtype) if affine else None, "GROUP": group_constant(scheme, k), "DOT": dot_columns(k, scheme, config),
        "SCALE": pattern[frag.scale_dtype(scheme, q.dtype)], "FLOAT_ZERO": None if zero is None else pattern[zero],
    }  # fmt: skip


def bind(x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None, activation: str | None,
         config: dict[str, int], shape: tuple[int, ...], *, arch: int | None = None) -> BoundMatmul:  # fmt: skip
    """x ``[M, K]`` float16 or bfloat16 of any strides, q in layout ``frag``; nothing is launched for an empty result.

    arch: None where it is not known, as on the CPU; proxy fences exist from sm_90 on, conversions of 8-bit floats from sm_89 on.
    """
    m, n, k = x.shape[0], *q.shape
    steps = frag.wide(q.scheme, q.shape) // config["BLOCK_K"]
    tiles_m, table = triton.cdiv(m, config["BLOCK_M"]), table_words(q.scheme.format, x.dtype, x.device)
    scale = q.stored_scale if q.expanded_scale is None else q.expanded_scale
    return BoundMatmul(
        matmul_frag, (triton.cdiv(n, config["BLOCK_N"]) * tiles_m, config["SPLIT_K"]), x, q, bias, residual, shape=shape,
        weight=(q.packed, scale, q.zero_point, q.second_scale if q.scheme.recipe == "nv" else None, table,
                q.column_order if gathers(m, q.scheme) else None),
        constants={
            "w_row": q.packed.shape[1], "scale_row": scale.shape[1], "zero_row": None if q.zero_point is None else q.zero_point.shape[1],
            "marks": scale.shape[0] - 1 if frag.marks_rows(q.scheme.format) else None,
            "blocks": q.packed.shape[0], "tiles_m": tiles_m, "steps": steps, "per_split": -(-steps // config["SPLIT_K"]),
            "AT_ONCE": sums_at_once(config), "ACTIVATION": ACTIVATIONS[activation], "GATED": activation in GATED,
            "EVEN_K": k == steps * config["BLOCK_K"],
            "FENCE": config["num_warps"] % 4 == 0 and LACKS_PROXY_FENCE and (arch is None or arch >= 90),
            **_constants(q, x.dtype, config, arch), **config,
        },
    )  # fmt: skip
