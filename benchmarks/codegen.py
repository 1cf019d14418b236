"""What the compiler makes of every shipped kernel: a table, and rules that it fails on. Compiled, never run; needs no GPU.

    python benchmarks/codegen.py [--arch 80,90] [--schemes int4.g128,nf4.g64] [--json] [--jobs 2] [--record benchmarks/results/codegen]

Names what breaks a rule of tritonq/codegen/rules.py, a budget, or the distance to the yardstick, and exits 1 then. ``--record`` writes the
table to PATH.json and PATH.md, beside those of other Triton releases that are there. docs/kernels.md says how to read it.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time

import torch
import triton
import yardstick
from codegen_cases import KNOWN, RATIOS, Case, cases

from tritonq import __version__
from tritonq.codegen import Expected, examine
from tritonq.codegen.examine import rows_of
from tritonq.codegen.launches import launches
from tritonq.codegen.table import COLUMNS, cells

NOTE = "Compiled, not run on a GPU."
YARDSTICK = Expected(per="loop")


def rows(case: Case) -> list[dict]:
    """The case's kernels as plain values."""
    desc = case.desc()
    if case.op != "yardstick":
        return [row.summary() for row in examine(desc)]
    scale = torch.empty(case.k // yardstick.GROUP, case.n, dtype=desc.dtype)
    with launches(case.arch) as found:
        yardstick.matmul(torch.empty(case.m, case.k, dtype=desc.dtype), torch.empty(case.k // 8, case.n, dtype=torch.int32), scale, scale)
    return [row.summary() for row in rows_of(desc, found, {"peer_style": YARDSTICK})]


def work() -> None:
    """A worker: cases as JSON on stdin, for each a line of JSON with its rows on stdout."""
    for index, fields in json.load(sys.stdin):
        print(json.dumps([index, rows(Case(**fields))]), flush=True)


def run(todo: list[Case], jobs: int) -> list[dict]:
    """The rows of all cases in their order, compiled by ``jobs`` processes; a case that kills its process becomes a row that says so."""
    found: dict[int, list[dict]] = {}
    threads = [threading.Thread(target=_share, args=(list(enumerate(todo))[i::jobs], found)) for i in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [row for index in sorted(found) for row in found[index]]


def _share(todo: list[tuple[int, Case]], found: dict[int, list[dict]]) -> None:
    while todo:
        with tempfile.TemporaryFile("w+") as errors:
            worker = subprocess.Popen(
                [sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            worker.stdin.write(json.dumps([(index, vars(case)) for index, case in todo]))
            worker.stdin.close()
            for line in worker.stdout:
                index, result = json.loads(line)
                found[index] = result
            worker.wait()
            errors.seek(0)
            reason = (errors.read().strip().splitlines() or [f"exit status {worker.returncode}"])[-1][:300]
        todo = [(index, case) for index, case in todo if index not in found]
        if todo:
            index, case = todo.pop(0)
            found[index] = [lost(case, reason)]


def lost(case: Case, reason: str) -> dict:
    """The row of a case that did not compile."""
    figures = dict.fromkeys(("registers", "spills", "shared", "programs", "waits", "per_weight", "budget"))
    return {
        "kernel": case.op, "problem": str(case.desc()), "scheme": case.scheme, "dtype": case.dtype, "m": case.m, "n": case.n, "k": case.k,
        "arch": case.arch, "tile": "", **figures, "matrix": [], "weight_loads": [], "warnings": [],
        "violations": [{"rule": "compiles", "value": reason}],
    }  # fmt: skip


def against_yardstick(table: list[dict]) -> None:
    """Give int4's rows their distance to the yardstick's of the same dtype and architecture, and a violation where it is too short."""
    yard = {(row["dtype"], row["arch"]): row["per_weight"] for row in table if row["kernel"] == "peer_style"}
    for row in table:
        tile = row["tile"].split("x")[0]
        least = RATIOS.get((row["kernel"], row["scheme"], row["dtype"], row["arch"], tile))
        base = yard.get((row["dtype"], row["arch"]))
        if least is None or base is None or row["budget"] is None:
            continue
        row["yardstick"] = round(base / row["per_weight"], 2)
        if row["yardstick"] < least:
            value = f"{row['yardstick']} times fewer instructions per weight than the yardstick, at least {least}"
            row["violations"].append({"rule": "yardstick", "value": value})


def broken(table: list[dict]) -> tuple[list[str], list[str]]:
    """``kernel problem tile: rule: value`` of every violation: those that fail, and those that are known."""
    fails, known = [], []
    for row in table:
        for v in row["violations"]:
            key = (*(row[name] for name in ("kernel", "scheme", "dtype", "arch", "n", "k")), v["rule"])
            text = f"{row['kernel']} {row['problem']} {row['tile']}: {v['rule']}: {v['value']}"
            known.append(f"{text} ({KNOWN[key]})") if key in KNOWN else fails.append(text)
    return fails, known


def about() -> dict:
    from triton.backends.nvidia.compiler import get_ptxas

    ptxas = {str(arch): get_ptxas(arch).version for arch in (80, 90, 100)}
    return {"note": NOTE, "triton": triton.__version__, "ptxas": ptxas, "torch": torch.__version__, "tritonq": __version__}


def markdown(runs: list[dict]) -> str:
    """The page of all runs."""
    head = [column.removesuffix(">") for column in COLUMNS]
    rule = ["--:" if column.endswith(">") else "---" for column in COLUMNS]
    how = f"Written by `make lint-kernels`. **{NOTE}** [docs/kernels.md](../../docs/kernels.md) explains the columns."
    lines = ["# Kernels as compiled", "", how, ""]
    for run in runs:
        ptxas = ", ".join(f"{version} for sm_{arch}" for arch, version in run["ptxas"].items())
        lines += [f"## Triton {run['triton']}", "", f"ptxas {ptxas}; torch {run['torch']}.", "", *_distances(run["rows"])]
        lines += ["| " + " | ".join(head) + " |", "| " + " | ".join(rule) + " |"]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in run["rows"]] + [""]
    return "\n".join(lines)


def _distances(table: list[dict]) -> list[str]:
    near = [row for row in table if "yardstick" in row]
    lines = [f"| {row['dtype']} | {row['m']} | {row['tile']} | {row['per_weight']} | {row['yardstick']} |" for row in near]
    head = ["int4.g128 against the yardstick (`benchmarks/yardstick.py`), sm_90: how many times fewer instructions per weight.", ""]
    return [*head, "| dtype | M | tile | per weight | times fewer |", "| --- | --: | --- | --: | --: |", *lines, ""] if lines else []


def record(path: pathlib.Path, this: dict) -> None:
    """Put this run beside those of other Triton releases in PATH.json, and write PATH.md."""
    data = path.with_suffix(".json")
    runs = json.loads(data.read_text())["runs"] if data.exists() else []
    runs = sorted([run for run in runs if run["triton"] != this["triton"]] + [this], key=lambda run: run["triton"], reverse=True)
    body = ",\n".join(_run_json(run) for run in runs)
    data.write_text(f'{{"note": {json.dumps(NOTE)}, "runs": [\n{body}\n]}}\n')
    path.with_suffix(".md").write_text(markdown(runs))


def _run_json(run: dict) -> str:
    """One line a row, so that a difference of two versions can be read."""
    head = {name: value for name, value in run.items() if name != "rows"}
    return json.dumps(head)[:-1] + ', "rows": [\n' + ",\n".join(json.dumps(row) for row in run["rows"]) + "\n]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", help="only these architectures, 80,90,gfx942")
    parser.add_argument("--schemes", help="only these schemes, int4.g128,nf4.g64")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument("--record", type=pathlib.Path, metavar="PATH", help="write PATH.json and PATH.md")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work()
        return 0
    started = time.perf_counter()
    chosen = cases(archs=options.arch and options.arch.split(","), schemes=options.schemes and options.schemes.split(","))
    if not chosen:
        parser.error("no case has such an --arch and --schemes")
    table = run(chosen, options.jobs)
    against_yardstick(table)
    faults, known = broken(table)
    result = about() | {"rows": table}
    if options.record:
        record(options.record, result)
    if options.json:
        print(json.dumps(result, indent=1))
    elif not options.record:
        print(markdown([result]))
    for line in [f"known: {fault}" for fault in known] + [f"fails: {fault}" for fault in faults]:
        print(line, file=sys.stderr)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    seconds = f"{time.perf_counter() - started:.0f} s ({cpu:.0f} s of processor)"
    print(f"Triton {triton.__version__}: {len(chosen)} cases, {len(table)} kernels, {len(faults)} faults, {seconds}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
