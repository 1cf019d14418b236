"""Checkpoints of bitsandbytes: read, listed, verified, converted; and malformed ones, each one CheckpointError."""
from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import tritonq
from tests.support.bitsandbytes_files import NESTED, STATE, decoded, state, text, weight
from tritonq.errors import TritonQError


@pytest.mark.parametrize("nested, scheme", [(False, "nf4.g64"), (True, "nf4.g64.dq")])
def test_read_list_verify_convert(cli, tmp_path, nested, scheme):
    path, kept = tmp_path / "model.safetensors", torch.randn(3)
    save_file(weight(nested) | {"a.bias": kept}, path)
    checkpoint = tritonq.checkpoints.open(path)
    assert checkpoint.family == "bitsandbytes" and checkpoint.names() == ["a.bias", "a.weight"] and checkpoint.shape("a.weight") == (4, 128)
    loaded = tritonq.load(path)
    assert str(loaded["a.weight"].scheme) == scheme and torch.equal(loaded["a.weight"].dequantize(), decoded(nested))
    listed = json.loads(cli("inspect", path, "--json").out)
    rows = [(row["name"], row["scheme"], row["shape"]) for row in listed["tensors"]]
    assert rows == [("a.bias", None, [3]), ("a.weight", scheme, [4, 128])]
    assert cli("verify", path).status == 0
    tritonq.save(loaded, tmp_path / "ours.safetensors")
    again = tritonq.checkpoints.open(tmp_path / "ours.safetensors")
    assert again.family == "tritonq" and torch.equal(again["a.weight"].dequantize(), decoded(nested)) and torch.equal(again["a.bias"], kept)
    outcome = cli("quantize", path, "--scheme", "int8", "-o", tmp_path / "out")
    assert outcome.status == 2 and "is a bitsandbytes checkpoint already" in outcome.err


