"""nf4, fp4_bnb and double quantization against bitsandbytes' own CPU code, byte for byte."""
import pytest
import torch

import tritonq
from tests.oracles.peers import assert_differ_on_ties_only, peer
from tritonq.formats.dynamic_map import DYNAMIC_MAP
from tritonq.formats.packing import pack, unpack

functional = peer("bitsandbytes.functional")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = (("nf4", "nf4"), ("fp4", "fp4_bnb"))


def codes_of(packed: torch.Tensor, count: int) -> torch.Tensor:
    """bitsandbytes' bytes: the even element in the high nibble."""
    return unpack(packed.reshape(-1), 4, count, "high_first")


@pytest.mark.parametrize("block", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind, name", PAIRS)
def test_bytes_scales_and_values(kind, name, dtype, block):
    w = torch.randn(16, 4096).to(dtype)
    packed, state = functional.quantize_4bit(w, blocksize=block, quant_type=kind)
    q = tritonq.quantize(w, f"{name}.g{block}")
    assert torch.equal(q.scale.flatten(), state.absmax)
    ours, theirs = q.codes().flatten(), codes_of(packed, w.numel())
    # bitsandbytes multiplies by 1 / absmax where tritonq divides. Of 16-bit weights some quotients are ties of fp4, such as 5/24.
    absmax = state.absmax.repeat_interleave(block)
    x = w.float().flatten()
    assert_differ_on_ties_only(ours, theirs, x / absmax, x * (1 / absmax), q.scheme.format.encode_ref)
    differ = bool((ours != theirs).any())
    assert not differ or kind == "fp4", "nf4 bytes are equal without exception"
    if not differ:
        assert torch.equal(pack(q.codes(), 4, "high_first").flatten(), packed.flatten())
        assert torch.equal(q.dequantize(dtype), functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130, 1001])
@pytest.mark.parametrize("kind, name", PAIRS)
def test_ragged(kind, name, length):
    w = torch.randn(1, length)
    packed, state = functional.quantize_4bit(w.flatten(), blocksize=64, quant_type=kind)
    q = tritonq.quantize(w, name)
    assert torch.equal(q.scale.flatten(), state.absmax) and torch.equal(q.codes().flatten(), codes_of(packed, length))
    assert torch.equal(q.dequantize().flatten(), functional.dequantize_4bit(packed, state).flatten())


@pytest.mark.parametrize("kind, name", PAIRS)
def test_ties_and_zeros(kind, name):
    """Exact midpoints under absmax 1 take the lower level in both; so do all-zero blocks."""
    levels = tritonq.Scheme.parse(name).format.levels.unique()
    middle = ((levels[1:].double() + levels[:-1].double()) / 2).float()
    w = torch.zeros(2, 64)
    w[0, : len(middle)], w[0, 63] = middle, 1.0
    packed, state = functional.quantize_4bit(w, blocksize=64, quant_type=kind)
    q = tritonq.quantize(w, name)
    assert torch.equal(q.codes().flatten(), codes_of(packed, 128)) and torch.equal(q.scale.flatten(), state.absmax)


def test_levels():
    assert torch.equal(tritonq.Scheme.parse("nf4").format.levels, functional.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(tritonq.Scheme.parse("fp4_bnb").format.levels, functional.get_4bit_type("fp4", device="cpu"))
    assert torch.equal(torch.tensor(DYNAMIC_MAP), functional.create_dynamic_map())


@pytest.mark.parametrize("kind, name", PAIRS)
def test_double_quantization(kind, name):
    w = torch.randn(256, 1024)
    packed, state = functional.quantize_4bit(w, blocksize=64, quant_type=kind, compress_statistics=True)
    q = tritonq.quantize(w, f"{name}.dq")
    assert torch.equal(q.codes().flatten(), codes_of(packed, w.numel())), "codes come from the scales before they are quantized"
    assert state.state2.blocksize == 256
    assert abs(float(q.scale_offset) - float(state.offset)) <= 1e-6, "a mean, summed in another order"
    assert torch.allclose(q.second_scale, state.state2.absmax, rtol=0, atol=1e-6)
    distance = (q.stored_scale.flatten().int() - state.absmax.flatten().int()).abs()
    # bitsandbytes' native code looks codes up in steps of 1.5e-5, so a code next to a boundary may fall on its other side
    assert distance.max() <= 1 and (distance > 0).float().mean() < 0.01
    error = (q.dequantize() - functional.dequantize_4bit(packed, state)).abs().max()
    assert error <= 0.02 * w.abs().max()
