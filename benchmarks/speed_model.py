"""The model of speed against measurements: predicted and measured microseconds, and their rank correlation.

    python benchmarks/speed_model.py RESULTS [--machine h200]

RESULTS: the output of `tritonq tune --json` (every candidate that was timed), a config file or a folder of them (entries with "measured":
true), or the JSON of `tritonq bench` (rows of tritonq whose sku names a config). Entries and rows are compiled to be predicted; that needs
Triton and no GPU. docs/speed_model.md says what the model is.
"""
from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tritonq.codegen.examine import examine_config
from tritonq.codegen.machines import Machine, machine_for, machine_named
from tritonq.codegen.speed import predict
from tritonq.errors import TritonQError, UnsupportedError
from tritonq.plans.config_file import read
from tritonq.plans.core import Target
from tritonq.plans.descriptors import Desc, MatmulDesc
from tritonq.plans.kernel_entries import KERNELS
from tritonq.plans.registry import KernelEntry
from tritonq.scheme import Scheme
from tritonq.tuning import short

ENTRIES = {entry.name: entry for entry in KERNELS}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One config of one problem: what the model says and what was measured, in microseconds."""

    problem: str
    config: str
    limit: str
    predicted: float
    measured: float


def ranks(values: Sequence[float]) -> list[float]:
    """Places from 1 on, equal values their average."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


def spearman(pairs: Sequence[Pair]) -> float | None:
    """Rank correlation of predicted and measured times; None where there are fewer than three, or one side is all the same."""
    if len(pairs) < 3:
        return None
    a, b = ranks([pair.predicted for pair in pairs]), ranks([pair.measured for pair in pairs])
    return statistics.correlation(a, b) if len(set(a)) > 1 and len(set(b)) > 1 else None


def pairs_of(path: Path, machine: Machine | None) -> list[Pair]:
    """Everything in RESULTS that has both figures."""
    if path.is_dir():
        return [pair for file in sorted(path.glob("*/*.json")) for pair in pairs_of(file, machine)]
    data = json.loads(path.read_text(encoding="utf-8"))
    if "results" in data:
        return [_timed(result["problem"], one) for result in data["results"] for one in result["timed"] if one["predicted_us"]]
    if "entries" in data:
        return list(_entries(path, machine))
    if "rows" in data:
        return list(_rows(data, machine))
    raise SystemExit(f"{path}: holds neither results of tritonq tune, nor entries, nor rows of tritonq bench")


def _timed(problem: str, one: dict) -> Pair:
    return Pair(problem=problem, config=short(one["config"]), limit=one["limit"], predicted=one["predicted_us"], measured=one["us"])


def _entries(path: Path, machine: Machine | None) -> Iterable[Pair]:
    file, known = read(path), {}
    arch = int(file.arch[3:]) if file.arch.startswith("sm_") else file.arch
    target = Target(backend="triton", device="cuda", arch=arch, multiprocessors=file.multiprocessors)
    machine = machine or machine_for(arch, file.multiprocessors)
    kernel = ENTRIES[file.kernel]
    for entry in file.entries:
        if entry.measured:
            problem = f"{file.place.parent} {kernel.name} {entry.scheme} {entry.dtype} {entry.n}x{entry.k} m={entry.m}"
            yield from _pair(problem, entry.problem(kernel.op, target), kernel, entry.config, entry.us, machine, known)


def _rows(data: dict, machine: Machine | None) -> Iterable[Pair]:
    known: dict = {}
    for row in data["rows"]:
        found = re.search(r"/(sm_(\d+)|gfx\w+)/(\w+)\.r\d+\.(.+)$", row.get("sku", ""))
        if not found or row["name"] != "tritonq" or not row.get("us") or row["op"] != "matmul" or found[3] not in ENTRIES:
            continue
        arch, kernel = int(found[2]) if found[2] else found[1], ENTRIES[found[3]]
        target = Target(backend="triton", device="cuda", arch=arch, multiprocessors=data["about"].get("multiprocessors"))
        dtype = getattr(torch, row.get("dtype", "bfloat16"))
        layout = next(name for name in ("frag", "ksplit", "row") if f"/{name}/" in row["sku"])
        desc = MatmulDesc(m=row["m"], n=row["n"], k=row["k"], dtype=dtype, scheme=Scheme.parse(row["scheme"]), target=target,
                          source_dtype=dtype, layout=layout)  # fmt: skip
        names = {name.removeprefix("BLOCK_").lower(): name for name in (*kernel.config(desc), "maxnreg")}
        config = {names[name]: int(value) for name, value in re.findall(r"([a-z_]+)(\d+)(?:\.|$)", found[4])}
        here = machine or machine_for(arch, target.multiprocessors, str(data["about"].get("device", "")))
        yield from _pair(f"{row['scheme']} {row['n']}x{row['k']} m={row['m']}", desc, kernel, config, row["us"], here, known)


def _pair(problem: str, desc: Desc, kernel: KernelEntry, config: dict, us: float, machine: Machine, known: dict) -> Iterable[Pair]:
    rows = examine_config(desc, kernel, config, known)
    try:
        (guess,) = [predict(row, machine) for row in rows]
    except (UnsupportedError, ValueError):  # a kernel or a sequence of launches that the model does not know
        return
    yield Pair(problem=problem, config=short(config), limit=guess.limit, predicted=guess.us, measured=us)


def text(pairs: Sequence[Pair]) -> str:
    """The table and, below it, the correlations."""
    lines = [f"{'predicted':>9} {'measured':>9} {'ratio':>6}  limit    problem and config"]
    lines += [f"{p.predicted:9.2f} {p.measured:9.2f} {p.measured / p.predicted:6.2f}  {p.limit:<8} {p.problem} {p.config}" for p in pairs]
    lines.append(f"Spearman's rank correlation over all {len(pairs)} rows: {_number(spearman(pairs))}")
    problems: dict[str, list[Pair]] = {}
    for pair in pairs:
        problems.setdefault(pair.problem, []).append(pair)
    within = [value for group in problems.values() if (value := spearman(group)) is not None]
    if within:
        lines.append(f"among the configs of one problem, median of {len(within)} problems: {_number(statistics.median(within))}")
    ratios = [pair.measured / pair.predicted for pair in pairs]
    lines.append(f"measured / predicted: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "too few different values" if value is None else f"{value:.3f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--machine", help="predict for this one, h200 for instance (default: from the results)")
    options = parser.parse_args(arguments)
    try:
        pairs = pairs_of(options.results, options.machine and machine_named(options.machine))
    except (OSError, TritonQError) as error:
        print(f"speed_model.py: {error}", file=sys.stderr)
        return 2
    if not pairs:
        print("speed_model.py: nothing in there was measured and can be predicted", file=sys.stderr)
        return 1
    print(text(pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