def test_a_weight_over_two_files(tmp_path):
    named = weight()
    first = {"a.weight": named.pop("a.weight")}
    save_file(first, tmp_path / "one.safetensors")
    save_file(named, tmp_path / "two.safetensors")
    index = {"weight_map": dict.fromkeys(first, "one.safetensors") | dict.fromkeys(named, "two.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(tritonq.load(tmp_path)["a.weight"].dequantize(), decoded())


def test_another_table_of_scales_is_held_decoded(tmp_path):
    """Scales that were quantized with a code book of their own cannot be ``dq``; their values stay."""
    named = weight(nested=True)
    named["a.weight.nested_quant_map"] = torch.linspace(-1, 1, 256)
    save_file(named, tmp_path / "x.safetensors")
    q = tritonq.load(tmp_path / "x.safetensors")["a.weight"]
    assert str(q.scheme) == "nf4.g64"
    assert torch.equal(q.scale.flatten(), torch.linspace(-1, 1, 256)[200:208] * 3 + 0.5)


def changed(nested: bool = False, **tensors) -> dict[str, torch.Tensor]:
    """The good weight with other tensors (``quant_map=...``); None removes one."""
    named = weight(nested) | {f"a.weight.{name}": value for name, value in tensors.items()}
    return {name: value for name, value in named.items() if value is not None}


def with_state(value: torch.Tensor, nested: bool = False) -> dict[str, torch.Tensor]:
    return weight(nested) | {STATE: value}


HOSTILE = {
    "state is no JSON": (with_state(text("{")), "not valid JSON"),
    "state is not UTF-8": (with_state(text(b"\xff\xfe{}")), "not valid JSON"),
    "state is a list": (with_state(text("[]")), "must be a JSON object, got []"),
    "a field twice": (with_state(text('{"shape": [1], "shape": [2]}')), "'shape' appears twice"),
    "state of floats": (with_state(torch.zeros(20)), "must be a JSON text of at most 65536 bytes, got F32 [20]"),
    "state of a megabyte": (with_state(torch.zeros(1 << 20, dtype=torch.uint8)), "must be a JSON text of at most 65536 bytes"),
    "field missing": (with_state(state(blocksize=None)), "needs exactly blocksize, dtype, quant_type, shape, got"),
    "field unknown": (with_state(state(order="low")), "needs exactly blocksize"),
    "half nested": (with_state(state(nested_offset=0.5)), "needs exactly blocksize, dtype, nested_blocksize"),
    "another type than the name's": (with_state(state(quant_type="fp4")), "quant_type must be 'nf4', got 'fp4'"),
    "type unknown": (with_state(state(quant_type=["nf4"])), "quant_type must be 'nf4', got ['nf4']"),
    "blocksize unknown": (with_state(state(blocksize=48)), "blocksize must be one of 32, 64"),
    "blocksize a text": (with_state(state(blocksize="64")), "blocksize must be one of"),
    "blocksize true": (with_state(state(blocksize=True)), "blocksize must be one of"),
    "blocksize a float": (with_state(state(blocksize=64.0)), "blocksize must be one of 32, 64, 128, 256, 512, 1024, 2048, 4096, got 64.0"),
    "nested blocksize a float": (with_state(state(**NESTED | {"nested_blocksize": 256.0}), True), "nested_blocksize must be one of"),
    "dtype unknown": (with_state(state(dtype="int8")), "dtype must be one of float16, bfloat16, float32, got 'int8'"),
    "dtype a list": (with_state(state(dtype=["float16"])), "dtype must be one of"),
    "shape no list": (with_state(state(shape=512)), "shape must be a list"),
    "shape negative": (with_state(state(shape=[-4, -128])), "shape must be a list"),
    "shape of one axis": (with_state(state(shape=[512])), "shape [512]: a weight has at least two axes"),
    "shape lies": (with_state(state(shape=[8, 128])), "'a.weight' must hold 512 bytes (half a byte per element), got 256 of U8"),
    "shape of 2**62": (with_state(state(shape=[2**31, 2**31])), "'a.weight' must hold 2305843009213693952 bytes"),
    "rows that cut blocks small": (with_state(state(shape=[64, 8])), "rows of 8 elements cut its blocks of 64 into pieces of 8"),
    "blocksize lies": (with_state(state(blocksize=32)), "'a.weight.absmax' must hold 64 bytes of F32 (one per block), got 32"),
    "nested but for the state": (changed(nested=True, **{STATE.removeprefix("a.weight."): state()}), "must hold 32 bytes of F32"),
    "nested by the state alone": (with_state(state(**NESTED)), "'a.weight.absmax' must hold 8 bytes of U8"),
    "offset infinite": (with_state(state(**NESTED | {"nested_offset": float("inf")}), True), "must be a finite number, got inf"),
    "offset a text": (with_state(state(**NESTED | {"nested_offset": "0"}), True), "nested_offset must be a finite number, got '0'"),
    "offset beyond float32": (with_state(state(**NESTED | {"nested_offset": 1e300}), True), "must be a finite number, got 1e+300"),
    "nested dtype": (with_state(state(**NESTED | {"nested_dtype": "float16"}), True), "nested_dtype must be float32, got 'float16'"),
    "nested blocksize": (with_state(state(**NESTED | {"nested_blocksize": 0}), True), "nested_blocksize must be one of"),
    "absmax missing": (changed(absmax=None), "tensor 'a.weight.absmax' is missing"),
    "map missing": (changed(quant_map=None), "tensor 'a.weight.quant_map' is missing"),
    "nested absmax missing": (changed(True, nested_absmax=None), "tensor 'a.weight.nested_absmax' is missing"),
    "nested map missing": (changed(True, nested_quant_map=None), "tensor 'a.weight.nested_quant_map' is missing"),
    "nested absmax too long": (changed(True, nested_absmax=torch.ones(2)), "must hold 4 bytes of F32 (one per nested block), got 8"),
    "another code book": (changed(quant_map=torch.linspace(-1, 1, 16)), "the levels in 'a.weight.quant_map' are not those of nf4"),
    "code book of NaN": (changed(quant_map=torch.full((16,), float("nan"))), "are not those of nf4"),
    "weight missing": ({k: v for k, v in weight().items() if k != "a.weight"}, "tensor 'a.weight' is missing"),
    "two states": (weight() | {STATE.replace("nf4", "fp4"): state(quant_type="fp4")}, "once for each weight"),
    "state of another kind": (changed(**{"quant_state.bitsandbytes__nf5": state()}), "must end on one of nf4, fp4"),
    "scales without a state": (weight() | {"b.weight.absmax": torch.ones(1)}, "'b.weight.absmax' needs 'b.weight.quant_state.bitsand"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_malformed(cli, tmp_path, name):
    named, words = HOSTILE[name]
    path = tmp_path / "x.safetensors"
    save_file(named, path)
    for command in ("inspect", "verify"):
        outcome = cli(command, path)
        assert outcome.status == 2 and words in outcome.err and str(path) in outcome.err, outcome.err


def test_scales_that_are_nan(cli, tmp_path):
    save_file(changed(absmax=torch.full((8,), float("nan"))), tmp_path / "x.safetensors")
    outcome = cli("verify", tmp_path / "x.safetensors")
    assert outcome.status == 2 and "weight 'a.weight': scale holds NaN or Inf" in outcome.err and "x.safetensors" in outcome.err


def test_a_config_without_4_bit_weights(cli, tmp_path):
    save_file({"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.SCB": torch.ones(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}))
    outcome = cli("inspect", tmp_path)
    assert outcome.status == 2 and "only its 4-bit weights are read" in outcome.err


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_damage_is_an_error_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "w.safetensors"
    save_file(weight(nested=True), path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    try:
        tritonq.checkpoints.verify_checkpoint(path)
    except TritonQError as error:
        assert "\n" not in str(error)
