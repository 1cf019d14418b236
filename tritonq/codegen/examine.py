"""Floor 5. From a problem to what the compiler makes of the kernel that ``select`` chooses for it. No tensor of that size holds data."""
from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..dtypes import dtype_name
from ..errors import InvalidProblemError
from ..layouts import get_layout
from ..plans.core import PlanPreference
from ..plans.descriptors import DequantizeDesc, Desc, MatmulBackwardDesc, MatmulDesc, QuantizeDesc
from ..plans.registry import KernelEntry
from ..plans.select import select
from ..plans.space import Config
from ..qtensor import QTensor
from . import budgets
from .compiler import Report
from .launches import Launch, launches
from .occupancy import programs_per_multiprocessor
from .rules import EXPECTED, UNLISTED, Expected, Violation, violations
from .sass import MATRIX


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One kernel compiled for one problem: what it is, what it costs, what is expected of it."""

    desc: Desc
    kernel: str
    report: Report
    constants: dict = field(repr=False)
    expected: Expected
    grid: tuple[int, ...] = ()

    @property
    def arch(self) -> int | str:
        return self.report.arch

    @property
    def n(self) -> int:
        return self.desc.n

    @property
    def k(self) -> int:
        return self.desc.k

    @property
    def scheme(self) -> str:
        return str(self.desc.scheme)

    @property
    def dtype(self) -> str:
        return dtype_name(self.desc.dtype)

    @property
    def tile(self) -> str:
        """``8x64x256 w2 s3 split 4``: the tile, warps, stages and splits, as far as the kernel has them."""
        has = self.constants
        sizes = [str(has[name]) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_G") if name in has]
        text = "x".join(sizes) + f" w{self.report.num_warps}"
        text += f" s{has['STAGES']}" if "STAGES" in has else ""
        return text + (f" split {has['SPLIT_K']}" if has.get("SPLIT_K", 1) > 1 else "")

    @property
    def config(self) -> str:
        return f"{self.desc} {self.tile}"

    @property
    def gathers(self) -> bool:
        """Whether the kernel reads the order of the columns itself, to gather x by it."""
        return "order_ptr" in self.report.loads

    @property
    def registers(self) -> int:
        return self.report.registers

    @property
    def spills(self) -> int:
        return self.report.spills

    @property
    def shared(self) -> int:
        return self.report.shared

    @property
    def warnings(self) -> list[str]:
        return self.report.warnings

    @property
    def wgmma_in_flight(self) -> list[int]:
        return self.report.wgmma_in_flight

    @cached_property
    def loop(self) -> dict[str, int]:
        """How often each machine instruction occurs in the main loop, without modifiers."""
        return dict(self.report.histogram(in_loop=True)) if self.report.cubin else {}

    @property
    def matrix(self) -> list[str]:
        """The matrix instructions of the main loop, with their shape: ``["HMMA.16816.F32"]``."""
        if not self.report.cubin:
            return []
        return [kind for kind in self.report.histogram(in_loop=True, modifiers=True) if kind.split(".")[0] in MATRIX]

    @property
    def weight_loads(self) -> list[int]:
        """The different widths, in bits per thread, of loads through the weights' argument."""
        return sorted(set(self.report.loads.get(self.expected.weights, ())))

    @property
    def waits(self) -> int:
        """Waits for asynchronous copies or wgmma in the main loop."""
        return sum(count for kind, count in self.loop.items() if kind in ("DEPBAR", "WARPGROUP", "SYNCS"))

    @property
    def per_weight(self) -> float | None:
        """Machine instructions that a thread executes for each weight that it handles; see ``Expected.per``."""
        if not self.report.cubin or self.expected.per is None:
            return None
        count = len(self.report.main_loop) if self.expected.per == "loop" else self.report.shortest_path
        return count / (self.expected.thread or elements(self.constants) / (32 * self.report.num_warps))

    @property
    def budget(self) -> float | None:
        return self.expected.budget(self) if self.arch == budgets.ARCH else None

    @property
    def programs(self) -> int | None:
        """Programs that one multiprocessor holds at a time."""
        return programs_per_multiprocessor(self.arch, registers=self.registers, shared=self.shared, num_warps=self.report.num_warps)

    def violations(self) -> list[Violation]:
        """Every rule of :mod:`rules` that this code breaks."""
        return violations(self)

    def summary(self) -> dict:
        """Plain values for JSON."""
        per_weight = None if self.per_weight is None else round(self.per_weight, 3)
        return {
            "kernel": self.kernel, "problem": str(self.desc), "scheme": self.scheme, "dtype": self.dtype,
            "m": getattr(self.desc, "m", None), "n": self.n, "k": self.k, "arch": self.arch, "tile": self.tile,
            "registers": self.registers, "spills": self.spills, "shared": self.shared, "programs": self.programs,
            "matrix": self.matrix, "weight_loads": self.weight_loads, "waits": self.waits, "per_weight": per_weight,
            "budget": self.budget, "warnings": self.warnings,
            "violations": [{"rule": v.rule, "value": v.value} for v in self.violations()],
        }  # fmt: skip


