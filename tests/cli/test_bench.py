"""``tritonq bench`` on the CPU path: every suite runs to its end, a wrong result fails, what cannot be is refused."""
import json
from functools import cache

import pytest
import torch

from tritonq.bench import check, cold_start, suite
from tritonq.bench.results import Results
from tritonq.bench.suites import SUITES
from tritonq.cli import main

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
fresh_process = cold_start.fresh
TINY = ["--device", "cpu", "--shapes", "64x256,32x128", "--m", "1,3", "--replays", "2", "--no-peers"]
SMALL = {
    "matmul": ["--schemes", "int4.g128,nf4.g64"], "quantize": ["--schemes", "int4.g128,mxfp4"],
    "dequantize": ["--schemes", "int4.g128,mxfp4"], "end-to-end": ["--m", "1", "--schemes", "int4.g128"],
    "decode": ["--m", "1", "--schemes", "nf4.g64", "--shapes", "32x128"], "launch": ["--m", "1", "--schemes", "nf4.g64"],
    "quality": ["--schemes", "int8,nf4"], "cpu": ["--shapes", "256x512", "--schemes", "nf4.g64"],
    "cpu-memory": ["--schemes", "nf4", "--shapes", "64x256"],
}  # fmt: skip
NO_GPU = [name for name, suite in SUITES.items() if not suite.needs_gpu]


@pytest.mark.parametrize("name", [name for name in SUITES if name != "minilm"])
def test_every_suite(name, tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.json"
    fresh = cache(lambda scheme, device, size: fresh_process(scheme, device, tmp_path, size))  # one process for all
    monkeypatch.setattr(cold_start, "fresh", lambda scheme, device, folder, size: fresh(scheme, device, size))
    status = main(["bench", name, *TINY, *SMALL.get(name, []), "--json", str(file)])
    printed, results = capsys.readouterr(), Results.read(file)
    # the CPU's limits are for large matrices; nothing may be wrong
    limits = [row for row in results.faults if name in ("cpu", "cpu-memory") and ", at most " in row.fault]
    assert results.faults == limits and status == bool(limits), printed
    assert results.rows and {row.suite for row in results.rows} == {name} and {row.source for row in results.rows} == {"cpu"}
    ours = [row for row in results.rows if row.name == "tritonq"]
    assert ours and all(row.us or row.figures for row in ours) and all(row.command.startswith(f"tritonq bench {name}") for row in ours)
    assert len(printed.out.splitlines()) >= len(results.rows)
    assert ("NO RESULT" in printed.err) == (name not in NO_GPU)
    if name in ("matmul", "w8a8", "backward"):
        assert {(row.n, row.m) for row in ours} == {(n, m) for n in (64, 32) for m in (1, 3)}
        assert all(row.of_floor and row.speedup["torch bf16"] and row.sku for row in ours)


def test_json_on_stdout_is_alone(capsys):
    assert main(["bench", "matmul", *TINY, "--schemes", "int8", "--json", "-"]) == 0
    printed = capsys.readouterr()
    results = Results.parse(json.loads(printed.out))
    assert len(results.rows) == 8 and results.about["arguments"].startswith("tritonq bench matmul --shapes 64x256,32x128")


def test_a_wrong_kernel_prints_incorrect_and_fails(monkeypatch, capsys):
    decoded = check.decoded_rows
    monkeypatch.setattr(check, "decoded_rows", lambda q, rows: (lambda part, w: (part, 2 * w))(*decoded(q, rows)))
    assert main(["bench", "matmul", *TINY, "--schemes", "int4.g128"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("matmul") and " tritonq " in line]
    assert len(lines) == 4 and all("incorrect by" in line and " us " not in line for line in lines)


def test_minutes_leave_out_and_say_so(capsys):
    assert main(["bench", "matmul", *TINY, "--minutes", "1e-12"]) == 0
    printed = capsys.readouterr()
    assert "left out, 1e-12 minutes are over: matmul 64x256" in printed.err and "\nmatmul" not in printed.out


def test_a_run_that_is_stopped_keeps_its_rows(monkeypatch, tmp_path, capsys):
    measure, file = suite.measure, tmp_path / "rows.json"

    def stopped(calls, *rest, **more):
        if file.exists():
            raise KeyboardInterrupt
        return measure(calls, *rest, **more)

    monkeypatch.setattr(suite, "measure", stopped)
    assert main(["bench", "matmul", *TINY, "--schemes", "int8", "--json", str(file), "--plot", str(tmp_path / "out")]) == 0
    assert len(Results.read(file).rows) == 2 and (tmp_path / "out" / "report.html").is_file()
    assert "stopped after 2 rows, which are kept" in capsys.readouterr().err


def test_it_names_suites_and_shapes(cli):
    out = cli("bench", "--list").out
    assert all(f" {name} " in out for name in SUITES) and "llama3-70b.lm_head" in out and "qwen3-32b.o" in out


@pytest.mark.parametrize(("arguments", "said"), [
    (["matmul"], "needs a CUDA or HIP device"),
    (["speed", "--device", "cpu"], "unknown suite 'speed'; known: matmul"),
    (["--device", "cpu", "--shapes", "big"], "unknown shape 'big'"),
    (["--device", "cpu", "--schemes", "int5"], "int5"),
    (["--device", "cpu", "--m", "1,0"], "--m takes whole numbers"),
    (["--device", "cpu", "--replays", "0"], "--replays"),
    (["--device", "cpu", "--minutes", "-1"], "minutes"),
    (["--device", "cpu", "--json", "benchmarks/results/rows.json"], "no results and are not written into benchmarks/results"),
    (["--device", "cpu", "--json", "no/folder/rows.json"], "there is no folder no/folder"),
    (["--device", "cpu", "--json", ""], "is no name of a file"),
    (["--device", "cpu", "--json", "tests"], "is no name of a file"),
    (["--device", "cpu", "--json", "pyproject.toml"], "pyproject.toml: "),
    (["--from", "missing.json"], "missing.json"),
    (["--from", "benchmarks/results/cpu.json", "matmul"], "--from measures nothing, so no suite can be chosen; leave out 'matmul'"),
    (["--from", "benchmarks/results/cpu.json", "--json", ""], "is no name of a file"),
])  # fmt: skip
def test_what_cannot_be_is_refused(arguments, said, cli):
    outcome = cli("bench", *arguments)
    assert outcome.status == 2 and said in outcome.err


def test_rows_that_are_read_are_written_too(tmp_path):
    quality = "benchmarks/results/quality.json"
    assert main(["bench", "--from", quality, "--json", str(tmp_path / "rows.json")]) == 0
    assert Results.read(tmp_path / "rows.json") == Results.read(quality)


@pytest.mark.parametrize("text", [100_000 * "[", '{"schema": 1, "about": {}, "roofs": {"foo": 1.0}, "rows": []}',
                                  '{"schema": 1, "about": {}, "roofs": {"bytes_per_s": 1.0}, "rows": []}'])  # fmt: skip
def test_files_that_hold_no_results(text, tmp_path, cli):
    file = tmp_path / "rows.json"
    file.write_text(text)
    outcome = cli("bench", "--from", file)
    assert outcome.status == 2 and ("roofs must be empty, or hold" in outcome.err or "recursion" in outcome.err)
