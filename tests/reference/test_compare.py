"""benchmarks/compare.py: planted regressions are found, noise is not."""
import copy
import dataclasses
import importlib
import json
import pathlib

import pytest

from tritonq.bench.results import Results, Row

ROOT = pathlib.Path(__file__).parents[2]
CODEGEN = ROOT / "benchmarks" / "results" / "codegen.json"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("compare")


def row(**fields) -> Row:
    return Row(**{"suite": "matmul", "op": "matmul", "name": "tritonq", "scheme": "int4.g128", "n": 64, "k": 128, "m": 1, "sku": "a.s2",
                  "us": 100.0, "p20": 98.0, "p80": 103.0} | fields)  # fmt: skip


def files(tmp_path, base: list[Row], new: list[Row], devices=("H200", "H200")) -> list[str]:
    paths = []
    for name, rows, device in (("base.json", base, devices[0]), ("new.json", new, devices[1])):
        Results(about={"device": device}, roofs={}, rows=rows).write(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


@pytest.mark.parametrize(("change", "lost"), [
    ({"us": 112.0, "p20": 109.0, "p80": 114.0}, True),  # 109 > 103 + 5
    ({"us": 112.0, "p20": 107.5, "p80": 114.0}, False),  # within the spread of both and 5 %
    ({"us": 50.0, "p20": 49.0, "p80": 51.0}, False),
    ({"us": None, "p20": None, "p80": None}, True),
    ({"us": None, "p20": None, "p80": None, "fault": "incorrect by 3"}, True),
    ({"us": 112.0, "p20": 109.0, "p80": 114.0, "sku": "a.s4"}, True),  # another config of the same problem
])  # fmt: skip
def test_a_measured_row_that_lost(change, lost, tool, tmp_path, capsys):
    paths = files(tmp_path, [row(), row(m=2)], [row(**change), row(m=2, us=101.0)])
    assert tool.main(paths) == lost
    out = capsys.readouterr().out
    assert f"2 rows compared, {int(lost)} lost" in out and "H200" in out
    assert ("matmul matmul 64x128 M=1 tritonq int4.g128" in out) == lost
    assert ("sku was a.s2" in out) == ("sku" in change)


def test_rows_of_one_file_are_named(tool, tmp_path, capsys):
    assert tool.main(files(tmp_path, [row(), row(m=7)], [row(), row(m=9), row(scheme="nf4", fault="incorrect")])) == 0
    out = capsys.readouterr().out
    assert "only in BASE: matmul matmul 64x128 M=7" in out and "only in NEW: matmul matmul 64x128 M=9" in out


def test_several_configs_of_a_problem_stay_apart(tool, tmp_path):
    """The suite decode: one row a config, told apart by the sku alone."""
    slow = [row(sku="a.s1"), row(sku="a.s2", us=300.0, p20=299.0, p80=301.0)]
    assert tool.main(files(tmp_path, slow, list(reversed(slow)))) == 0
    assert tool.main(files(tmp_path, slow, [row(sku="a.s8", us=900.0, p20=900.0, p80=900.0)])) == 0  # which of the two was it?
    worse = [slow[0], dataclasses.replace(slow[1], us=400.0, p20=399.0, p80=401.0)]
    assert tool.main(files(tmp_path, slow, worse)) == 1


@pytest.mark.parametrize("name", ["codegen", "cpu", "quality"])
def test_a_file_is_no_worse_than_itself(name, tool, capsys):
    """Problems that launch a kernel more than once, and contenders that are measured beside each scheme, are told apart."""
    file = str(CODEGEN.with_name(f"{name}.json"))
    assert tool.main([file, file]) == 0
    out = capsys.readouterr().out
    assert "only in" not in out and ", 0 lost" in out


def test_rows_of_one_name_are_taken_in_their_order(tool, tmp_path):
    copies = [row(name="copy", us=us, p20=us, p80=us) for us in (10.0, 20.0, 30.0)]
    assert tool.main(files(tmp_path, copies, copies)) == 0
    assert tool.main(files(tmp_path, copies, [copies[0], dataclasses.replace(copies[1], us=25.0, p20=25.0, p80=25.0), copies[2]])) == 1


def test_only_one_device_can_be_compared(tool, tmp_path, capsys):
    assert tool.main(files(tmp_path, [row()], [row()], ("H200", "A100"))) == 2
    assert "BASE is of H200, NEW of A100" in capsys.readouterr().err
    (tmp_path / "list.json").write_text("[]")
    for pair in (["missing.json", str(CODEGEN)], [str(CODEGEN), str(tmp_path / "base.json")], [str(tmp_path / "list.json"), str(CODEGEN)]):
        assert tool.main(pair) == 2


def test_static_figures_are_exact(tool, tmp_path, capsys):
    data = json.loads(CODEGEN.read_text())

    def row(data) -> dict:
        return next(r for r in data["runs"][0]["rows"] if r["kernel"] == "matmul_frag" and r["scheme"] == "int4.g128")

    def status(change) -> int:
        changed = copy.deepcopy(data)
        change(row(changed))
        (tmp_path / "new.json").write_text(json.dumps(changed))
        return tool.main([str(CODEGEN), str(tmp_path / "new.json")])

    assert status(lambda r: None) == 0 and ", 0 lost" in capsys.readouterr().out
    assert status(lambda r: r.update(registers=r["registers"] + 1)) == 0  # within the step
    assert status(lambda r: r.update(per_weight=r["per_weight"] - 0.1)) == 0
    capsys.readouterr()
    had = row(data)
    planted = (({"per_weight": had["per_weight"] + 0.001}, "more instructions per weight"), ({"spills": 8}, "more bytes of spills"),
               ({"programs": 4, "registers": 200}, f"fewer programs on a multiprocessor, {had['registers']} -> 200 registers"),
               ({"registers": None}, "no longer compiles"), ({"per_weight": 2.0, "tile": "other"}, "tile was 8x64x256"))  # fmt: skip
    for change, said in planted:
        assert status(lambda r, change=change: r.update(change)) == 1
        out = capsys.readouterr().out
        assert said in out and "1 lost" in out and "Triton 3.9" in out


def test_another_triton_cannot_be_compared(tool, tmp_path, capsys):
    data = json.loads(CODEGEN.read_text())
    data["runs"] = [data["runs"][0] | {"triton": "9.9.9"}]
    (tmp_path / "new.json").write_text(json.dumps(data))
    assert tool.main([str(CODEGEN), str(tmp_path / "new.json")]) == 2 and "no release of Triton is in both" in capsys.readouterr().err
