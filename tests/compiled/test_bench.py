"""The suites of tritonq.bench above compiled kernels in the simulator: layouts, workspaces and configs as on a GPU, but for the clock."""
import dataclasses

import pytest
import torch

from tritonq.bench import quantize, suite
from tritonq.bench.backward import BACKWARD
from tritonq.bench.matmul import DECODE, MATMUL
from tritonq.bench.quantize import DEQUANTIZE, QUANTIZE
from tritonq.bench.shapes import Shape
from tritonq.bench.suite import Bench
from tritonq.bench.timing import Times

BENCH = Bench(device=torch.device("cpu"), roofs={"bytes_per_s": 4e12, "flops_per_s": 8e14}, shapes=(Shape("x", 64, 256),),
              schemes=("int4.g128",), ms=(2,), with_peers=False)  # fmt: skip


@pytest.fixture
def as_on_a_gpu(simulator, monkeypatch):
    """Weights in layout frag; a contender is called once and takes a microsecond."""

    def measure(contenders, *rest, **more):
        for calls in contenders.values():
            calls[-1]()
        return {name: Times(1.0, 1.0, 1.0) for name in contenders}

    for module in (suite, quantize):
        monkeypatch.setattr(module, "best_layout", lambda *a: "frag")
    monkeypatch.setattr(suite, "measure", measure)
    return simulator


@pytest.mark.parametrize("of", [MATMUL, QUANTIZE, DEQUANTIZE, BACKWARD], ids=lambda s: s.name)
def test_a_suite_runs_the_kernels_that_a_gpu_would(of, as_on_a_gpu):
    rows = [row for case in of.cases(BENCH) for found in case.run() for row in found]
    ours = [row for row in rows if row.name == "tritonq"]
    assert not any(row.fault for row in rows) and all(row.us == 1.0 for row in ours) and as_on_a_gpu.launches
    assert any("/frag/" in row.sku for row in ours) and not any("reference" in row.sku for row in ours), [row.sku for row in ours]


def test_many_rows_take_the_kernel_that_decodes_first(as_on_a_gpu):
    found = [row for case in MATMUL.cases(dataclasses.replace(BENCH, ms=(1100,))) for rows in case.run() for row in rows]
    assert [row.us for row in found] == [1.0, 1.0] and "dequantize_matmul" in found[1].sku


def test_the_experiment_tries_configs_that_the_kernel_takes(as_on_a_gpu, monkeypatch):
    monkeypatch.setattr("tritonq.bench.matmul.EXPERIMENT", [{"num_warps": 4}, {"SPLIT_K": 3}])
    rows = [row for case in DECODE.cases(BENCH) for found in case.run() for row in found]
    assert [row.us for row in rows] == [1.0, 1.0] and len({row.sku for row in rows}) == 2
    assert [row.note.endswith("(as chosen)") for row in rows] == [True, False] and "num_warps=4" in rows[1].note
