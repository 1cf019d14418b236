"""benchmarks/gpu_run.sh from end to end on a machine that seems to have a GPU, and benchmarks/collect.py with what it brings back."""
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.collect import main as take_over
from tritonq.bench.results import Results
from tritonq.plans.config_file import ConfigFile, Entry, Source, read
from tritonq.plans.configs import shipped

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_run.sh"
FILES = {"summary.txt", "log.txt", "environment.json", "experiment.json", "bench.json", "suites.json", "configs.tar.gz", "report.html"}


def run(*arguments, **env):
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable, **env})


@pytest.fixture
def collect(capsys):
    """(status, everything printed) of a call."""

    def call(*arguments):
        status = take_over([*map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """What a run brings back."""
    out = tmp_path_factory.mktemp("gpu") / "out"
    pretend = {"PYTHONPATH": str(ROOT / "tests" / "support" / "pretend"), "OMP_NUM_THREADS": "1"}
    done = run("--minutes", "60", "--out", str(out), "--shapes", "64x128", "--m", "1", "--schemes", "int4.g128", "--suites", "quantize",
               "--tests", "one_of_each and frag", **pretend)  # fmt: skip
    log = (out / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-4000:]
    return out


@pytest.mark.slow
def test_every_step_runs_and_leaves_its_file(brought):
    summary = (brought / "summary.txt").read_text()
    assert {path.name for path in brought.iterdir()} == FILES
    for step in ("environment", "tests", "experiment", "tune", "products", "suites", "speed-model", "pictures"):
        assert any(line.startswith(step) and line.endswith("ok") for line in summary.splitlines()), summary
    assert json.loads((brought / "environment.json").read_text())["roofs"]["bytes_per_s"] > 0
    for name in ("bench", "suites", "experiment"):
        rows = Results.read(brought / f"{name}.json").rows
        assert any(row.name == "tritonq" and row.us for row in rows) and not any(row.fault for row in rows)
        assert {row.source for row in rows} == {"gpu"}
    assert "/matmul_frag.r1." in (brought / "bench.json").read_text()


@pytest.mark.slow
def test_what_it_brings_back_is_taken_over(brought, collect, tmp_path):
    """Into a copy: results by device, configs merged entry by entry into those that are there."""
    shutil.copytree(shipped(), tmp_path / "autotune_configs")
    status, told = collect(brought, "--root", tmp_path, "--dry-run")
    assert status == 0 and not (tmp_path / "benchmarks").exists(), told
    status, told = collect(brought, "--root", tmp_path)
    assert status == 0 and "autotune_configs/sm_90x132/matmul_frag.json: 1 entries" in told, told
    where = tmp_path / "benchmarks" / "results" / "pretended-h100"
    assert {path.name for path in where.iterdir()} == {"bench.json", "suites.json", "experiment.json", "environment.json", "tune.json"}
    path = tmp_path / "autotune_configs" / "sm_90x132" / "matmul_frag.json"
    before = shipped() / "sm_90x132" / "matmul_frag.json"
    known = len(read(before).entries) if before.exists() else 0
    entry = next(entry for entry in read(path).entries if (entry.n, entry.k) == (64, 128))
    assert entry.measured and entry.us and len(read(path).entries) == known + 1
    assert read(path).sources[entry.source].device == "pretended H100"
    timed = json.loads((where / "tune.json").read_text())["results"][0]["timed"]
    assert 2 <= len(timed) <= 12 and all(row["us"] and row["predicted_us"] for row in timed)
    assert (brought / "log.txt").read_text().count("Spearman") == 1
    assert collect(brought, "--root", tmp_path)[1].count("0 of them new") == 1


ENTRY = Entry(scheme="int4.g128", dtype="bfloat16", layout="frag", n=4096, k=4096, m=1, measured=True, us=3.5, source="one",
              config={"BLOCK_M": 8, "BLOCK_N": 64, "BLOCK_K": 128, "SPLIT_K": 2, "STAGES": 3, "num_warps": 2})  # fmt: skip


def folder_with(path, entry=ENTRY, place="sm_90x132/matmul_frag.json", source="gpu"):
    """As gpu_run.sh leaves it, as far as collect.py looks."""
    file = ConfigFile(kernel="matmul_frag", revision=1, arch="sm_90", multiprocessors=132,
                      sources={"one": Source(protocol="p", time="t")}, entries=(entry,))  # fmt: skip
    (path / "out").mkdir()
    (path / "file").write_text(file.text())
    with tarfile.open(path / "out" / "configs.tar.gz", "w:gz") as tar:
        tar.add(path / "file", place)
    (path / "out" / "environment.json").write_text(json.dumps({"about": {"device": "NVIDIA H200"}, "roofs": {}}))
    row = {"suite": "matmul", "op": "matmul", "name": "tritonq", "source": source}
    (path / "out" / "bench.json").write_text(json.dumps({"schema": 1, "about": {}, "roofs": {}, "rows": [row]}))
    return path / "out"


@pytest.mark.parametrize("wrong, says", [
    ({"source": "cpu"}, "1 rows are of a cpu"), ({"place": "../../evil.json"}, "evil.json is no"),
    ({"entry": {"measured": False}}, "was not measured"), ({"entry": {"config": {"BLOCK_M": 24}}}, "lacks BLOCK_N"),
    ({"entry": {"dtype": "bf16"}}, "matmul_frag.json:5: dtype 'bf16'"),
])  # fmt: skip
def test_what_no_gpu_measured_is_refused_and_nothing_is_written(wrong, says, collect, tmp_path):
    if "entry" in wrong:
        wrong = {"entry": dataclasses.replace(ENTRY, **wrong["entry"])}
    status, told = collect(folder_with(tmp_path, **wrong), "--root", tmp_path)
    assert status == 2 and re.search(says, told) and not (tmp_path / "benchmarks").exists(), told


def test_names_of_sources_do_not_collide(collect, tmp_path):
    (tmp_path / "autotune_configs" / "sm_90x132").mkdir(parents=True)
    old = ConfigFile(kernel="matmul_frag", revision=1, arch="sm_90", multiprocessors=132,
                     sources={"one": Source(protocol="other", time="t")})  # fmt: skip
    dataclasses.replace(old, entries=(dataclasses.replace(ENTRY, n=64),)).write(tmp_path / "autotune_configs")
    status, told = collect(folder_with(tmp_path), "--root", tmp_path)
    file = read(tmp_path / "autotune_configs" / "sm_90x132" / "matmul_frag.json")
    assert status == 0 and {name: source.protocol for name, source in file.sources.items()} == {"one": "other", "one.2": "p"}, told
    assert (tmp_path / "benchmarks" / "results" / "h200" / "bench.json").exists()


@pytest.mark.parametrize("arguments, says", [
    (("--minutes",), "--minutes needs a value"), (("--minutes", "soon"), "--minutes soon is no number"),
    (("--what", "1"), "unknown argument --what"),
])  # fmt: skip
def test_bad_arguments(arguments, says):
    done = run(*arguments)
    assert done.returncode == 2 and says in done.stderr and not done.stdout


def test_help():
    assert "--minutes 8" in run("--help").stdout and "set -uo" not in run("--help").stdout


def test_a_step_that_fails_is_told_and_the_next_one_begins(tmp_path):
    done = run("--out", str(tmp_path / "out"), PYTHON="false")
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert done.returncode == 1 and summary.count("FAILED with status 1") == 6 and "suites" in summary
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "environment.py")], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 2 and "needs a CUDA or HIP device" in done.stderr
