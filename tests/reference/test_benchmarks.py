"""The benchmark scripts run to their end without a GPU, and a wrong result gets no time."""
import importlib
import json
import pathlib
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def matmul(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("matmul")


def run(monkeypatch, module, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["matmul.py", *arguments])
    return module.main()


def test_matmul_runs_on_the_cpu_path(matmul, monkeypatch, tmp_path, capsys):
    file = tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--shapes", "64x256,32x128", "--m", "1,3", "--experiment", "--no-peers", "--json", str(file)]
    assert run(monkeypatch, matmul, *arguments) == 0
    rows = json.loads(file.read_text())["rows"]
    timed = [row for row in rows if row["times"]]
    contenders = {(row["n"], row["m"], row["name"]) for row in timed}
    assert contenders >= {(n, m, name) for n in (64, 32) for m in (1, 3) for name in ("cuBLAS", "tritonq")}
    assert "no result" in json.loads(capsys.readouterr().out.splitlines()[0])["device"]


def test_a_wrong_result_gets_no_time_and_fails_the_run(matmul, monkeypatch, capsys):
    dequantize = matmul.QTensor.dequantize
    monkeypatch.setattr(matmul.QTensor, "dequantize", lambda q, dtype=None: 2 * dequantize(q, dtype))  # the product no longer fits it
    assert run(monkeypatch, matmul, "--device", "cpu", "--shapes", "64x256", "--m", "2", "--schemes", "int4.g128", "--no-peers") == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "tritonq" in line]
    assert "incorrect" in line and " us " not in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["matmul.py", "quantize.py"])
def test_without_a_gpu_they_say_so(script):
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / script)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "needs a CUDA" in done.stderr and "Traceback" not in done.stderr