def elements(constants: dict) -> int:
    """Weights of one program (of one pass of its loop, where it has one), from its compile-time arguments."""
    columns = constants["BLOCK_G"] * constants["GROUP"] if "BLOCK_G" in constants else constants["BLOCK_K"]
    if constants.get("RUN", 16) < 16:  # matmul_ksplit: the innermost loop is that over the groups among 16 columns
        columns = 16
    return constants["BLOCK_N"] * columns


def rows_of(desc: Desc, found: list[Launch], expected: Mapping[str, Expected] = EXPECTED) -> list[Row]:
    """The launches that ``desc`` led to as rows, each held to its kernel's line in ``expected``."""
    return [
        Row(desc=desc, kernel=one.kernel, report=one.report, constants=one.constants, grid=one.grid,
            expected=expected.get(one.kernel, UNLISTED))
        for one in found
    ]  # fmt: skip


def examine(desc: Desc, pref: PlanPreference | None = None) -> list[Row]:
    """One row for each kernel that ``select(desc, pref)`` would launch, compiled for ``desc.target.arch``.

    Compiling takes a second or two; nothing is launched, and tensors of the problem's size are allocated but never touched. While it
    runs, no other thread may launch Triton kernels.

    Raises:
        InvalidProblemError: the target is no GPU, or the problem is empty, so that no kernel would run.
        UnsupportedError: Triton is missing or interprets, or no kernel implements ``desc``.

    Example, which needs no GPU::

        target = Target(backend="triton", device="cuda", arch=90)
        desc = QuantizeDesc(n=4096, k=4096, dtype=torch.bfloat16, scheme=Scheme.parse("int4"), target=target)
        [(row.kernel, row.registers, row.per_weight, row.violations()) for row in examine(desc)]
    """
    plan = select(desc, pref)
    return examine_config(desc, plan.kernel, plan.config)


def examine_config(desc: Desc, kernel: KernelEntry, config: Config, known: MutableMapping | None = None) -> list[Row]:
    """The same of a given kernel and config; ``known`` as :func:`launches` takes it.

    Raises:
        InvalidProblemError: the target is no GPU, or the problem is empty, so that no kernel would run.
        UnsupportedError: Triton is missing or interprets.
    """
    if desc.target.arch is None or desc.target.backend != "triton":
        raise InvalidProblemError(f"code is generated for a GPU, the target is {desc.target}; name one such as sm_90")
    tensors = _stand_ins(desc)
    with launches(desc.target.arch, known) as found:
        if isinstance(desc, MatmulDesc):
            kernel.product(desc, config, *tensors, (desc.m, desc.features)).run(*tensors)
        else:
            kernel.launch(desc, config, None, *tensors)
    if not found:
        raise InvalidProblemError(f"{desc} launches no kernel: the result is empty")
    return rows_of(desc, found)


def _stand_ins(desc: Desc) -> tuple:
    """CPU tensors of the right shapes and dtypes whose contents are never looked at."""
    if isinstance(desc, QuantizeDesc):
        return (torch.empty(desc.n, desc.k, dtype=desc.dtype),)
    fields = get_layout(desc.layout).expected(desc.scheme, (desc.n, desc.k), desc.source_dtype)
    tensors = {name: want and torch.empty(want[0], dtype=want[1]) for name, want in fields.items()}
    order = torch.empty(desc.k, dtype=torch.int32) if desc.act_order else None
    q = QTensor(scheme=desc.scheme, shape=(desc.n, desc.k), dtype=desc.source_dtype, layout=desc.layout, column_order=order, **tensors)
    if isinstance(desc, DequantizeDesc):
        return (q,)
    if isinstance(desc, MatmulBackwardDesc):
        return torch.empty(desc.m, desc.n, dtype=desc.dtype), q
    assert isinstance(desc, MatmulDesc)
    bias = torch.empty(desc.n, dtype=desc.dtype) if desc.bias else None
    residual = torch.empty(desc.m, desc.features, dtype=desc.dtype) if desc.residual else None
    return torch.empty(desc.m, desc.k, dtype=desc.dtype), q, bias, residual
