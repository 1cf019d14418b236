"""The record of all benchmarks: one row a contender and problem, one JSON schema for every suite."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import get_args, get_type_hints

from ..errors import InvalidProblemError
from ..files import write_atomic
from .timing import Times

SCHEMA = 1
ROOFS = ("bytes_per_s", "flops_per_s", "int8_ops_per_s")  # what a machine's limits are called; some have no int8 product
SOURCES = ("gpu", "cpu", "model")  # where a figure comes from; pictures of anything but a GPU's say so
Figures = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One contender at one problem. Without a time ``us`` is None, and ``note`` or ``fault`` says why.

    ``bytes`` are those that must move at least: quantized weights with their scales, x and the result once each; ``flops`` counts a
    multiplication and an addition. ``of_copy`` and ``of_product`` are shares of this machine's measured copy and product, ``of_floor``
    the larger one: the share of ``floor_us``, below which no kernel can come. ``speedup`` holds, per rival, its time over this one.
    """

    suite: str
    op: str
    name: str  # the contender: "tritonq", "cuBLAS bf16", "gemlite", ...
    scheme: str = "none"
    dtype: str = "bfloat16"
    shape: str = ""
    n: int | None = None
    k: int | None = None
    m: int | None = None
    sku: str = ""
    us: float | None = None  # median, 20th and 80th percentile
    p20: float | None = None
    p80: float | None = None
    bytes: int = 0
    flops: int = 0
    tb_per_s: float | None = None
    tflop_per_s: float | None = None
    floor_us: float | None = None
    of_copy: float | None = None
    of_product: float | None = None
    of_floor: float | None = None
    speedup: Figures = dataclasses.field(default_factory=dict)
    figures: Figures = dataclasses.field(default_factory=dict)  # what else a suite measures, each name with its unit
    source: str = "gpu"
    note: str = ""
    fault: str = ""  # "incorrect by ...", or a limit that is not held: the run fails
    command: str = ""  # measures this row again

    def timed(self, times: Times, roofs: Figures, product: str = "flops_per_s") -> Row:
        """With a time and everything that follows from it; ``product`` names the roof of its operations."""
        bandwidth, rate = self.bytes / times.us * 1e6, self.flops / times.us * 1e6
        of_copy = bandwidth / roofs["bytes_per_s"] if self.bytes else None
        of_product = rate / roofs[product] if self.flops else None
        floor = max(self.bytes / roofs["bytes_per_s"], self.flops / roofs[product]) * 1e6
        return dataclasses.replace(
            self, us=times.us, p20=times.p20, p80=times.p80, tb_per_s=bandwidth / 1e12 if self.bytes else None,
            tflop_per_s=rate / 1e12 if self.flops else None, floor_us=floor or None, of_copy=of_copy, of_product=of_product,
            of_floor=floor / times.us if floor else None,
        )  # fmt: skip

    @property
    def problem(self) -> str:
        """``n x k, M, scheme`` for a line of text."""
        size = "" if self.n is None else f"{self.n}x{self.k}"
        return " ".join(part for part in (size, "" if self.m is None else f"M={self.m}") if part)


def _json_types(hint) -> tuple[type, ...]:
    """What JSON gives for a field; a number without a fraction is an int there."""
    if hint == Figures:
        return (dict,)
    return tuple(kind for part in get_args(hint) or (hint,) for kind in ((float, int) if part is float else (part,)))


_TYPES = {name: _json_types(hint) for name, hint in get_type_hints(Row).items()}


