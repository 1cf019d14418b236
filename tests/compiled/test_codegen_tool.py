"""benchmarks/codegen.py: its yardstick computes what it should, its checks fire, and what is recorded can be read."""
import dataclasses
import importlib
import json
import pathlib

import pytest
import torch

from tritonq import Scheme, reference

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def tool(load):
    return load("codegen")


@pytest.fixture
def case(load):
    return load("codegen_cases").Case(op="matmul", scheme="int4.g128", dtype="float16", arch=90, m=1, n=256, k=4096, layout="frag")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_yardstick_is_a_matmul(dtype, load, simulator):
    yardstick, k = load("yardstick"), 256
    generator = torch.Generator().manual_seed(1)
    q = reference.quantize(torch.randn(64, k, generator=generator), Scheme.parse("uint4.g128"))
    x = torch.randn(3, k, generator=generator).to(dtype)
    scale, zero = q.scale.T.contiguous().to(dtype), q.zero_point.T.contiguous().to(dtype)
    got = yardstick.matmul(x, yardstick.pack(q.codes().T.contiguous()), scale, zero)
    weight = ((q.codes().T.float() - zero.repeat_interleave(128, 0).float()).to(dtype) * scale.repeat_interleave(128, 0)).double()
    exact = x.double() @ weight
    assert got.dtype == dtype and bool(((got - exact).abs() <= 2 * torch.finfo(dtype).eps * (x.double().abs() @ weight.abs())).all())


def test_cases_name_what_ships(load):
    module = load("codegen_cases")
    every = module.cases()
    assert len({tuple(vars(case).items()) for case in every}) == len(every)
    fused = {(case.arch, case.dtype, case.m) for case in every if case.layout == "frag"}
    assert fused >= {(90, dtype, m) for dtype in module.DTYPES for m in (1, 8, 16, 32, 64)}
    assert fused >= {(arch, "bfloat16", 16) for arch in (80, 89, 120)}
    assert {case.arch for case in every if case.op == "dequantize"} >= {90, 100, "gfx942"}
    some = module.cases(archs=["gfx942"], schemes=["nf4.g64"])
    assert some and {(case.arch, case.scheme) for case in some} == {("gfx942", "nf4.g64")}


def test_a_worker_that_dies_costs_one_case(tool, case):
    """The middle one has no rows, so that nothing is launched and the worker ends with an error."""
    first, lost, last = tool.run([case, dataclasses.replace(case, n=0), dataclasses.replace(case, dtype="bfloat16")], 1)
    assert first["kernel"] == last["kernel"] == "matmul_frag" and not first["violations"] and last["dtype"] == "bfloat16"
    (fault,) = lost["violations"]
    assert fault["rule"] == "compiles" and "launches no kernel" in fault["value"]
    assert tool.broken([first, lost, last]) == ([f"matmul {lost['problem']} : compiles: {fault['value']}"], [])


def test_too_near_the_yardstick(tool, case, load, monkeypatch):
    yard = dataclasses.replace(case, op="yardstick", scheme="uint4.g128", m=16, n=4096)
    (row,), (base,) = tool.rows(case), tool.rows(yard)
    assert base["kernel"] == "peer_style" and base["matrix"] == ["HMMA.16816.F32"] and not base["violations"] and base["spills"] == 0
    key = ("matmul_frag", "int4.g128", "float16", 90, "8")
    assert tool.RATIOS[key] >= 4
    tool.against_yardstick([row, base])
    assert row["yardstick"] == round(base["per_weight"] / row["per_weight"], 2) >= 4 and not row["violations"]
    monkeypatch.setitem(tool.RATIOS, key, 9.0)
    tool.against_yardstick([row, base])
    assert [v["rule"] for v in row["violations"]] == ["yardstick"] and "at least 9.0" in row["violations"][0]["value"]


def test_a_known_fault_is_shown_and_does_not_fail(tool, case, monkeypatch):
    (row,) = tool.rows(case)
    row["violations"] = [{"rule": "spills", "value": "8 bytes per thread"}, {"rule": "waits", "value": "1"}]
    monkeypatch.setitem(tool.KNOWN, ("matmul_frag", "int4.g128", "float16", 90, 256, 4096, "spills"), "why")
    (fails,), (known,) = tool.broken([row])
    assert fails.endswith("waits: 1") and known.endswith("spills: 8 bytes per thread (why)")


def test_the_exit_status_and_what_is_recorded(tool, case, monkeypatch, capsys, tmp_path):
    (row,) = tool.rows(case)
    monkeypatch.setattr(tool, "run", lambda cases, jobs: [json.loads(json.dumps(row))])
    assert tool.main(["--record", str(tmp_path / "page"), "--schemes", "int4.g128"]) == 0
    assert "0 faults" in capsys.readouterr().err
    page = (tmp_path / "page.md").read_text()
    assert "**Compiled, not run on a GPU.**" in page
    assert f"| matmul_frag | int4.g128 | float16 | 1 | 256 | 4096 | 90 | {row['tile']} |" in page
    row["violations"] = [{"rule": "spills", "value": "8 bytes per thread"}]
    monkeypatch.setattr(tool.triton, "__version__", "3.0.0")
    assert tool.main(["--record", str(tmp_path / "page"), "--schemes", "int4.g128"]) == 1
    assert f"fails: matmul_frag {row['problem']} {row['tile']}: spills: 8 bytes per thread" in capsys.readouterr().err
    runs = json.loads((tmp_path / "page.json").read_text())["runs"]
    assert len(runs) == 2 and runs[-1]["triton"] == "3.0.0" and "breaks spills" in (tmp_path / "page.md").read_text()


def test_the_committed_results(tool):
    data = json.loads((BENCHMARKS / "results" / "codegen.json").read_text())
    assert data["note"] == tool.NOTE and {run["triton"].rsplit(".", 1)[0] for run in data["runs"]} >= {"3.9", "3.6"}
    assert (BENCHMARKS / "results" / "codegen.md").read_text() == tool.markdown(data["runs"])
    for run in data["runs"]:
        shown = {row["kernel"] for row in run["rows"]}
        assert shown >= {"matmul_frag", "matmul_ksplit", "matmul_tiles", "quantize_rows", "dequantize_rows", "dequantize_tiles",
                         "matmul_dx_tiles", "dequantize_range_tiles", "peer_style"}  # fmt: skip
