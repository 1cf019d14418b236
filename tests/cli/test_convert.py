"""``tritonq convert``: from one family into another and back, the same bits; what cannot be converted; jobs that are killed."""
from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tritonq
from tests.cli.models import fingerprint, model_files, tensors, write_folder
from tests.support.bitsandbytes_files import decoded, stored, weight
from tests.support.schemes import same_bits
from tritonq.checkpoints import convert, job, quantize_checkpoint
from tritonq.errors import CheckpointError, InvalidProblemError

SCHEMES = ("nf4.g32", "nf4.g32.dq", "fp4_bnb.g32", "fp4_bnb.g32.dq")
WEIGHT = "model.layers.0.mlp.down_proj.weight"


def quantized(tmp_path, scheme="nf4.g32", shards=2, name="q"):
    source = write_folder(tmp_path / f"{name}-src", shards=shards)
    quantize_checkpoint(source, tmp_path / name, scheme)
    return tmp_path / name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_there_and_back(cli, tmp_path, scheme):
    ours = quantized(tmp_path, scheme, shards=2 if "dq" in scheme else 1)
    before = fingerprint(ours)
    outcome = cli("convert", ours, "--to", "bitsandbytes", "-o", tmp_path / "bnb")
    assert outcome.status == 0 and "19 tensors, 8 quantized" in outcome.out
    assert tritonq.checkpoints.open(tmp_path / "bnb").family == "bitsandbytes" and cli("verify", tmp_path / "bnb").status == 0
    outcome = cli("convert", tmp_path / "bnb", "--to", "tritonq", "-o", tmp_path / "back", "--json")
    assert outcome.status == 0 and outcome.json["totals"]["quantized"] == 8
    want, got = tritonq.load(ours), tritonq.load(tmp_path / "back")
    assert want.keys() == got.keys()
    for name, value in want.items():
        parts = (value.tensors(), got[name].tensors()) if isinstance(value, tritonq.QTensor) else ({"": value}, {"": got[name]})
        assert parts[0].keys() == parts[1].keys() and all(same_bits(parts[0][part], parts[1][part]) for part in parts[0]), name
    assert model_files(ours).keys() == model_files(tmp_path / "back").keys()
    assert json.loads((ours / "tritonq.json").read_text())["weights"] == json.loads((tmp_path / "back/tritonq.json").read_text())["weights"]
    configs = [json.loads((folder / "config.json").read_text()) for folder in (ours, tmp_path / "back")]
    configs[0]["quantization_config"]["kept"].sort(), configs[1]["quantization_config"]["kept"].sort()
    assert configs[0] == configs[1] and fingerprint(ours) == before


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bitsandbytes_decodes_the_same_bits(tmp_path, scheme):
    functional = pytest.importorskip("bitsandbytes.functional")
    ours = quantized(tmp_path, scheme)
    convert(ours, tmp_path / "bnb", to="bitsandbytes")
    named = {name: tensor for file in (tmp_path / "bnb").glob("*.safetensors") for name, tensor in load_file(file).items()}
    checkpoint = tritonq.checkpoints.open(ours)
    for name in checkpoint.records:
        parts = {part.removeprefix(name + "."): tensor for part, tensor in named.items() if part.startswith(name + ".")}
        state = functional.QuantState.from_dict(dict(parts), device=torch.device("cpu"))
        got = functional.dequantize_4bit(named[name], state)
        assert got.shape == checkpoint.shape(name) and same_bits(got.reshape(checkpoint[name].shape), checkpoint[name].dequantize()), name


@pytest.mark.parametrize("scheme", ["int4.g32", "nf4.g32.dq", "mxfp4", "uint3.g48.fz"])
def test_decoded(cli, tmp_path, scheme):
    ours = quantized(tmp_path, scheme)
    outcome = cli("convert", ours, "--to", "safetensors", "-o", tmp_path / "plain")
    assert outcome.status == 0 and f"decoded from {scheme}" in outcome.out
    plain, checkpoint = tritonq.load(tmp_path / "plain"), tritonq.checkpoints.open(ours)
    assert tritonq.checkpoints.open(tmp_path / "plain").family == "safetensors" and plain.keys() == set(checkpoint.names())
    for name, value in checkpoint:
        assert plain[name].shape == checkpoint.shape(name)
        want = value.dequantize().view(checkpoint.shape(name)) if name in checkpoint.records else value
        assert plain[name].dtype == want.dtype and same_bits(plain[name], want), name
    assert json.loads((tmp_path / "plain/config.json").read_text()) == {"model_type": "tiny", "vocab_size": 50}
    assert not (tmp_path / "plain/tritonq.json").exists() and (tmp_path / "plain/tokenizer.json").is_file()
    for file in (tmp_path / "plain").glob("*.safetensors"):
        assert b'"tritonq"' not in file.read_bytes()


