"""``tritonq quantize``: what it writes, read back with the safetensors library and compared bit for bit."""
from __future__ import annotations

import json
import os
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import tritonq
from tests.cli.models import QUANTIZED, fingerprint, tensors, write_folder
from tritonq.checkpoints import writer
from tritonq.checkpoints.tensorfile import open_file

SUFFIX = {"packed": "", "scale": "_scale", "zero_point": "_zero_point", "second_scale": "_second_scale", "scale_offset": "_scale_offset"}

SCHEMES = ["nf4.g64", "int4.g32", "uint4.g48", "uint4.g16.fz", "int8", "uint3.tensor", "int2.column", "fp8_e4m3.b16x16", "mxfp4", "nvfp4",
           "nf4.dq", "bf16", "W4A16"]  # fmt: skip


def stored_tensors(folder) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def assert_stored(stored: dict, named: dict, scheme_of) -> None:
    """``stored`` holds exactly what ``tritonq.quantize`` gives for each tensor with a scheme, and every other tensor as it is."""
    left = dict(stored)
    for name, tensor in named.items():
        scheme = scheme_of(name)
        if scheme is None:
            assert torch.equal(left.pop(name), tensor), name
            continue
        q = tritonq.quantize(tensor.flatten(0, -2) if tensor.dim() > 1 else tensor[None], scheme)
        for part, expected in q.tensors().items():
            got = left.pop(name + SUFFIX[part])
            assert got.dtype == expected.dtype and got.shape == expected.shape, (name, part)
            assert torch.equal(got.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8)), (name, part)
    assert not left


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_and_scales_are_those_of_quantize(cli, tmp_path, scheme):
    source = write_folder(tmp_path / "src")
    assert cli("quantize", source, "--scheme", scheme, "-o", tmp_path / "out").status == 0
    assert_stored(stored_tensors(tmp_path / "out"), tensors(), lambda name: scheme if name in QUANTIZED else None)
    assert cli("verify", tmp_path / "out", "--against", source).status == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_odd_shapes_stay_aligned(cli, tmp_path, dtype):
    named = {f"w{n}x{k}.weight": torch.randn(n, k).to(dtype) for n, k in [(1, 1), (3, 7), (5, 9), (2, 130), (7, 3)]}
    named |= {"b.weight": torch.zeros(0, 8, dtype=dtype), "c.weight": torch.zeros(4, 0, dtype=dtype), "n.bias": torch.randn(3).to(dtype)}
    save_file(named, tmp_path / "odd.safetensors")
    for scheme in ("uint3.g4", "int4.g3", "nf4.dq"):
        out = tmp_path / scheme
        assert cli("quantize", tmp_path / "odd.safetensors", "--scheme", scheme, "-o", out).status == 0
        assert_stored(stored_tensors(out), named, lambda name, s=scheme: None if name == "n.bias" else s)
        for entry in open_file(out / "odd.safetensors").entries.values():  # readers that map the file need this
            assert entry.start % entry.torch_dtype.itemsize == 0, entry
        assert cli("verify", out, "--against", tmp_path / "odd.safetensors").status == 0


