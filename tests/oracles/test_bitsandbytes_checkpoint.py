"""Checkpoints as bitsandbytes writes them decode to the bits of its ``dequantize_4bit``, and so does what is converted from them."""
import json

import pytest
import torch
from safetensors.torch import save_file

import tritonq
from tests.oracles.peers import peer
from tests.support.bitsandbytes_files import stored

functional = peer("bitsandbytes.functional")


def written(path, w, *, kind: str, block: int, nested: bool, storage=torch.uint8):
    """``w`` quantized by bitsandbytes and saved as its ``Linear4bit`` is."""
    packed, state = functional.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind, quant_storage=storage)
    parts = {f"a.weight.{name}": tensor.contiguous() for name, tensor in state.as_dict(packed=True).items()}
    save_file({"a.weight": packed} | parts, path)
    return packed, state


@pytest.mark.parametrize("kind, block, nested, dtype, storage, scheme", [
    ("nf4", 64, False, torch.bfloat16, torch.uint8, "nf4.g64"),
    ("nf4", 64, True, torch.bfloat16, torch.bfloat16, "nf4.g64.dq"),
    ("fp4", 32, True, torch.float16, torch.float16, "fp4_bnb.g32.dq"),
    ("fp4", 128, False, torch.float32, torch.float32, "fp4_bnb.g128"),
    ("nf4", 512, True, torch.float32, torch.uint8, "nf4.g512.dq"),
])  # fmt: skip
def test_bits(tmp_path, kind, block, nested, dtype, storage, scheme):
    path, w = tmp_path / "x.safetensors", torch.randn(300, 512).to(dtype)
    packed, state = written(path, w, kind=kind, block=block, nested=nested, storage=storage)
    q = tritonq.load(tmp_path / "x.safetensors")["a.weight"]
    want = functional.dequantize_4bit(packed, state)
    assert str(q.scheme) == scheme and want.dtype == dtype and torch.equal(q.dequantize(), want)
    tritonq.save({"a.weight": q}, tmp_path / "ours.safetensors")
    assert torch.equal(tritonq.load(tmp_path / "ours.safetensors")["a.weight"].dequantize(), want)


@pytest.mark.parametrize("shape, block, nested, dtype, scheme", [
    ((100, 96), 64, False, torch.float32, "nf4.g32"), ((33, 80), 64, True, torch.float32, "nf4.g16"),
    ((33, 48), 128, True, torch.bfloat16, "nf4.g16"), ((3, 5, 96), 64, False, torch.float16, "nf4.g32"),
])  # fmt: skip
def test_blocks_that_run_across_rows(tmp_path, shape, block, nested, dtype, scheme):
    """Held with smaller groups. Judged by the formula: bitsandbytes' CPU kernel gives such rows the scales of other blocks (0.50.2)."""
    packed, state = written(tmp_path / "x.safetensors", torch.randn(shape).to(dtype), kind="nf4", block=block, nested=nested)
    absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
    codes = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), -1).flatten().long()
    want = (state.code[codes] * absmax.repeat_interleave(block)[: codes.numel()]).to(dtype)
    q = tritonq.load(tmp_path / "x.safetensors")["a.weight"]
    assert str(q.scheme) == scheme and torch.equal(q.dequantize().flatten(), want)
    assert tritonq.checkpoints.open(tmp_path / "x.safetensors").shape("a.weight") == shape


@pytest.mark.parametrize("scheme, nested", [("nf4.g64", False), ("nf4.g128.dq", True)])
def test_the_miniature_that_other_tests_read_is_what_bitsandbytes_writes(scheme, nested):
    w = torch.randn(128, 512).bfloat16()
    packed, state = functional.quantize_4bit(w, blocksize=int(scheme.split(".")[1][1:]), compress_statistics=nested, quant_type="nf4")
    theirs = {"w": packed} | {f"w.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    ours = stored("w", tritonq.quantize(w, scheme))
    assert {name: (t.dtype, t.shape) for name, t in ours.items() if "state" not in name} == {
        name: (t.dtype, t.shape) for name, t in theirs.items() if "state" not in name}  # fmt: skip
    assert torch.equal(ours["w"], theirs["w"]) and torch.equal(ours["w.quant_map"], theirs["w.quant_map"])
    name = "w.quant_state.bitsandbytes__nf4"
    mine, their = (json.loads(bytes(tensors[name].tolist())) for tensors in (ours, theirs))
    assert mine.pop("nested_offset", 0) == pytest.approx(their.pop("nested_offset", 0), rel=1e-6) and mine == their
