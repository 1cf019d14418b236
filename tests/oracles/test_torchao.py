"""Affine and symmetric integers, mx and nv formats against torchao's primitives."""
import pytest
import torch

import tritonq
from tests.oracles.peers import assert_differ_on_ties_only, peer

primitives = peer("torchao.quantization.quant_primitives")
mx = peer("torchao.prototype.mx_formats.mx_tensor")
mx_config = peer("torchao.prototype.mx_formats.config")
nv = peer("torchao.prototype.mx_formats.nvfp4_tensor")
SYMMETRIC, ASYMMETRIC = primitives.MappingType.SYMMETRIC, primitives.MappingType.ASYMMETRIC
N, K = 32, 512
GEOMETRIES = {"g32": (1, 32), "g128": (1, 128), "channel": (1, K), "tensor": (N, K), "column": (N, 1), "b16x64": (16, 64)}


def spread(per_group: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    return per_group.view(N // block[0], K // block[1]).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("convention", ["", ".full", ".narrow"])
def test_symmetric(bits, geometry, convention):
    """torchao's SYMMETRIC is absmax / ((max - min) / 2): ``full`` over -2**(b-1)..2**(b-1)-1, the default rule over the narrow range."""
    w, block, high = torch.randn(N, K), GEOMETRIES[geometry], 2 ** (bits - 1) - 1
    low = -high - 1 if convention == ".full" else -high
    scale, zero = primitives.choose_qparams_affine(w, SYMMETRIC, block, torch.int8, low, high, eps=1e-9)
    q = tritonq.quantize(w, f"int{bits}.{geometry}{convention}")
    assert torch.equal(q.scale.flatten(), scale.flatten()) and not zero.any()
    theirs = primitives.quantize_affine(w, block, scale, zero, torch.int8, low, high)
    s = spread(scale, block)
    # under ``full`` the largest magnitude of every group is a tie itself: absmax / scale = 2**(b-1) - 0.5
    share = 1 / (block[0] * block[1]) if convention == ".full" else 1e-3
    assert_differ_on_ties_only(q.codes(), theirs, w / s, w * (1 / s), lambda u: u.round().clamp(low, high), share)
    same = q.codes() == theirs
    decoded = primitives.dequantize_affine(theirs, block, scale, zero, torch.int8, low, high)
    assert torch.equal(q.dequantize()[same], decoded[same])


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("shift", [0.0, 0.3, 5.0, -5.0])
def test_affine(bits, geometry, shift):
    w, block, high = torch.randn(N, K) + shift, GEOMETRIES[geometry], 2**bits - 1
    scale, zero = primitives.choose_qparams_affine(w, ASYMMETRIC, block, torch.uint8, 0, high, eps=1e-9, zero_point_dtype=torch.int32)
    q = tritonq.quantize(w, f"uint{bits}.{geometry}")
    assert torch.equal(q.scale.flatten(), scale.flatten()) and torch.equal(q.zero_point.flatten().int(), zero.flatten())
    theirs = primitives.quantize_affine(w, block, scale, zero, torch.uint8, 0, high)
    s, z = spread(scale, block), spread(zero, block)
    assert_differ_on_ties_only(q.codes(), theirs, w / s, w * (1 / s), lambda u: (u.round() + z).clamp(0, high))
    same = q.codes() == theirs
    decoded = primitives.dequantize_affine(theirs, block, scale, zero, torch.uint8, 0, high)
    assert torch.equal(q.dequantize()[same], decoded[same])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme, element", [("mxfp4", torch.float4_e2m1fn_x2), ("mxfp8", torch.float8_e4m3fn)])
def test_mx(scheme, element, dtype):
    w = (torch.randn(64, 256) * torch.logspace(-20, 20, 64)[:, None]).to(dtype)
    w[3], w[4, ::2] = 0.0, -0.0
    scale, data = mx.to_mx(w, element, 32, mx_config.ScaleCalculationMode.FLOOR)
    q = tritonq.quantize(w, scheme)
    assert torch.equal(q.scale.view(torch.uint8).flatten(), scale.view(torch.uint8).flatten())
    assert torch.equal(q.packed.flatten(), data.view(torch.uint8).flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nvfp4(dtype):
    w = torch.randn(64, 256).to(dtype)
    second = nv.per_tensor_amax_to_scale(w.abs().max().float())
    scale, data = nv.nvfp4_quantize(w, per_tensor_scale=second)
    q = tritonq.quantize(w, "nvfp4")
    assert torch.equal(q.second_scale, second) and torch.equal(q.scale.view(torch.uint8).flatten(), scale.view(torch.uint8).flatten())
    # torchao multiplies by (1 / tensor scale) / block scale, tritonq divides by their product
    block = q.scale.float().repeat_interleave(16, 1)
    theirs = tritonq.unpack(data.view(64, 128), 4, 256)
    quotient, product = w.float() / (block * second), w.float() * ((1 / second) / block)
    assert_differ_on_ties_only(q.codes(), theirs, quotient, product, q.scheme.format.encode_ref)


def test_small_blocks_of_nvfp4_go_their_own_way():
    """torchao clamps block scales to e4m3's smallest normal, 2**-6; tritonq keeps its subnormals, which lose less of small blocks."""
    w = torch.ones(1, 32)
    w[0, 16:] = 2.0**-18
    second = nv.per_tensor_amax_to_scale(w.abs().max())
    scale, _ = nv.nvfp4_quantize(w, per_tensor_scale=second)
    q = tritonq.quantize(w, "nvfp4")
    assert scale.float().flatten().tolist() == [448.0, 2.0**-6] and q.scale.float().flatten()[1] < 2.0**-6
    assert q.dequantize()[0, 16:].max() > 0