def test_folder_with_index(cli, tmp_path):
    source = write_folder(tmp_path / "src", shards=3)
    before = fingerprint(source)
    outcome = cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "out", "--json")
    assert fingerprint(source) == before
    out = tmp_path / "out"
    assert_stored(stored_tensors(out), tensors(), lambda name: "nf4" if name in QUANTIZED else None)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for name, filename in index["weight_map"].items():
        with safe_open(out / filename, "pt") as file:
            assert name in file.keys()  # noqa: SIM118
    assert set(index["weight_map"]) == set(stored_tensors(out))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored_tensors(out).values())
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "tiny" and config["quantization_config"]["quant_method"] == "tritonq"
    assert config["quantization_config"]["scheme"] == "nf4" and "model.embed_tokens.weight" in config["quantization_config"]["kept"]
    assert (out / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text() and (out / "1_Pooling" / "config.json").is_file()
    assert not (out / "pytorch_model.bin").exists() and not (out / ".cache").exists() and not list(out.glob("*.partial"))
    assert outcome.json["left_out"] == ["pytorch_model.bin"] and not (out / "tritonq_job.json").exists()


def test_report_names_every_tensor_and_why(cli, tmp_path):
    source = write_folder(tmp_path / "src", shards=2)
    outcome = cli("quantize", source, "--scheme", "int8", "-o", tmp_path / "out", "--json")
    report = outcome.json
    rows = {row["name"]: row for record in report["files"].values() for row in record["tensors"]}
    assert rows.keys() == tensors().keys()
    assert {name for name, row in rows.items() if row["scheme"]} == QUANTIZED
    assert {name: row["reason"] for name, row in rows.items() if not row["scheme"]} == {
        "model.embed_tokens.weight": "embedding",
        "model.norm.weight": "norm",
        **{f"model.layers.{i}.input_layernorm.weight": "norm" for i in range(3)},
        **{f"model.layers.{i}.self_attn.q_proj.bias": "1-D" for i in range(3)},
        "model.layers.2.mlp.gate.weight": "expert router",
        "model.conv.weight": "4-D (convolution)",
        "model.position_ids": "I64, no float",
    }
    saved = json.loads((tmp_path / "out" / "tritonq_report.json").read_text())
    assert saved == {k: v for k, v in report.items() if k not in ("source", "destination")}
    # The quality figures, recomputed from the definition.
    name = "model.layers.0.mlp.down_proj.weight"
    w = tensors()[name].double()
    decoded = tritonq.quantize(tensors()[name], "int8").dequantize(torch.float32).double()
    error = decoded - w
    assert rows[name]["quality"]["sqnr_db"] == pytest.approx(10 * torch.log10((w**2).sum() / (error**2).sum()).item(), abs=1e-3)
    assert rows[name]["quality"]["cosine"] == pytest.approx(torch.cosine_similarity(w.flatten(), decoded.flatten(), dim=0).item(), abs=1e-7)
    assert rows[name]["quality"]["max_error"] == pytest.approx(error.abs().max().item())
    totals = report["totals"]
    assert (totals["quantized"], totals["kept"]) == (len(QUANTIZED), len(rows) - len(QUANTIZED))
    assert totals["bytes_after"] == sum(t.nbytes for t in stored_tensors(tmp_path / "out").values())
    quantized = [tritonq.quantize(t.reshape(-1, t.shape[-1]), "int8") for n, t in tensors().items() if n in QUANTIZED]
    weights = sum(q.shape[0] * q.shape[1] for q in quantized)
    assert totals["bits_per_weight"] == pytest.approx(8 * sum(q.nbytes for q in quantized) / weights, abs=1e-4)


def test_table_shows_quantized_kept_and_worst(cli, tmp_path):
    out = cli("quantize", write_folder(tmp_path / "src"), "--scheme", "nf4", "-o", tmp_path / "out").out
    for text in ("model.layers.*.self_attn.q_proj.weight", "embedding", "expert router", "worst layers", "dB",
                 "8 tensors quantized (4.566 bits per weight, SQNR ", "model.layers.2.mlp.experts.gate_up_proj"):  # fmt: skip
        assert text in out
    assert "x smaller) in " in out
    line = next(line.split() for line in out.splitlines() if "*.self_attn.q_proj.weight" in line)
    assert line[:5] == ["model.layers.*.self_attn.q_proj.weight", "3", "64x64", "nf4", "4.500"]
    assert next(line.split() for line in out.splitlines() if "input_layernorm" in line)[1:] == ["3", "64", "384", "B", "norm"]


def test_patterns_include_exclude_and_tied(cli, tmp_path):
    source = write_folder(tmp_path / "src", config={"tie_word_embeddings": True})
    schemes = ("--scheme", "int8", "--scheme", "*.mlp.down_proj.*=uint4.g32", "--scheme", "*layers.2*=nf4")
    choices = ("--include", "*embed_tokens*", "--include", "*q_proj.bias", "--exclude", "*layers.0.self_attn*")
    cli("quantize", source, *schemes, *choices, "-o", tmp_path / "out")
    chosen = {name: record.scheme for name, record in tritonq.checkpoints.open(tmp_path / "out").records.items()}
    assert chosen == {
        "model.embed_tokens.weight": "int8",
        "model.layers.0.mlp.down_proj.weight": "uint4.g32",
        "model.layers.1.self_attn.q_proj.weight": "int8",
        "model.layers.1.self_attn.q_proj.bias": "int8",
        "model.layers.1.mlp.down_proj.weight": "uint4.g32",
        "model.layers.2.self_attn.q_proj.weight": "nf4",
        "model.layers.2.self_attn.q_proj.bias": "nf4",
        "model.layers.2.mlp.down_proj.weight": "uint4.g32",
        "model.layers.2.mlp.experts.gate_up_proj": "nf4",
    }
    assert cli("verify", tmp_path / "out", "--against", source).status == 0


def test_weights_without_a_matching_pattern_are_kept_with_a_reason(cli, tmp_path):
    outcome = cli("quantize", write_folder(tmp_path / "src"), "--scheme", "*q_proj.weight=nf4", "-o", tmp_path / "out", "--json")
    rows = {row["name"]: row for record in outcome.json["files"].values() for row in record["tensors"]}
    assert rows["lm_head.weight"]["reason"] == "no pattern of a scheme matches it"


def test_experts_are_rows(cli, tmp_path):
    cli("quantize", write_folder(tmp_path / "src"), "--scheme", "nf4", "-o", tmp_path / "out")
    checkpoint = tritonq.checkpoints.open(tmp_path / "out")
    name = "model.layers.2.mlp.experts.gate_up_proj"
    assert checkpoint[name].shape == (4 * 48, 64) and checkpoint.shape(name) == (4, 48, 64)


def test_nan_and_inf_are_reported(cli, tmp_path):
    named = {"w.weight": torch.randn(8, 64)}
    named["w.weight"][0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    save_file(named, tmp_path / "w.safetensors")
    out = cli("quantize", tmp_path / "w.safetensors", "--scheme", "int8", "-o", tmp_path / "out").out
    assert "warning: w.weight holds 3 NaN or Inf" in out
    assert cli("verify", tmp_path / "out").status == 0


def test_unknown_dtypes_are_carried_bit_for_bit(cli, tmp_path):
    """A float8 tensor and packed fp4, which torch cannot hold: copied as bytes."""
    header = {
        "a.weight": {"dtype": "F4", "shape": [4, 6], "data_offsets": [0, 12]},
        "w.weight": {"dtype": "F32", "shape": [1, 3], "data_offsets": [12, 24]},
        "e.weight": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [24, 27]},
    }
    raw = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(range(27)))
    assert cli("quantize", tmp_path / "m.safetensors", "--scheme", "int8", "-o", tmp_path / "out").status == 0
    opened = tritonq.checkpoints.open(tmp_path / "out").source
    assert b"".join(opened.owner["a.weight"].chunks("a.weight")) == bytes(range(12))
    assert b"".join(opened.owner["e.weight"].chunks("e.weight")) == bytes(range(24, 27))
    assert cli("verify", tmp_path / "out", "--against", tmp_path / "m.safetensors").status == 0


