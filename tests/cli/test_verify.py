"""``tritonq verify``: exit status 0 where all is well, 1 where a check fails, and the figures it reports."""
from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tritonq
from tests.cli.models import QUANTIZED, tensors, write_folder


@pytest.fixture
def pair(cli, tmp_path):
    """A source and its quantized copy."""
    source = write_folder(tmp_path / "src")
    cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "out")
    return source, tmp_path / "out"


def change(out, edit) -> None:
    """Rewrite the checkpoint with ``edit(tensors)`` applied, its description kept."""
    path = out / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    named = load_file(path)
    edit(named)
    save_file(named, path, metadata=metadata)


def test_good_pair(cli, pair):
    source, out = pair
    report = cli("verify", out, "--against", source, "--fail-under", "15 dB", "--json").json
    assert report["ok"] and report["failures"] == [] and report["quantized"] == len(QUANTIZED) and report["fail_under_db"] == 15
    job = json.loads((out / "tritonq_report.json").read_text())
    assert report["quality"]["sqnr_db"] == pytest.approx(job["totals"]["quality"]["sqnr_db"])
    text = cli("verify", out, "--against", source).out
    assert "lm_head.weight" in text and "ok: 19 tensors, 8 quantized, SQNR 20." in text
    assert "ok: 19 tensors" in cli("verify", out).out and "ok: 19 tensors" in cli("verify", source).out


def test_fail_under_names_each_weight(cli, pair):
    source, out = pair
    outcome = cli("verify", out, "--against", source, "--fail-under", "40dB")
    assert outcome.status == 1 and outcome.out.count("is below 40 dB") == len(QUANTIZED)
    rows = {row["name"]: row for row in cli("verify", out, "--against", source, "--json").json["tensors"]}
    worst = min(rows[name]["quality"]["sqnr_db"] for name in QUANTIZED)
    assert cli("verify", out, "--against", source, "--fail-under", worst - 0.01).status == 0
    assert cli("verify", out, "--against", source, "--fail-under", worst + 0.01).out.count("is below") == 1


NORM = "model.norm.weight"
FAULTS = {
    "kept tensor differs": (lambda t: t["model.norm.weight"][3].add_(1), "model.norm.weight: was kept, but differs from the source"),
    "codes swapped": (lambda t: t["lm_head.weight"].copy_(t["lm_head.weight"].flip(1)), "lm_head.weight: SQNR -"),
    "tensor missing": (lambda t: t.pop("model.norm.weight"), "model.norm.weight: missing, the source has it"),
    "tensor too many": (lambda t: t.update(extra=torch.zeros(2)), "extra: the source has no such tensor"),
    "dtype of kept changed": (lambda t: t.update({NORM: t[NORM].float()}), "model.norm.weight: F32, the source has BF16"),
    "shape of kept changed": (lambda t: t.update({NORM: torch.zeros(32)}), "model.norm.weight: shape [32], the source has [64]"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(cli, pair, name):
    source, out = pair
    edit, text = FAULTS[name]
    change(out, edit)
    outcome = cli("verify", out, "--against", source, "--fail-under", "15dB")
    assert outcome.status == 1 and f"failed: {text}" in outcome.out
    assert not cli("verify", out, "--against", source, "--json").json["ok"] or name == "codes swapped"


@pytest.mark.parametrize("scheme_part", ["mxfp4_scale", "nvfp4_scale", "nvfp4_second_scale", "uint4.g16.fz_zero_point"])
def test_nan_in_any_part(cli, tmp_path, scheme_part):
    """A file can hold what quantize never writes; e8m0 and e4m3 have a NaN too (all ones)."""
    scheme, _, part = scheme_part.partition("_")
    save_file({"w.weight": torch.randn(32, 64)}, tmp_path / "w.safetensors")
    cli("quantize", tmp_path / "w.safetensors", "--scheme", scheme, "-o", tmp_path / "out")
    from tritonq.checkpoints.tensorfile import open_file

    path = tmp_path / "out" / "w.safetensors"
    entry = open_file(path).entries["w.weight_" + part]
    raw = bytearray(path.read_bytes())
    raw[entry.start : entry.start + 4] = {"F32": b"\xff\xff\xff\x7f", "F8_E8M0": b"\xff" * 4, "F8_E4M3": b"\x7f" * 4}[entry.dtype]
    path.write_bytes(raw)
    outcome = cli("verify", tmp_path / "out")
    assert outcome.status == 2 and "w.safetensors: weight 'w.weight': " in outcome.err and "holds NaN or Inf" in outcome.err


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2fnuz,
                                   torch.float8_e8m0fnu])  # fmt: skip
