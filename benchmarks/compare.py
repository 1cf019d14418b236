"""Whether NEW lost against BASE: two files of `tritonq bench --json`, or two of benchmarks/results/codegen.json.

    python benchmarks/compare.py BASE NEW

Measured rows are matched by sku, shape and M (where the config of a sku changed, by all else). One lost where NEW's 20th percentile lies
more than 5 % of BASE's median above BASE's 80th percentile: by more than 5 % beyond the spread of both. A result that became wrong, or no
longer runs, lost too. Static figures are exact: a kernel lost with any more instructions per weight, any more spills, or fewer programs
on a multiprocessor (its registers or shared memory passed a step of occupancy). Exit status 1 where anything lost, 2 where nothing can be
compared. Rows that only one file has are named and do not fail.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tritonq.bench.results import Results, Row
from tritonq.errors import InvalidProblemError

MARGIN = 0.05


@dataclass(frozen=True)
class Change:
    """One row in both files. ``lost`` says what became worse; empty where nothing did."""

    what: str
    before: str
    after: str
    lost: str = ""
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Rows in both files, and the names of rows in one alone."""

    changes: list[Change]
    only_base: list[str]
    only_new: list[str]

    @property
    def lost(self) -> list[Change]:
        return [change for change in self.changes if change.lost]

    def text(self) -> str:
        """What was lost, as a table, and a line of sums."""
        lines = []
        if self.lost:
            table = [("row", "base", "new", "lost")]
            table += [(c.what, c.before, c.after, c.lost + f" ({c.note})" * bool(c.note)) for c in self.lost]
            widths = [max(len(cells[i]) for cells in table) for i in range(4)]
            lines += ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in table]
        lines += [f"only in BASE: {name}" for name in self.only_base] + [f"only in NEW: {name}" for name in self.only_new]
        return "\n".join([*lines, f"{len(self.changes)} rows compared, {len(self.lost)} lost"])


class Waiting:
    """Rows of BASE by key, each to be taken once; rows with one key are taken in their order."""

    def __init__(self, rows: Iterable, key: Callable[[object], tuple]):
        self._rows: dict[tuple, list] = {}
        for row in rows:
            self._rows.setdefault(key(row), []).append(row)

    def take(self, key: tuple):
        return self._rows[key].pop(0) if self._rows.get(key) else None

    def take_only(self, key: tuple):
        """The row of ``key`` where there is no other; of several nobody knows which is meant."""
        return self.take(key) if len(self._rows.get(key, [])) == 1 else None

    def left(self) -> list:
        return [row for rows in self._rows.values() for row in rows]


def measured(base: Results, new: Results) -> Comparison:
    """Two runs of `tritonq bench`."""
    waiting = Waiting(base.rows, lambda row: (*_key(row), row.sku))
    pairs = [(row, waiting.take((*_key(row), row.sku))) for row in new.rows]
    others = Waiting(waiting.left(), _key)  # whose sku NEW has not: the config of a problem may have changed
    pairs = [(row, old or others.take_only(_key(row))) for row, old in pairs]
    changes = [
        Change(_name(row), _time(old), _time(row), _slower(old, row), f"sku was {old.sku}" if old.sku != row.sku else "")
        for row, old in pairs if old is not None
    ]  # fmt: skip
    return Comparison(changes, [_name(row) for row in others.left()], [_name(row) for row, old in pairs if old is None])


def _key(row: Row) -> tuple:
    return row.suite, row.op, row.name, row.scheme, row.dtype, row.n, row.k, row.m


def _name(row: Row) -> str:
    return " ".join(part for part in (row.suite, row.op, row.problem, row.name, row.scheme) if part)


def _time(row: Row) -> str:
    return row.fault or row.note or "no time" if row.us is None else f"{row.us:.2f} us ({row.p20:.2f} - {row.p80:.2f})"


def _slower(old: Row, new: Row) -> str:
    if new.fault and not old.fault:
        return new.fault
    if old.us is None:
        return ""
    if new.us is None:
        return "has no time any more"
    allowed = old.p80 + MARGIN * old.us
    return f"{new.us / old.us - 1:+.1%}, at least {new.p20 / old.p80 - 1:+.1%}" if new.p20 > allowed else ""


def static(base: Iterable[dict], new: Iterable[dict]) -> Comparison:
    """Rows of benchmarks/results/codegen.json, of one release of Triton each; a problem may launch a kernel more than once."""
    waiting = Waiting(base, _problem)
    changes, only_new = [], []
    for row in new:
        old, name = waiting.take(_problem(row)), " ".join(_problem(row))
        if old is None:
            only_new.append(name)
            continue
        note = f"tile was {old['tile']}, is {row['tile']}" if old["tile"] != row["tile"] else ""
        changes.append(Change(name, _figures(old), _figures(row), _worse(old, row), note))
    return Comparison(changes, [" ".join(_problem(row)) for row in waiting.left()], only_new)


def _problem(row: dict) -> tuple[str, str]:
    return row["kernel"], row["problem"]


def _figures(row: dict) -> str:
    names = {"per_weight": "per weight", "registers": "registers", "spills": "spills", "programs": "programs"}
    return ", ".join(f"{row[name]} {text}" for name, text in names.items() if row[name] is not None) or "not compiled"


def _worse(old: dict, new: dict) -> str:
    if old["registers"] is not None and new["registers"] is None:
        return "no longer compiles"
    told = {"per_weight": "instructions per weight", "spills": "bytes of spills per thread"}
    found = [f"more {text}" for name, text in told.items() if (new[name] or 0) > (old[name] or 0) and old[name] is not None]
    if (new["programs"] or 0) < (old["programs"] or 0):
        found.append(f"fewer programs on a multiprocessor, {old['registers']} -> {new['registers']} registers, {old['shared']} -> "
                     f"{new['shared']} bytes shared")  # fmt: skip
    return "; ".join(found)


def compare(base: Path, new: Path) -> list[tuple[str, Comparison]]:
    """(title, comparison) of what the two files have in common.

    Raises:
        InvalidProblemError: files that are neither, or not of one kind, or have nothing in common.
    """
    data = [_load(path) for path in (base, new)]
    if all("runs" in one for one in data):
        rows = [{run["triton"]: run["rows"] for run in one["runs"]} for one in data]
        common = [version for version in rows[1] if version in rows[0]]
        if not common:
            raise InvalidProblemError(f"no release of Triton is in both: {', '.join(rows[0])} and {', '.join(rows[1])}")
        return [(f"Triton {version}, compiled and not run", static(rows[0][version], rows[1][version])) for version in common]
    results = [Results.parse(one, str(path)) for one, path in zip(data, (base, new))]
    devices = [str(one.about.get("device")) for one in results]
    if devices[0] != devices[1]:
        raise InvalidProblemError(f"BASE is of {devices[0]}, NEW of {devices[1]}: only times of one device can be compared")
    return [(devices[0], measured(*results))]


def _load(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidProblemError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise InvalidProblemError(f"{path}: neither results of tritonq bench nor of benchmarks/codegen.py")
    return data


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    try:
        found = compare(options.base, options.new)
    except InvalidProblemError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    for title, comparison in found:
        print(f"{title}\n{comparison.text()}")
    return int(any(comparison.lost for _, comparison in found))


if __name__ == "__main__":
    sys.exit(main())
