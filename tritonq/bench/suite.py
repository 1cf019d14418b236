"""What suites are made of: a suite yields cases, a case yields the rows of one problem after another, a contest times its contenders."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch

from ..dtypes import dtype_name
from ..nn.weight import best_layout
from ..ops import quantize
from ..qtensor import QTensor
from ..scheme import Scheme
from .results import Figures, Row, with_speedups
from .shapes import Shape
from .timing import REPLAYS, Calls, copies, first_line, measure

COLD_BYTES = 200e6  # a round that reads less may find its data in a cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What was asked for, and the limits of the machine (``roofs`` of timing.py) that rows are held against."""

    device: torch.device
    roofs: Figures
    shapes: tuple[Shape, ...] = ()
    schemes: tuple[str, ...] = ()
    ms: tuple[int, ...] = ()
    with_peers: bool = True
    replays: int = REPLAYS

    @property
    def source(self) -> str:
        return "gpu" if self.device.type == "cuda" else "cpu"

    @property
    def library(self) -> str:
        """Who multiplies in bfloat16 here."""
        return "cuBLAS bf16" if self.source == "gpu" and not torch.version.hip else "hipBLAS bf16" if self.source == "gpu" else "torch bf16"

    def copies(self, bytes_per_call: int) -> int:
        return copies(bytes_per_call, self.device)

    def randn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, device=self.device).bfloat16()

    def weights(self, shape: Shape) -> list[torch.Tensor]:
        """Random bfloat16 matrices ``[n, k]`` with products of about unit size, as many as a round needs."""
        return [self.randn(shape.n, shape.k).mul_(shape.k**-0.5) for _ in range(self.copies(2 * shape.n * shape.k))]

    def quantized(self, dense: list[torch.Tensor], scheme: str) -> list[QTensor]:
        """``dense`` in the layout of this device's fastest kernel, as many as a round needs."""
        layout = best_layout(Scheme.parse(scheme), torch.bfloat16, self.device)
        first = quantize(dense[0], scheme).relayout(layout)
        count = self.copies(first.nbytes)
        return [first, *(quantize(dense[i % len(dense)], scheme).relayout(layout) for i in range(1, count))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A part of a suite that shares data: ``run()`` yields the rows of ``steps`` problems, and drops its data when it ends."""

    title: str
    steps: int
    run: Callable[[], Iterator[list[Row]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """One kind of benchmark. ``schemes``, ``shapes`` and ``ms`` are its defaults; "" where it takes none. Where it does not need a GPU,
    its figures are of the CPU and mean what they say."""

    name: str
    title: str
    cases: Callable[[Bench], Iterator[Case]]
    schemes: str = ""
    shapes: str = ""
    ms: str = ""
    needs_gpu: bool = True


class Contest:
    """Contenders at one problem: add them, then time all that are right, interleaved."""

    def __init__(self, bench: Bench, suite: str, op: str, shape: Shape | None = None, m: int | None = None, flops: int = 0):
        self.bench, self.m, self.shape = bench, m, shape
        named = {"shape": shape.name, "n": shape.n, "k": shape.k} if shape else {}
        self._common = {"suite": suite, "op": op, "m": m, "flops": flops, "source": bench.source, **named}
        self._rows: list[Row] = []
        self._calls: dict[str, Calls] = {}

    def add(self, name: str, calls: Calls | None = None, *, check: Callable[[], str] | None = None, optional: bool | None = None,
            **fields) -> None:  # fmt: skip
        """A contender; it gets a time only where ``check()`` finds nothing to say.

        What it says is a fault where the contender is tritonq, else a note. An ``optional`` one (by default all but tritonq) may
        also fail to run at all.
        """
        reason, optional = "", name != "tritonq" if optional is None else optional
        try:
            reason = check() if check else ""
            key = "fault" if name == "tritonq" else "note"
        except Exception as error:
            reason = f"{'skipped' if optional else 'failed'}: {first_line(error)}"
            key = "note" if optional else "fault"
        row = Row(**{**self._common, "name": name, **fields, **({key: reason} if reason else {})})
        if calls and not reason:
            self._calls[str(len(self._rows))] = calls
        self._rows.append(dataclasses.replace(row, command=row.command or self._command(row)))

    def times(self, product: str = "flops_per_s") -> list[Row]:
        """The rows with their times; ``product`` names the roof of their operations."""
        failures: dict[str, str] = {}
        times = measure(self._calls, self.bench.replays, device=self.bench.device, failures=failures)
        for i, reason in failures.items():
            row = self._rows[int(i)]
            told = {"fault": f"failed: {reason}"} if row.name == "tritonq" else {"note": f"skipped: {reason}"}
            self._rows[int(i)] = dataclasses.replace(row, **told)
        for i, calls in self._calls.items():
            self._rows[int(i)] = self._told_of_cache(self._rows[int(i)], len(calls))
        product = product if product in self.bench.roofs else "flops_per_s"
        return with_speedups(row.timed(times[str(i)], self.bench.roofs, product) if str(i) in times else row
                             for i, row in enumerate(self._rows))  # fmt: skip

    def _told_of_cache(self, row: Row, calls: int) -> Row:
        if self.bench.source == "cpu" or not row.bytes or row.bytes * calls >= COLD_BYTES:
            return row
        return dataclasses.replace(row, note="; ".join(filter(None, [row.note, "small: its data stays in the L2 cache"])))

    def _command(self, row: Row) -> str:
        words = ["tritonq bench", row.suite]
        words += [f"--shapes {row.n}x{row.k}"] if row.n is not None else []
        words += [f"--schemes {row.scheme}"] if row.scheme != "none" else []
        words += [f"--m {row.m}"] if row.m is not None else []
        return " ".join(words + ["--device cpu"] * (row.source == "cpu"))


def product_bytes(weight: int, m: int, n: int, k: int) -> int:
    """What a product must move: the weight, x and the result in 16 bits."""
    return weight + 2 * m * (n + k)


def library_sku(op: str, bench: Bench, dtype: torch.dtype = torch.bfloat16) -> str:
    return f"{op}/{dtype_name(dtype)}/{bench.library.split()[0]}"