def test_nan_in_kept_tensors_of_every_float(cli, tmp_path, dtype):
    values = torch.ones(40).to(dtype)
    save_file({"x": values}, tmp_path / "x.safetensors")
    assert cli("verify", tmp_path / "x.safetensors").status == 0
    values[3:5] = float("nan")
    save_file({"x": values}, tmp_path / "x.safetensors")
    outcome = cli("verify", tmp_path / "x.safetensors")
    assert outcome.status == 1 and "failed: x: 2 of its values are NaN or Inf" in outcome.out


def test_a_recorded_dtype_that_is_not_the_sources(cli, pair):
    source, out = pair
    path, manifest = out / "model.safetensors", out / "tritonq.json"
    described = json.loads(manifest.read_text())
    described["weights"]["lm_head.weight"]["dtype"] = "float16"
    manifest.write_text(json.dumps(described))
    save_file(load_file(path), path, metadata={"tritonq": json.dumps(described)})
    outcome = cli("verify", out, "--against", source)
    assert outcome.status == 1
    assert "failed: lm_head.weight: was torch.float16, its description says, and the source has torch.bfloat16" in outcome.out


def test_finite_scale_that_decodes_to_infinity(cli, tmp_path):
    save_file({"w.weight": torch.eye(32)}, tmp_path / "w.safetensors")
    cli("quantize", tmp_path / "w.safetensors", "--scheme", "int8", "-o", tmp_path / "out")
    (tmp_path / "out" / "w.safetensors").rename(tmp_path / "out" / "model.safetensors")
    change(tmp_path / "out", lambda t: t["w.weight_scale"][:2].fill_(3e38))
    for more in ((), ("--against", tmp_path / "w.safetensors")):
        outcome = cli("verify", tmp_path / "out", *more)
        assert outcome.status == 1 and "failed: w.weight: 2 of its values decode to NaN or Inf" in outcome.out


def test_scheme_of_another_weight_is_a_shape_error(cli, pair):
    source, out = pair
    change(out, lambda t: t.update({"lm_head.weight_scale": t["lm_head.weight_scale"][:10].contiguous()}))
    outcome = cli("verify", out, "--against", source)
    assert outcome.status == 2 and "weight 'lm_head.weight': nf4 of shape (50, 64)" in outcome.err


def test_wrong_source(cli, pair, tmp_path):
    _, out = pair
    named = tensors()
    named["lm_head.weight"] = torch.zeros(7, 64)
    named["model.layers.0.mlp.down_proj.weight"] = torch.zeros(64, 96, dtype=torch.int32)
    other = write_folder(tmp_path / "other", named)
    failures = cli("verify", out, "--against", other, "--json").json["failures"]
    assert "lm_head.weight: shape [50, 64], the source has [7, 64]" in failures
    assert "model.layers.0.mlp.down_proj.weight: the source has I32, no float" in failures


def test_large_weights_are_compared_in_slices(monkeypatch):
    """The same figures whatever the size of the slices."""
    from tritonq.checkpoints import quality

    w = torch.randn(100, 96)
    for scheme in ("uint4.g32", "nf4.dq", "int4.b16x32", "int8.column", "nvfp4", "int8.tensor", "fp16"):
        q = tritonq.quantize(w, scheme)
        whole = quality.compare_quantized(w, q)
        monkeypatch.setattr(quality, "_SLICE", 500)
        sliced = quality.compare_quantized(w, q)
        monkeypatch.undo()
        assert sliced.noise == pytest.approx(whole.noise, rel=1e-12) and sliced.elements == whole.elements == w.numel()


@pytest.mark.parametrize("value", [0.0, 1e-320, 1e200, 1.7e308])
def test_extreme_weights_give_figures_that_json_can_hold(cli, tmp_path, value):
    """All-zero weights, denormals, and float64 values whose squares overflow."""
    save_file({"w.weight": torch.full((4, 64), value, dtype=torch.float64)}, tmp_path / "w.safetensors")
    for scheme in ("int8", "nf4", "fp16"):
        out = tmp_path / scheme
        assert cli("quantize", tmp_path / "w.safetensors", "--scheme", scheme, "-o", out, "--json").json["totals"]["quantized"] == 1
        assert cli("verify", out, "--against", tmp_path / "w.safetensors", "--json").json["quality"] is not None
