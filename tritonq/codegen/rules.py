"""Floor 5. What the code of each kernel has to be. A rule applies where the kernel's line in EXPECTED gives it something to check.

For every kernel: no spills beyond what its line allows, no C75xx warning of ptxas, no wgmma left in flight at a wait. Budgets are those of
:mod:`budgets`.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._triton import RELEASE, SCATTERED_REDUCTIONS_FAIL
from . import budgets
from .ttgir import scattered_reductions

if TYPE_CHECKING:
    from .examine import Row

WEIGHT_LOAD = 128  # bits per thread
# What weights that go from the load to the tensor core have no use for: shared memory written, shuffles, conversions, spills.
DETOURS = ("STS", "SHFL", "I2F", "I2FP", "F2F", "STL", "LDL")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What one kernel's code has to be; a field left out is not checked.

    Attributes:
        matrix: the one matrix instruction, or what tells it of a row.
        weights: the argument whose loads take 16 bytes per thread.
        barred: machine instructions that the main loop must not hold.
        gathering: those of them that it may hold where it gathers x by the columns' order.
        parked: bytes per thread that may be spilled; with STL and LDL barred, outside the main loop.
        programs: rows of the tile of x -> programs per multiprocessor, at least (on the architecture of the budgets).
        per: what instructions per weight are counted over: the main "loop", a whole "program", or None where neither is the cost.
        thread: weights of one thread, where compile-time arguments do not tell those of a program.
        budget: the budget of a row of the table, or None.
    """

    matrix: str | Callable[[Row], str] | None = None
    weights: str | None = None
    barred: tuple[str, ...] = ()
    gathering: tuple[str, ...] = ()
    parked: int = 0
    programs: Mapping[int, int] = field(default_factory=dict)
    per: str | None = None
    thread: int | None = None
    budget: Callable[[Row], float | None] = lambda row: None


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A rule that a kernel's code breaks: which kernel, compiled how, which rule, and the value that broke it."""

    kernel: str
    config: str
    rule: str
    value: str

    def __str__(self) -> str:
        return f"{self.kernel} {self.config}: {self.rule}: {self.value}"


def _loop_budget(row: Row, table: dict, tile_of: Callable[[int], dict]) -> float | None:
    """That of the table's row with the same tile at K = budgets.COLUMNS, the least where several have it; None for other tiles."""

    if not row.constants["EVEN_K"]:  # x is masked, which costs instructions of its own
        return None

    def tile(config: dict) -> tuple:
        return tuple(config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))

    return min((value for (scheme, dtype, m), value in table.items() if (scheme, dtype) == (row.scheme, row.dtype)
                and tile(tile_of(m)) == tile(row.constants)), default=None)  # fmt: skip


def _frag_budget(row: Row) -> float | None:
    from ..kernels.frag_launch import config

    def tile(m: int, multiprocessors: int) -> dict:
        return config(m, row.n, budgets.COLUMNS, row.desc.scheme, multiprocessors, budgets.ARCH)

    more = row.constants["GATED"] * budgets.of_release(budgets.MATMUL_FRAG_GATED) + row.gathers * budgets.MATMUL_FRAG_GATHERING
    tables = [{key: round(value + more, 2) for key, value in table.items()} for table in (budgets.MATMUL_FRAG, budgets.MATMUL_FRAG_FEW)]
    enough = _loop_budget(row, tables[0], lambda m: tile(m, 1))
    return _loop_budget(row, tables[1], lambda m: tile(m, row.n)) if enough is None else enough


def _frag_matrix(row: Row) -> str:
    """wgmma where a program has whole groups of four warps on Hopper; a tile of 8 rows of x is mma.sync on Triton 3.6 all the same."""
    groups = row.arch == 90 and row.report.num_warps % 4 == 0
    return "HGMMA" if groups and (row.constants["BLOCK_M"] > 8 or RELEASE >= (3, 9)) else "HMMA"


def _ksplit_budget(row: Row) -> float | None:
    from ..kernels.ksplit_launch import config

    return _loop_budget(row, budgets.MATMUL_KSPLIT, lambda m: config(m, row.n, budgets.COLUMNS, row.desc.scheme, 1, hip=False))


def _quantize_budget(row: Row) -> float | None:
    if row.dtype != "bfloat16" or not row.constants["FULL"] or row.scheme not in budgets.QUANTIZE_ROWS:
        return None
    return budgets.of_release(budgets.QUANTIZE_ROWS[row.scheme])


def _quantize_frag_budget(row: Row) -> float | None:
    whole = row.n % 64 == 0 and row.k % 128 == 0
    if row.dtype != "bfloat16" or not whole or row.scheme not in budgets.QUANTIZE_FRAG:
        return None
    return budgets.of_release(budgets.QUANTIZE_FRAG[row.scheme])