@dataclasses.dataclass(kw_only=True)
class Results:
    """The rows of one run: ``about`` names machine and versions (``before`` and ``after`` hold clocks, power, temperature)."""

    about: dict[str, object]
    roofs: Figures
    rows: list[Row] = dataclasses.field(default_factory=list)

    @property
    def faults(self) -> list[Row]:
        return [row for row in self.rows if row.fault]

    def json(self) -> str:
        """One line a row, so that a difference of two files can be read; empty fields are left out."""
        head = {"schema": SCHEMA, "about": self.about, "roofs": _rounded(self.roofs)}
        lines = ",\n".join(json.dumps(_slim(row), ensure_ascii=False) for row in self.rows)
        return json.dumps(head, indent=1, ensure_ascii=False)[:-2] + f',\n "rows": [\n{lines}\n]}}\n'

    def write(self, path: Path) -> None:
        """All rows so far, whole or not at all: a run may be stopped at any moment."""
        write_atomic(path, self.json())

    @classmethod
    def read(cls, path: Path | str) -> Results:
        """A file of :meth:`write`.

        Raises:
            InvalidProblemError: not such a file; the text names row and field.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidProblemError(f"{path}: {error}") from error
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: object, where: str = "results") -> Results:
        """The value of :meth:`json`; ``where`` begins the text of an error."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            got = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise InvalidProblemError(f"{where}: must be an object with schema {SCHEMA}, got {got!r}; `tritonq bench --json` writes one")
        if unknown := sorted(set(data) ^ {"schema", "about", "roofs", "rows"}):
            raise InvalidProblemError(f"{where}: must hold schema, about, roofs and rows and nothing else; see {', '.join(unknown)}")
        for name, kind in (("about", dict), ("roofs", dict), ("rows", list)):
            if not isinstance(data[name], kind):
                raise InvalidProblemError(f"{where}: {name} must be {'an object' if kind is dict else 'an array'}")
        _expect_figures(data["roofs"], f"{where}: roofs")
        if (named := set(data["roofs"])) and not set(ROOFS[:2]) <= named <= set(ROOFS):
            raise InvalidProblemError(f"{where}: roofs must be empty, or hold {ROOFS[0]} and {ROOFS[1]} and at most {ROOFS[2]} besides")
        rows = [_row(value, f"{where}: rows[{i}]") for i, value in enumerate(data["rows"])]
        return cls(about=data["about"], roofs=data["roofs"], rows=rows)


def merged(parts: list[Results]) -> Results:
    """The rows of several files in one; machine and roofs are those of the first that has times.

    Raises:
        InvalidProblemError: times of different devices, which no picture may show side by side.
    """
    timed = [part for part in parts if any(row.us is not None for row in part.rows)] or parts
    devices = sorted({str(part.about.get("device")) for part in timed})
    if len(devices) > 1:
        raise InvalidProblemError(f"times of {' and '.join(devices)} do not belong in one report; name files of one device")
    return Results(about=timed[0].about, roofs=timed[0].roofs, rows=[row for part in parts for row in part.rows])


def with_speedups(rows: Iterable[Row]) -> list[Row]:
    """Rows of one measurement, each with its rivals' times over its own: those of the same scheme, and those that quantize nothing."""
    rows = list(rows)
    rivals = [row for row in rows if row.us and row.name != "tritonq"]
    return [
        dataclasses.replace(row, speedup={r.name: r.us / row.us for r in rivals if r is not row and r.scheme in (row.scheme, "none")})
        if row.us else row for row in rows
    ]  # fmt: skip


def _slim(row: Row) -> dict:
    return {name: _rounded(value) for name, value in dataclasses.asdict(row).items() if value not in (None, "", {})}


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return {name: _rounded(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _row(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise InvalidProblemError(f"{where} must be an object, got {type(value).__name__}")
    for name, got in value.items():
        if name not in _TYPES:
            raise InvalidProblemError(f"{where}.{name} is unknown; fields: {', '.join(_TYPES)}")
        if type(got) not in _TYPES[name]:
            kinds = " or ".join("null" if kind is type(None) else kind.__name__ for kind in _TYPES[name])
            raise InvalidProblemError(f"{where}.{name} must be {kinds}, got {json.dumps(got)[:60]}")
        if isinstance(got, dict):
            _expect_figures(got, f"{where}.{name}")
    for name in ("suite", "op", "name"):
        if name not in value:
            raise InvalidProblemError(f"{where} lacks {name!r}")
    if value.get("source", "gpu") not in SOURCES:
        raise InvalidProblemError(f"{where}.source must be one of {', '.join(SOURCES)}, got {value['source']!r}")
    if (value.get("us") is None) != (value.get("p20") is None) or (value.get("us") is None) != (value.get("p80") is None):
        raise InvalidProblemError(f"{where}: us, p20 and p80 stand together or not at all")
    return Row(**value)


def _expect_figures(value: dict, where: str) -> None:
    for name, number in value.items():
        if type(number) not in (int, float):
            raise InvalidProblemError(f"{where}.{name} must be a number, got {json.dumps(number)[:60]}")
