"""Every registered scheme, geometry and dtype through the kernels, bit for bit against the reference."""
import pytest
import torch

import tritonq
from tests.support.poison import fenced
from tests.support.schemes import DTYPES, EVERY_GEOMETRY, SCHEMES, hostile, same_bits
from tritonq import reference
from tritonq.scheme import Scheme


def check(scheme, dtype, device, shapes):
    for shape in shapes:
        x = hostile(shape, dtype).to(device)
        got, want = tritonq.quantize(x, scheme), reference.quantize(x.cpu(), Scheme.parse(scheme))
        for name, tensor in want.tensors().items():
            assert same_bits(got.tensors()[name].cpu(), tensor), (shape, name)
        for out in (dtype, torch.float32, torch.float64):
            value = reference.dequantize(want, out)
            assert not value.isnan().any()
            assert same_bits(got.dequantize(out).cpu(), value), (shape, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize_and_dequantize_equal_the_reference(scheme, dtype, device):
    check(scheme, dtype, device, [(5, 200), (3, 1), (17, 33)])


@pytest.mark.parametrize("scheme, dtype", EVERY_GEOMETRY)
def test_every_format_and_granularity(scheme, dtype, device):
    check(scheme, dtype, device, [(5, 104)])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("scheme", ["int4.g32", "uint3", "nf4.dq", "nvfp4", "fp8_e4m3.tensor", "int8.column", "uint4.b2x3.fz", "bf16"])
def test_empty_matrices(scheme, shape, device):
    check(scheme, torch.float32, device, [shape])


@pytest.mark.parametrize("scheme", ["int4.g32", "uint3.g24", "nf4", "int8.column", "mxfp4", "uint4.tensor"])
def test_strides(scheme, device):
    base = torch.randn(40, 96, 2)
    for x in (base[:, :, 0], base[::2, ::3, 1], base[:, :, 0].T, base[:1, :, 1].expand(7, 96), base[:, :1, 0].expand(40, 33)):
        x = x.to(device) if device != "cpu" else x
        assert same_bits(tritonq.quantize(x, scheme).packed.cpu(), reference.quantize(x.cpu().contiguous(), Scheme.parse(scheme)).packed)


@pytest.mark.parametrize("scheme", ["int4.g24", "uint3.g8", "nf4", "int3.g5", "uint4.column", "int8.tensor", "nvfp4", "fp16"])
def test_touches_nothing_but_its_operands(scheme, device):
    x = torch.randn(7, 60).to(device)
    assert same_bits(tritonq.quantize(fenced(x), scheme).packed, tritonq.quantize(x, scheme).packed)
