"""Parameters, codes, packings and preset names against compressed-tensors."""
import pytest
import torch

import tritonq
from tests.oracles.peers import peer
from tritonq import Scheme
from tritonq.scheme import ALIASES

quantization = peer("compressed_tensors.quantization")
utils = peer("compressed_tensors.quantization.utils")
forward = peer("compressed_tensors.quantization.lifecycle.forward")
presets = peer("compressed_tensors.quantization.quant_scheme")
helpers = peer("compressed_tensors.compressors.pack_quantized.helpers")
fp4 = peer("compressed_tensors.compressors.nvfp4.helpers")


def grouped(w: torch.Tensor, size: int) -> torch.Tensor:
    return w.view(w.shape[0], -1, size)


@pytest.mark.parametrize("bits, size", [(4, 32), (4, 128), (8, 32), (8, 512)])
def test_symmetric_is_full(bits, size):
    w = torch.randn(16, 512)
    args = quantization.QuantizationArgs(num_bits=bits, symmetric=True, strategy="group", group_size=size)
    groups = grouped(w, size)
    scale, zero = utils.calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    q = tritonq.quantize(w, f"int{bits}.g{size}.full")
    assert torch.equal(q.scale, scale) and torch.equal(q.codes(), forward.quantize(w, scale, zero, args, dtype=torch.int8))


@pytest.mark.parametrize("shift", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("bits, size", [(4, 32), (4, 128), (8, 64)])
def test_asymmetric(bits, size, shift):
    """Their codes are ours less 2**(b-1). They add the zero point before rounding, which matters on exact ties alone."""
    w = torch.randn(16, 512) + shift
    args = quantization.QuantizationArgs(num_bits=bits, symmetric=False, strategy="group", group_size=size)
    groups = grouped(w, size)
    scale, zero = utils.calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    q = tritonq.quantize(w, f"uint{bits}.g{size}")
    half = 2 ** (bits - 1)
    assert torch.equal(q.scale, scale) and torch.equal(q.zero_point.int() - half, zero.int())
    theirs = forward.quantize(w, scale, zero, args).int() + half
    differ = q.codes().int() != theirs
    u = (w / scale.repeat_interleave(size, 1))[differ]
    assert differ.float().mean() < 1e-3 and ((u - u.round()).abs() > 0.4999).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pack_to_int32(bits):
    """Element i at bit i * bits of the row, offset by 2**(b-1), in 32-bit words."""
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (24, 96), dtype=torch.int8)
    theirs = helpers.pack_to_int32(codes, bits)
    ours = tritonq.pack(codes.int() + 2 ** (bits - 1), bits, "gptq_int32")
    assert torch.equal(ours, theirs)
    assert torch.equal(tritonq.unpack(theirs, bits, 96, "gptq_int32").int() - 2 ** (bits - 1), codes.int())


def test_fp4_bytes():
    w = torch.randn(8, 64)
    q = tritonq.quantize(w, "fp4_e2m1")
    levels = q.scheme.format.levels[q.codes().long()]
    packed = fp4.pack_fp4_to_uint8(levels)
    assert torch.equal(tritonq.unpack(packed, 4, 64), q.codes())


def test_fp8_tensor_scale():
    w = torch.randn(16, 64)
    args = quantization.QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="tensor")
    scale, zero = utils.calculate_qparams(w.amin().view(1), w.amax().view(1), args)
    q = tritonq.quantize(w, "FP8")
    assert torch.equal(q.scale.flatten(), scale)
    theirs = forward.quantize(w, scale, zero, args, dtype=torch.float8_e4m3fn)
    assert torch.equal(q.codes(), theirs.view(torch.uint8))


@pytest.mark.parametrize("name", [name for name in ALIASES if name not in ("A16W4", "MXFP8")])
def test_names_mean_what_they_mean_there(name):
    weights = presets.PRESET_SCHEMES[name]["weights"]
    scheme = Scheme.parse(name)
    assert scheme.format.bits == weights.num_bits
    assert scheme.format.is_integer == (weights.type == "int") and scheme.format.affine == (not weights.symmetric)
    assert ("full" in scheme.options) == (weights.type == "int" and weights.symmetric)
    strategy = str(getattr(weights.strategy, "value", weights.strategy))
    assert scheme.granularity.kind == {"tensor_group": "group"}.get(strategy, strategy)
    assert scheme.group_size == (weights.group_size or None)
    if strategy == "block":
        assert [scheme.granularity.rows, scheme.granularity.columns] == list(weights.block_structure)