@pytest.mark.parametrize("text", ['"limit": [0.0, Infinity], "nan": NaN', '"half": "a\\ud800b", "\\udfff": 1, "word": "\u00e9\\\\"'])
def test_config_is_carried_as_its_own_program_spells_it(cli, tmp_path, text):
    """Mamba2's and Nemotron-H's configurations hold Infinity, which is no JSON but what Python's json writes."""
    source = write_folder(tmp_path / "src")
    (source / "config.json").write_text("{" + text + "}", encoding="utf-8")
    assert cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "out").status == 0
    before, after = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (source, tmp_path / "out"))
    assert after.pop("quantization_config")["quant_method"] == "tritonq" and repr(after) == repr(before)  # NaN is not NaN


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_carried_name_that_is_no_text(cli, tmp_path):
    source, name = write_folder(tmp_path / "src"), os.fsdecode(b"vocab-\xff.txt")
    (source / name).write_text("a")
    assert cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "out").status == 0
    assert (tmp_path / "out" / name).read_text() == "a"
    assert name in json.loads((tmp_path / "out" / "tritonq_report.json").read_text())["carried"]


def test_the_header_reserves_what_it_needs(cli, tmp_path, monkeypatch):
    """Experts make tens of thousands of small weights; the format's own library opens no header over 100 MB."""
    named = {f"model.layers.{i}.mlp.experts.{j}.down_proj.weight": torch.randn(2, 64) for i in range(4) for j in range(50)}
    save_file(named, tmp_path / "w.safetensors")
    assert cli("quantize", tmp_path / "w.safetensors", "--scheme", "nf4", "-o", tmp_path / "out").status == 0
    raw = (tmp_path / "out" / "w.safetensors").read_bytes()
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    assert len(header) < 1.3 * len(header.rstrip())
    monkeypatch.setattr(writer, "MAX_HEADER", len(header) - 8)
    refused = cli("quantize", tmp_path / "w.safetensors", "--scheme", "nf4", "-o", tmp_path / "new")
    rule = f"its header would take {len(header)} bytes for 400 tensors, over the format's limit of {len(header) - 8}; spread the tensors"
    assert refused.status == 2 and rule in refused.err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("config", "tied"),
    [({"tie_word_embeddings": True}, True), ({"text_config": {"tie_word_embeddings": True}}, True), ({"text_config": [1]}, False)],
)
def test_a_tied_head_is_kept_wherever_the_configuration_says_so(cli, tmp_path, config, tied):
    source = write_folder(tmp_path / "src", config=config)
    for path in (source, source / "model.safetensors"):
        report = cli("quantize", path, "--scheme", "nf4", "-o", tmp_path / f"out-{path.stem}", "--json").json
        rows = {row["name"]: row["reason"] for row in report["files"]["model.safetensors"]["tensors"]}
        assert rows["lm_head.weight"] == ("tied to the embedding" if tied else None)
