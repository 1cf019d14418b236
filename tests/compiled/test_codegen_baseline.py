"""A sample of the shipped kernels, compiled by the installed Triton, is no worse than the committed benchmarks/results/codegen.json."""
import importlib
import json
import pathlib

import pytest
import triton

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
BASELINE = {run["triton"]: run["rows"] for run in json.loads((BENCHMARKS / "results" / "codegen.json").read_text())["runs"]}
# Of each family the kernel that matters most; `make lint-kernels` compares and records them all.
SAMPLE = [
    dict(op="matmul", scheme="int4.g128", dtype="bfloat16", m=1, layout="frag"),
    dict(op="matmul", scheme="nf4.g64", dtype="bfloat16", m=16, layout="frag"),
    dict(op="quantize", scheme="int4.g128", dtype="bfloat16"),
    dict(op="dequantize", scheme="nf4.g64", dtype="bfloat16"),
]


@pytest.mark.skipif(triton.__version__ not in BASELINE, reason=f"no figures of Triton {triton.__version__} are committed")
@pytest.mark.parametrize("fields", SAMPLE, ids=lambda f: f"{f['op']}-{f['scheme']}-{f.get('layout', 'row')}")
def test_no_worse_than_the_baseline(fields, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    codegen, cases, compare = (importlib.import_module(name) for name in ("codegen", "codegen_cases", "compare"))
    n, k = cases.SPLIT
    found = compare.static(BASELINE[triton.__version__], codegen.rows(cases.Case(**fields, arch=90, n=n, k=k)))
    assert found.changes and not found.only_new, "not in the baseline: `make lint-kernels` records it"
    assert not found.lost, f"{found.text()}\nwhere it is meant, `make lint-kernels` records the new figures"