def test_one_file_and_weights_over_two(tmp_path):
    save_file(weight(nested=True), tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", tmp_path / "one")
    q = tritonq.load(tmp_path / "one/x.safetensors")["a.weight"]
    assert str(q.scheme) == "nf4.g64.dq" and torch.equal(q.dequantize(), decoded(nested=True))
    named, folder = weight(), tmp_path / "two"
    folder.mkdir()
    first = {"a.weight": named.pop("a.weight"), "b": torch.ones(3)}
    save_file(first, folder / "one.safetensors")
    save_file(named, folder / "two.safetensors")
    index = {"weight_map": dict.fromkeys(first, "one.safetensors") | dict.fromkeys(named, "two.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    report = convert(folder, tmp_path / "out", to="tritonq")
    loaded = tritonq.load(tmp_path / "out")
    assert torch.equal(loaded["a.weight"].dequantize(), decoded()) and loaded["b"].sum() == 3 and loaded.keys() == {"a.weight", "b"}
    assert report["totals"]["bytes_before"] == sum(tensor.nbytes for tensor in (*first.values(), *named.values()))


def act_order(tmp_path):
    codes, g_idx = torch.zeros(8, 64, dtype=torch.uint8), torch.arange(64) % 2
    q = tritonq.QTensor.from_codes("nf4.g32", codes, torch.ones(8, 2), dtype=torch.float32, g_idx=g_idx)
    return named(tmp_path, "a", w=q)


def named(tmp_path, name, **weights):
    tritonq.save(weights, tmp_path / f"{name}.safetensors")
    return tmp_path / f"{name}.safetensors"


NF4 = tritonq.quantize(torch.ones(2, 64), "nf4")


@pytest.mark.parametrize("make, to, text", [
    (lambda p: quantized(p, "int4.g32"), "bitsandbytes", "bitsandbytes stores nf4 and fp4_bnb in groups of 32, 64,"),
    (lambda p: quantized(p, "nf4.g64"), "bitsandbytes", "not nf4.g64 of shape [64, 96]"),
    (lambda p: quantized(p, "nf4.g32.sbf16"), "bitsandbytes", "not nf4.g32.sbf16"),
    (lambda p: quantized(p, "nf4.g16"), "bitsandbytes", "not nf4.g16"),
    (act_order, "bitsandbytes", "not nf4.g32 in act-order"),
    (lambda p: named(p, "d", w=tritonq.quantize(torch.ones(2, 64).double(), "nf4")), "bitsandbytes", "to float16, bfloat16, float32, not"),
    (lambda p: named(p, "e", w=tritonq.quantize(torch.ones(0, 64), "nf4")), "bitsandbytes", "of shape [0, 64]"),
    (lambda p: named(p, "c", **{"w": NF4, "w.absmax": torch.ones(1)}), "bitsandbytes", "would be stored as 'w.absmax' too"),
    (lambda p: quantized(p), "tritonq", "is a tritonq checkpoint already; convert to bitsandbytes or safetensors"),
    (lambda p: write_folder(p / "plain"), "tritonq", "holds no quantized weights"),
    (lambda p: p / "absent", "tritonq", "no such file or folder"),
    (lambda p: quantized(p), "gptq", "argument --to: invalid choice: 'gptq'"),
])  # fmt: skip
def test_refused_before_anything_is_written(cli, tmp_path, make, to, text):
    source = make(tmp_path)
    outcome = cli("convert", source, "--to", to, "-o", tmp_path / "out")
    assert outcome.status == 2 and text in outcome.err, outcome.err
    assert not (tmp_path / "out").exists()


def test_refused_calls(tmp_path):
    ours = quantized(tmp_path)
    with pytest.raises(InvalidProblemError, match="to must be one of tritonq, bitsandbytes, safetensors, got 'awq'"):
        convert(ours, tmp_path / "out", to="awq")
    with pytest.raises(CheckpointError, match="may not be the source folder or lie inside it"):
        convert(ours, ours / "inside", to="safetensors")


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_killed_job_goes_on(cli, tmp_path, monkeypatch):
    ours = quantized(tmp_path, shards=3)
    convert(ours, tmp_path / "want", to="bitsandbytes")
    before, write, calls = fingerprint(ours), job._write_file, []

    def dying(*arguments):
        if len(calls) == 2:
            raise Killed
        calls.append(1)
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_write_file", dying)
        with pytest.raises(Killed):
            convert(ours, tmp_path / "out", to="bitsandbytes")
    assert "holds an unfinished job" in cli("inspect", tmp_path / "out").err
    outcome = cli("convert", ours, "--to", "safetensors", "-o", tmp_path / "out")
    assert outcome.status == 2 and "another scheme or choice (convert --to bitsandbytes, now convert --to safetensors)" in outcome.err
    assert convert(ours, tmp_path / "out", to="bitsandbytes")["resumed_files"] == 2
    assert model_files(tmp_path / "out") == model_files(tmp_path / "want") and fingerprint(ours) == before


def test_overwrite_leaves_nothing_of_the_other_job(tmp_path):
    source = tmp_path / "bnb"
    source.mkdir()
    q = tritonq.quantize(tensors()[WEIGHT].float(), "nf4.g32")
    save_file(stored("w", q), source / "model.safetensors")
    convert(source, tmp_path / "out", to="tritonq")
    assert (tmp_path / "out/tritonq.json").is_file()
    convert(source, tmp_path / "out", to="safetensors", overwrite=True)
    assert not (tmp_path / "out/tritonq.json").exists()
    assert same_bits(tritonq.load(tmp_path / "out")["w"], q.dequantize())


def test_transformers_reads_what_was_converted(tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.19")
    pytest.importorskip("bitsandbytes")
    from tests.support.tiny_models import logits, make

    model = make("llama", torch.float32)
    model.save_pretrained(tmp_path / "full")
    quantize_checkpoint(tmp_path / "full", tmp_path / "ours", "nf4.g32", exclude=["lm_head.weight"])
    convert(tmp_path / "ours", tmp_path / "bnb", to="bitsandbytes")
    convert(tmp_path / "ours", tmp_path / "plain", to="safetensors")
    four_bit, plain = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32) for name in ("bnb", "plain"))
    assert sum(type(module).__name__ == "Linear4bit" for module in four_bit.modules()) == 14
    assert not any(type(module).__name__ == "Linear4bit" for module in plain.modules())
    torch.testing.assert_close(logits(four_bit), logits(plain), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits(plain), logits(model.eval()), rtol=1e-2, atol=1e-2), "4 bits are seen"
