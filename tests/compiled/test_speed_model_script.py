"""benchmarks/speed_model.py on made-up measurements: of the tuner, of a config file, of the benchmarks."""
import importlib
import json
import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
CONFIG = {"BLOCK_M": 8, "BLOCK_N": 64, "BLOCK_K": 256, "SPLIT_K": 1, "STAGES": 3, "num_warps": 2}


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speed_model")


def pair(tool, predicted: float, measured: float, problem: str = "p"):
    return tool.Pair(problem=problem, config="c", limit="memory", predicted=predicted, measured=measured)


def test_spearman(tool):
    assert tool.ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    rising = [pair(tool, a, a * a) for a in (1, 2, 3, 4)]
    assert tool.spearman(rising) == pytest.approx(1.0)
    assert tool.spearman([pair(tool, a, -a) for a in (1, 2, 3)]) == pytest.approx(-1.0)
    # 1 - 6 sum d^2 / n (n^2 - 1) = 1 - 6 * 4 / 60
    assert tool.spearman([pair(tool, a, b) for a, b in zip((1, 2, 3, 4), (2, 1, 4, 3))]) == pytest.approx(0.6)
    assert tool.spearman(rising[:2]) is None and tool.spearman([pair(tool, 1, a) for a in (1, 2, 3)]) is None


def test_the_tuner_s_times(tool, tmp_path, capsys):
    def timed(split, us, predicted):
        return {"config": CONFIG | {"SPLIT_K": split}, "us": us, "p20": us, "p80": us, "predicted_us": predicted, "limit": "memory"}

    times = [timed(1, 9.0, 8.0), timed(2, 7.0, 6.0), timed(4, 8.0, 5.0), timed(8, 1.0, None)]
    results = [{"problem": f"p{i}", "timed": times} for i in (1, 2)]
    path = tmp_path / "tune.json"
    path.write_text(json.dumps({"results": results}))
    assert tool.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "     8.00      9.00   1.12  memory   p1 8x64x256 w2 s3\n" in out and "over all 6 rows: 0.500" in out
    assert "median of 2 problems: 0.500" in out and "median 1.17, from 1.12 to 1.60" in out


def test_entries_and_rows_are_predicted_again(tool, tmp_path, capsys):
    entry = {"scheme": "int4.g128", "dtype": "bfloat16", "layout": "frag", "n": 28672, "k": 8192, "m": 1, "config": CONFIG,
             "measured": True, "us": 40.0, "next_us": None, "source": "s"}  # fmt: skip
    predicted = entry | {"n": 14336, "measured": False, "us": 1.0}
    head = '{"schema": 1, "kernel": "matmul_frag", "revision": 1, "arch": "sm_90", "multiprocessors": 132,\n "sources": {\n'
    head += '  "s": {"protocol": "p", "time": "t", "commit": null, "device": null, "driver": null, "triton": null, "torch": null}},\n'
    path = tmp_path / "sm_90x132" / "matmul_frag.json"
    path.parent.mkdir()
    path.write_text(head + ' "entries": [\n  ' + json.dumps(predicted) + ",\n  " + json.dumps(entry) + "]}\n")
    (found,) = tool.pairs_of(tmp_path, None)
    assert found.measured == 40.0 and 30 < found.predicted < 45 and found.limit == "memory" and found.problem.endswith("28672x8192 m=1")
    sku = "matmul/int4.g128/bfloat16/frag/sm_90/matmul_frag.r1.m8.n64.k256.split_k1.stages3.num_warps2"
    row = {"suite": "matmul", "op": "matmul", "name": "tritonq", "scheme": "int4.g128", "n": 28672, "k": 8192, "m": 1, "us": 40.0}
    peer = {"suite": "matmul", "op": "matmul", "name": "cuBLAS bf16", "us": 90.0}
    about = {"multiprocessors": 132, "device": "NVIDIA H200"}
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"schema": 1, "about": about, "roofs": {}, "rows": [peer, row | {"sku": sku}]}))
    (again,) = tool.pairs_of(bench, None)
    assert again.config == found.config == "8x64x256 w2 s3" and again.predicted < found.predicted  # an H200's memory is faster
    empty = tmp_path / "empty.json"
    empty.write_text('{"rows": []}')
    assert tool.main([str(empty)]) == 1 and "nothing in there was measured" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "none.json")]) == 2
