"""Malformed and lying files: each is one CheckpointError that names the file, the rule and the value; status 2 on the command line."""
from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import tritonq
from tests.cli.models import write_folder
from tritonq.errors import CheckpointError, TritonQError


def file_of(header, data: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = {"w.weight": entry()}
HOSTILE = {
    "empty file": (b"", "has 0 bytes"),
    "seven bytes": (b"1234567", "has 7 bytes"),
    "header length beyond the file": (file_of(GOOD, length=5000), "header length 5000 is more than the file's"),
    "header length of 2**63": (file_of(GOOD, length=2**63), "over the format's limit of 100000000"),
    "invalid JSON": (file_of(b'{"a": '), "not valid JSON"),
    "not UTF-8": (file_of(b"\xff\xfe{}"), "not valid JSON"),
    "nested a thousand deep": (file_of(b'{"a":' * 100_000), "not valid JSON"),
    "a list": (file_of([]), "must be a JSON object, got []"),
    "the same name twice": (file_of(b'{"a":1,"a":2}'), "'a' appears twice"),
    "half a surrogate as name": (file_of(b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'), "not valid Unicode"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}, **GOOD}), "__metadata__ must map text to text"),
    "entry is no object": (file_of({"a": 3}), "needs exactly dtype, shape and data_offsets, got 3"),
    "field missing": (file_of({"a": {"dtype": "F32", "shape": [4]}}), "needs exactly dtype"),
    "field unknown": (file_of({"a": entry() | {"stride": 1}}), "needs exactly dtype"),
    "dtype unknown": (file_of({"a": entry(dtype="F12")}), "unknown dtype 'F12'; known: BOOL U8"),
    "dtype a list": (file_of({"a": entry() | {"dtype": ["F32"]}}), "unknown dtype ['F32']"),
    "dtype lies": (file_of({"a": entry(dtype="F64")}), "F64 [4] takes 32 bytes, its data_offsets [0, 16] hold 16"),
    "half a byte": (file_of({"a": entry("F4", [33], (0, 16))}), "F4 [33] takes 16.5 bytes"),
    "shape negative": (file_of({"a": entry(shape=[-4])}), "shape must be a list of whole numbers >= 0, got [-4]"),
    "shape of truth": (file_of({"a": entry(shape=[True])}), "shape must be"),
    "shape of floats": (file_of({"a": entry(shape=[4.0])}), "shape must be"),
    "shape overflows 64 bits": (file_of({"a": entry(shape=[2**62, 2**62])}), "takes"),
    "offsets negative": (file_of({"a": entry(offsets=(-16, 0))}), "data_offsets must be two whole numbers >= 0, got [-16, 0]"),
    "offsets reversed": (file_of({"a": entry(offsets=(16, 0))}), "must rise and end within the 16 bytes"),
    "offsets three": (file_of({"a": entry(offsets=(0, 8, 16))}), "two whole numbers"),
    "offsets beyond the data": (file_of({"a": entry(shape=[8], offsets=(0, 32))}), "must rise and end within the 16 bytes"),
    "data truncated": (file_of(GOOD, data=bytes(15)), "must rise and end within the 15 bytes of data: truncated?"),
    "bytes left over": (file_of(GOOD, data=bytes(17)), "1 bytes after the last tensor belong to no tensor"),
    "overlap": (file_of({"a": entry(shape=[3], offsets=(0, 12)), "b": entry(shape=[2], offsets=(8, 16))}), "'b' overlaps 'a'"),
    "the same bytes twice": (file_of({"a": entry(), "b": entry()}), "'b' overlaps 'a'"),
    "hole": (file_of({"a": entry(shape=[1], offsets=(0, 4)), "b": entry(shape=[2], offsets=(8, 16))}), "leaves a hole of 4 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_malformed_safetensors(cli, tmp_path, name):
    raw, text = HOSTILE[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    for command in (["inspect", path], ["verify", path], ["quantize", path, "--scheme", "nf4", "-o", tmp_path / "out"]):
        outcome = cli(*command)
        assert outcome.status == 2 and text in outcome.err and str(path) in outcome.err
    assert not (tmp_path / "out").exists()


def test_the_good_file_is_read(cli, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(file_of(GOOD))
    assert cli("inspect", tmp_path / "x.safetensors").status == 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_an_error_or_harmless(tmp_path_factory, data):
    """Bytes flipped, cut or inserted in a quantized checkpoint: it opens and decodes, or it is a TritonQError; nothing else."""
    folder = tmp_path_factory.mktemp("damage")
    path = folder / "w.safetensors"
    tritonq.save({"a": tritonq.quantize(torch.arange(128.0).reshape(4, 32), "uint4.g16"), "b": torch.zeros(3)}, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            raw[where] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "insert":
            raw.insert(where, data.draw(st.integers(0, 255)))
        else:
            del raw[where:]
            break
    path.write_bytes(raw)
    try:
        for _, value in tritonq.checkpoints.open(path):
            if isinstance(value, tritonq.QTensor):
                value.dequantize()
        tritonq.checkpoints.verify_checkpoint(path)
    except TritonQError as error:
        assert "\n" not in str(error)


# Lying indexes -----------------------------------------------------------------------------------------------------------------


def shards(folder: Path, weight_map) -> Path:
    folder.mkdir()
    save_file({"a.weight": torch.zeros(2, 4), "b.weight": torch.zeros(2)}, folder / "one.safetensors")
    save_file({"c.weight": torch.zeros(2, 4)}, folder / "two.safetensors")
    save_file({"a.weight": torch.ones(2, 4)}, folder / "again.safetensors")
    index = weight_map if isinstance(weight_map, bytes) else json.dumps({"weight_map": weight_map}).encode()
    (folder / "model.safetensors.index.json").write_bytes(index)
    return folder


ONE, TWO = "one.safetensors", "two.safetensors"
TRUE_MAP = {"a.weight": ONE, "b.weight": ONE, "c.weight": TWO}
INDEXES = {
    "missing file": (TRUE_MAP | {"d": "three.safetensors"}, "names the file three.safetensors, which is missing"),
    "missing tensor": (TRUE_MAP | {"d": TWO}, "tensor 'd' is said to be in two.safetensors, which does not hold it"),
    "wrong file": (TRUE_MAP | {"c.weight": ONE, "b.weight": TWO}, "is said to be in two.safetensors, it is in one.safetensors"),
    "tensor in two files": (TRUE_MAP | {"a.weight": "again.safetensors"}, "tensor 'a.weight' is in two files, again.safetensors and"),
    "tensor not listed": ({"a.weight": ONE, "c.weight": TWO}, "holds tensor 'b.weight', which the index does not list"),
    "file outside the folder": (TRUE_MAP | {"a.weight": "../one.safetensors"}, "which is no file name in this folder"),
    "absolute path": (TRUE_MAP | {"a.weight": "/etc/passwd"}, "which is no file name in this folder"),
    "not JSON": (b"{", "not valid JSON"),
    "no map": (b"{}", "weight_map must map tensor names to file names, got None"),
    "map of numbers": ({"a.weight": 1}, "weight_map must map"),
    "map twice": (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' appears twice"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_lying_index(cli, tmp_path, name):
    weight_map, text = INDEXES[name]
    folder = shards(tmp_path / "m", weight_map)
    outcome = cli("quantize", folder, "--scheme", "nf4", "-o", tmp_path / "out")
    assert outcome.status == 2 and text in outcome.err and "model.safetensors.index.json" in outcome.err


def test_true_index(cli, tmp_path):
    assert cli("inspect", shards(tmp_path / "m", TRUE_MAP)).status == 0


# Lying descriptions of quantized weights -----------------------------------------------------------------------------------------


def description(**changes) -> dict:
    return {"format_version": 1, "weights": {"w": {"scheme": "nf4", "shape": [2, 64], "dtype": "float32"} | changes}}


DESCRIPTIONS = {
    "not JSON": ("{", "not valid JSON"),
    "version of the future": ({"format_version": 2, "weights": {}}, "format_version 2 is unknown (known: 1)"),
    "no version": ({"weights": {}}, "format_version None is unknown"),
    "version true": ({"format_version": True, "weights": {}}, "format_version True is unknown"),
    "field unknown": (description() | {"salt": 1}, "unknown: salt"),
    "weight field unknown": (description(order="high"), "needs exactly scheme, shape and dtype"),
    "scheme unknown": (description(scheme="nf5"), "unknown format 'nf5'"),
    "scheme no text": (description(scheme=4), "a scheme is"),
    "shape of text": (description(shape="2x64"), "shape must be a list"),
    "shape empty": (description(shape=[]), "shape must be a list"),
    "shape negative": (description(shape=[-2, 64]), "shape must be a list"),
    "dtype no float": (description(dtype="int8"), "dtype must be one of float16, bfloat16, float32, float64, got 'int8'"),
    "weight not there": ({"format_version": 1, "weights": {"v": description()["weights"]["w"]}}, "describes weight 'v'"),
    "shape lies": (description(shape=[2, 128]), "weight 'w': nf4 of shape (2, 128)"),
    "scheme lies": (description(scheme="int8"), "weight 'w': int8 of shape (2, 64)"),
    "dtype lies": (description(scheme="uint4.g64", dtype="float16"), "weight 'w': uint4.g64"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_lying_description(cli, tmp_path, name):
    lie, text = DESCRIPTIONS[name]
    q = tritonq.quantize(torch.randn(2, 64), "nf4")
    named = {"w": q.packed, "w_scale": q.scale}
    save_file(named, tmp_path / "x.safetensors", metadata={"tritonq": lie if isinstance(lie, str) else json.dumps(lie)})
    for command in ("inspect", "verify"):
        outcome = cli(command, tmp_path / "x.safetensors")
        assert outcome.status == 2 and text in outcome.err and "x.safetensors" in outcome.err


LYING_TENSORS = {
    "scale missing": ({"w_scale": None}, "needs 'w_scale' = ('F32', (2, 1)), got None"),
    "scale of another dtype": ({"w_scale": torch.ones(2, 1, dtype=torch.float16)}, "= ('F32', (2, 1)), got ('F16', (2, 1))"),
    "scales of fewer groups": ({"w_scale": torch.ones(1, 1)}, "got ('F32', (1, 1))"),
    "codes of another dtype": ({"w": torch.zeros(2, 32, dtype=torch.int8)}, "needs 'w' = ('U8', (2, 32)), got ('I8', (2, 32))"),
    "a part that the scheme has not": ({"w_zero_point": torch.zeros(2, 1)}, "needs 'w_zero_point' = None, got ('F32', (2, 1))"),
    "column order too short": ({"w_column_order": torch.zeros(63, dtype=torch.int32)}, "needs 'w_column_order' = ('I32', (64,)), got"),
    "column order of int64": ({"w_column_order": torch.zeros(64, dtype=torch.int64)}, "got ('I64', (64,))"),
}


@pytest.mark.parametrize("name", LYING_TENSORS)
def test_tensors_that_contradict_their_description(cli, tmp_path, name):
    changes, text = LYING_TENSORS[name]
    named = {"w": torch.zeros(2, 32, dtype=torch.uint8), "w_scale": torch.ones(2, 1)} | changes
    named = {key: value for key, value in named.items() if value is not None}
    save_file(named, tmp_path / "x.safetensors", metadata={"tritonq": json.dumps(description())})
    for command in ("inspect", "verify"):
        outcome = cli(command, tmp_path / "x.safetensors")
        assert outcome.status == 2 and "x.safetensors: weight 'w': nf4 of shape (2, 64)" in outcome.err and text in outcome.err


def test_manifest_that_contradicts_the_files(cli, tmp_path):
    write_folder(tmp_path / "src")
    cli("quantize", tmp_path / "src", "--scheme", "nf4", "-o", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "tritonq.json").read_text())
    manifest["weights"]["lm_head.weight"]["scheme"] = "fp4_bnb"
    (tmp_path / "out" / "tritonq.json").write_text(json.dumps(manifest))
    outcome = cli("inspect", tmp_path / "out")
    assert outcome.status == 2 and "of weight 'lm_head.weight', its file says" in outcome.err


def test_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.randn(64, 64)}, path)
    opened = tritonq.checkpoints.open(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="ends 100 bytes early"):
        opened["w"]