def _dequantize_budget(row: Row) -> float | None:
    return budgets.DEQUANTIZE_ROWS.get(row.scheme) if row.dtype == "bfloat16" and row.constants["FULL"] else None


UNLISTED = Expected()
EXPECTED: dict[str, Expected] = {
    # everything in the loop is copied ahead
    "matmul_frag": Expected(
        matrix=_frag_matrix, weights="w_ptr", barred=(*DETOURS, "LDG"), gathering=("LDG", "STS"), programs={8: 4, 16: 4, 32: 2, 64: 1},
        per="loop", budget=_frag_budget,
    ),
    # ptxas keeps a few values of the epilogue out of registers where one more program then fits a multiprocessor
    "matmul_ksplit": Expected(matrix="HMMA", barred=("SHFL", "STL", "LDL"), parked=24, per="loop", budget=_ksplit_budget),
    "matmul_tiles": Expected(per="loop"),
    "dequantize_rows": Expected(per="program", budget=_dequantize_budget),
    "quantize_rows": Expected(per="program", budget=_quantize_budget),
    "quantize_area": Expected(),
    # of a run of one step; what it takes of a longer one is that of a pass through each loop
    "quantize_frag": Expected(per="program", thread=64, budget=_quantize_frag_budget),
    "quantize_ksplit": Expected(),
    "range_partials": Expected(per="program"),
    "dequantize_tiles": Expected(per="program"),
    "dequantize_range_tiles": Expected(per="program"),
    "matmul_dx_tiles": Expected(per="loop"),
    "epilogue_tiles": Expected(),
}


def _spills(row: Row) -> str | None:
    return f"{row.spills} bytes per thread" if row.spills > row.expected.parked else None


def _warnings(row: Row) -> str | None:
    return "; ".join(row.warnings) or None


def _waits(row: Row) -> str | None:
    left = [pendings for pendings in row.wgmma_in_flight if pendings]
    return f"warp_group_dot_wait leaves {max(left)} in flight" if left else None


def _fences(row: Row) -> str | None:
    return "wgmma reads what cp.async wrote without fence.proxy.async between the wait and the product" if row.report.unfenced else None


def _reductions(row: Row) -> str | None:
    return "; ".join(scattered_reductions(row.report.ttgir)) or None if SCATTERED_REDUCTIONS_FAIL else None


def _matrix(row: Row) -> str | None:
    want = row.expected.matrix
    want = want(row) if callable(want) else want
    got = [kind for kind in row.matrix if kind.split(".")[0] != want]
    return f"{', '.join(got) or 'none'} instead of {want}" if want and (got or not row.matrix) else None


def _weight_loads(row: Row) -> str | None:
    name = row.expected.weights
    widths = row.weight_loads
    if name is None or (widths and min(widths) >= WEIGHT_LOAD):
        return None
    return f"{name} is loaded {min(widths)} bits at a time" if widths else f"no load of {name} was found"


def _barred(row: Row) -> str | None:
    barred = set(row.expected.barred) - set(row.expected.gathering if row.gathers else ())
    found = [f"{count} {kind}" for kind, count in row.loop.items() if kind in barred]
    return f"{', '.join(found)} in the main loop" if found else None


def _budget(row: Row) -> str | None:
    over = row.budget is not None and row.per_weight > row.budget
    return f"{row.per_weight:.3f} instructions per weight, at most {row.budget}" if over else None


def _programs(row: Row) -> str | None:
    least = row.expected.programs.get(row.constants.get("BLOCK_M"), 0) if row.arch == budgets.ARCH else 0
    return f"{row.programs} programs per multiprocessor, at least {least}" if (row.programs or 0) < least else None


def _listed(row: Row) -> str | None:
    return "the kernel has no line in tritonq/codegen/rules.py" if row.expected is UNLISTED else None


GENERAL = {"spills": _spills, "ptxas warnings": _warnings, "waits": _waits, "proxy fence": _fences, "reductions": _reductions,
           "listed": _listed}  # fmt: skip
MACHINE_CODE = {
    "matrix instruction": _matrix, "weight loads": _weight_loads, "main loop": _barred, "budget": _budget, "occupancy": _programs,
}  # fmt: skip


def violations(row: Row) -> list[Violation]:
    """Every rule that the row breaks. Machine code is read on CUDA architectures only."""
    rules = GENERAL | (MACHINE_CODE if isinstance(row.arch, int) else {})
    found = {name: rule(row) for name, rule in rules.items()}
    return [Violation(kernel=row.kernel, config=row.config, rule=name, value=value) for name, value in found.items() if value]
