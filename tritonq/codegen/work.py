"""Floor 5. What one launch has to do, counted from problem and machine code: programs, passes of the main loop, bytes, instructions."""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..errors import UnsupportedError
from ..plans.descriptors import DequantizeDesc, Desc, MatmulBackwardDesc, MatmulDesc, QuantizeDesc
from ..qtensor import expected_bytes
from .examine import Row, elements


@dataclass(frozen=True, kw_only=True)
class Work:
    """One launch.

    Attributes:
        programs: of the grid.
        passes: of the main loop, per program; 1 where there is none.
        ahead: passes whose loads are under way while one is computed; 0 where a pass waits for its own.
        memory: bytes that have to cross the edge of the chip: each input read once, each output written once.
        cache: bytes between L2 and the multiprocessors: every program's share, read again by every tile, and partial sums.
        flops: of all tiles, padding included; 0 without tensor cores.
        splits: programs that share a sum.
        issue: warp instructions that one program issues; 0 where the machine code cannot be read.
        pipes: cycles that one program keeps a pipe of a multiprocessor busy.
    """

    programs: int
    passes: int
    ahead: int
    memory: int
    cache: int
    flops: int
    splits: int
    issue: float
    pipes: dict[str, float]


def work(row: Row) -> Work:
    """That of a row whose kernel this module knows.

    Raises:
        UnsupportedError: it does not.
    """
    if row.kernel not in _PASSES:
        raise UnsupportedError(f"the model of speed knows no {row.kernel}; it knows {', '.join(_PASSES)}")
    if row.kernel.startswith("dequantize") and not isinstance(row.desc, DequantizeDesc):
        raise UnsupportedError(f"{row.kernel} is a part of {row.desc}; the model knows no products of the vendor's library")
    has = row.constants
    passes, splits = _PASSES[row.kernel](row), has.get("SPLIT_K", 1)
    issue, pipes = _instructions(row, passes)
    programs = prod(row.grid)
    flops = 2 * programs * passes * elements(has) * has["BLOCK_M"] if row.matrix else 0
    if "BLOCK_M" in has and not row.report.cubin:  # AMD: dots of 16-bit operands run on its matrix units
        flops = 2 * programs * passes * elements(has) * has["BLOCK_M"]
    return Work(programs=programs, passes=passes, ahead=max(has.get("STAGES", 1) - 1, 0) if "BLOCK_M" in has else 1,
                memory=moved(row.desc), cache=_cache(row, splits), flops=flops, splits=splits, issue=issue, pipes=pipes)  # fmt: skip


def moved(desc: Desc) -> int:
    """Bytes that have to cross the edge of the chip, whatever the kernel: each input read once, each output written once."""
    weight, dense, size = stored_bytes(desc), desc.n * desc.k, desc.dtype.itemsize
    if isinstance(desc, QuantizeDesc | DequantizeDesc):
        return weight + size * dense
    if isinstance(desc, MatmulBackwardDesc):
        return weight + size * desc.m * (desc.n + desc.k)
    assert isinstance(desc, MatmulDesc)
    return weight + size * (desc.m * (desc.k + desc.features * (1 + desc.residual)) + desc.n * desc.bias)


def stored_bytes(desc: Desc) -> int:
    """Of the quantized matrix: codes, scales, zero points."""
    return expected_bytes(desc.scheme, (desc.n, desc.k), getattr(desc, "source_dtype", desc.dtype), desc.layout)


def _cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def _columns_passes(row: Row) -> int:
    """A split takes whole blocks of K; a pass may be a part of one."""
    has = row.constants
    return _cdiv(_cdiv(row.k, has["BLOCK_K"]), has.get("SPLIT_K", 1)) * has["BLOCK_K"] * has["BLOCK_N"] // elements(has)


_PASSES = {
    "matmul_frag": _columns_passes,
    "matmul_ksplit": _columns_passes,
    "matmul_tiles": _columns_passes,
    "matmul_dx_tiles": lambda row: _cdiv(_cdiv(row.n, row.constants["BLOCK_N"]), row.constants["SPLIT_K"]),
    "quantize_rows": lambda row: 1,
    "dequantize_rows": lambda row: 1,
    "dequantize_tiles": lambda row: 1,
    "dequantize_range_tiles": lambda row: 1,
}


def _cache(row: Row, splits: int) -> int:
    """Every tile of one operand reads all of the other; partial sums are written and read once each."""
    desc, has, total = row.desc, row.constants, moved(row.desc)
    if "BLOCK_M" not in has:
        return total
    tiles_m = _cdiv(desc.m, has["BLOCK_M"])
    backward = isinstance(desc, MatmulBackwardDesc)
    tiles = _cdiv(desc.k, has["BLOCK_K"]) if backward else _cdiv(desc.n, has["BLOCK_N"])
    dense = desc.dtype.itemsize * desc.m * (desc.n if backward else desc.k)  # a tile of fewer rows than BLOCK_M asks for the last one again
    partial = 8 * splits * desc.m * (desc.k if backward else desc.n) if splits > 1 else 0
    return total + stored_bytes(desc) * (tiles_m - 1) + dense * (tiles - 1) + partial


def _instructions(row: Row, passes: int) -> tuple[float, dict[str, float]]:
    """Warp instructions and busy cycles of one program: the loop as often as it runs, everything else once."""
    if not row.report.cubin:
        return 0.0, {}
    report, warps = row.report, row.report.num_warps
    count, every = len(report.instructions), report.busy
    if row.expected.per == "loop":
        loop, again = len(report.main_loop), report.busy_in_loop
        issue = count - loop + passes * loop
        return warps * issue, {pipe: warps * (every[pipe] + (passes - 1) * again[pipe]) for pipe in every}
    share = report.shortest_path / count  # special values take ways of their own
    return warps * report.shortest_path, {pipe: warps * share * cycles for pipe, cycles in every.items()}
