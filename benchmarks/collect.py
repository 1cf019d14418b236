"""Takes over what benchmarks/gpu_run.sh brought back: results into benchmarks/results/, tuned configs into autotune_configs/.

    python benchmarks/collect.py FOLDER [--root .] [--dry-run]

Everything is read and checked before anything is written: rows that no GPU measured, entries without a measurement, and configs that break
a rule of their kernel are refused. Result files of the same device are replaced (git keeps the old ones), config files merged entry by
entry.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

from tritonq.bench.results import Results
from tritonq.errors import TritonQError
from tritonq.files import write_atomic
from tritonq.plans.config_file import ConfigFile, parse, read
from tritonq.plans.kernel_entries import KERNELS

RESULTS = ("bench", "suites", "experiment")
REPORT = "tune.json"
PLACE = re.compile(r"(?:\./)?((?:sm_|gfx)\w+x\d+/\w+\.json)")


class Refused(TritonQError):
    """What was brought back is not what a GPU measured."""


def results(folder: Path) -> dict[str, Results]:
    """Result files by name; the rows in them come from a GPU."""
    found = {name: Results.read(folder / f"{name}.json") for name in RESULTS if (folder / f"{name}.json").exists()}
    for name, result in found.items():
        if wrong := [row for row in result.rows if row.source != "gpu"]:
            raise Refused(f"{folder / name}.json: {len(wrong)} rows are of a {wrong[0].source}, the first of suite {wrong[0].suite}")
    return {name: result for name, result in found.items() if result.rows}


def configs(folder: Path) -> tuple[list[ConfigFile], str]:
    """The tuned configs in ``configs.tar.gz``, measured and as their kernels take them; and the report of the tuner, "" without."""
    archive = folder / "configs.tar.gz"
    files, report = [], ""
    if not archive.exists():
        return files, report
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.isdir():
                continue
            if member.isfile() and member.name.removeprefix("./") == REPORT:
                report = tar.extractfile(member).read().decode("utf-8")
                if not json.loads(report)["measured"]:
                    raise Refused(f"{archive}: {REPORT} was not measured")
                continue
            if not member.isfile() or not PLACE.fullmatch(member.name):
                raise Refused(f"{archive}: {member.name} is no <arch>x<multiprocessors>/<kernel>.json")
            file = parse(tar.extractfile(member).read().decode("utf-8"), f"{archive}:{member.name}")
            check(file, f"{archive}:{member.name}")
            files.append(file)
    return files, report


def check(file: ConfigFile, name: str) -> None:
    """Refuse entries that were not measured, or that the kernel does not take."""
    kernel = next((kernel for kernel in KERNELS if kernel.name == file.kernel), None)
    if kernel is None:
        raise Refused(f"{name}: there is no kernel {file.kernel!r}")
    for entry in file.entries:
        what = f"{name}: {entry.scheme} {entry.n} x {entry.k} m={entry.m}"
        if not entry.measured:
            raise Refused(f"{what}: was not measured")
        desc = entry.problem(kernel.op, file.target)
        if not (status := kernel.config_ok(desc, entry.config)):
            raise Refused(f"{what}: {status.reason}")


def slug(device: object) -> str:
    """``"NVIDIA H100 80GB HBM3"`` -> ``"h100-80gb-hbm3"``."""
    return "-".join(re.findall(r"[a-z0-9]+", str(device).lower().replace("nvidia", "").replace("amd", ""))) or "unknown"


def merged(new: ConfigFile, folder: Path) -> tuple[ConfigFile, str]:
    """The file with ``new`` in it, and what that changes. Source names that mean something else already get a number."""
    path = folder / new.place
    old = read(path) if path.exists() else replace(new, entries=(), sources={})
    names = {}
    for name, source in new.sources.items():
        fresh, number = name, 2
        while fresh in old.sources and old.sources[fresh] != source:
            fresh, number = f"{name}.{number}", number + 1
        names[name] = fresh
    entries = [replace(entry, source=names[entry.source]) for entry in new.entries]
    both = replace(old, revision=new.revision).with_entries(entries, {names[name]: source for name, source in new.sources.items()})
    before = {entry.key: entry.config for entry in old.entries}
    changed = sum(entry.key in before and before[entry.key] != entry.config for entry in entries)
    added = sum(entry.key not in before for entry in entries)
    return both, f"{len(entries)} entries, {added} of them new, {changed} with another config"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what gpu_run.sh wrote")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the checkout (default: this one)")
    parser.add_argument("--dry-run", action="store_true", help="check and say what would change")
    options = parser.parse_args(arguments)
    try:
        about = json.loads((options.folder / "environment.json").read_text(encoding="utf-8"))["about"]
        found, (tuned, report) = results(options.folder), configs(options.folder)
        target = options.root / "benchmarks" / "results" / slug(about["device"])
        both = [merged(file, options.root / "autotune_configs") for file in tuned]
    except (OSError, KeyError, ValueError, tarfile.TarError, TritonQError) as error:
        print(f"collect.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for name, result in found.items():
        print(f"{target.relative_to(options.root)}/{name}.json: {len(result.rows)} rows, {len(result.faults)} of them faults")
    for file, change in both:
        print(f"autotune_configs/{file.place.as_posix()}: {change}")
    if not options.dry_run:
        target.mkdir(parents=True, exist_ok=True)
        for name, result in found.items():
            result.write(target / f"{name}.json")
        write_atomic(target / "environment.json", (options.folder / "environment.json").read_text(encoding="utf-8"))
        if report:
            write_atomic(target / REPORT, report)
        for file, _ in both:
            file.write(options.root / "autotune_configs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
