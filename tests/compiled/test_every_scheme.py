"""The compiled PTX of the quantize and dequantize kernels, run by the simulator: bit for bit the reference."""
import pytest
import torch

import tritonq
from tests.kernels.test_encode import check_tiny
from tests.support.schemes import COMPILED_SCHEMES, DTYPES, EVERY_GEOMETRY, hostile, same_bits
from tests.support.shapes import FULL
from tritonq import reference
from tritonq.scheme import Scheme

SAMPLE = ("int4", "uint4.g32", "nf4", "mxfp4", "nvfp4", "int3.g24", "fp8_e4m3", "uint4.fz", "int8.column", "nf4.tensor")
# Each scheme with two dtypes, each dtype with half of the schemes.
ON_SM_80 = [(scheme, dtype) for i, scheme in enumerate(SAMPLE) for j, dtype in enumerate(DTYPES) if FULL or (i + j) % 2 == 0]


def check(scheme, dtype, shape=(5, 72)):
    x = hostile(shape, dtype)
    got, want = tritonq.quantize(x, scheme), reference.quantize(x, Scheme.parse(scheme))
    for name, tensor in want.tensors().items():
        assert same_bits(got.tensors()[name], tensor), name
    assert same_bits(got.dequantize(), reference.dequantize(want, dtype))


@pytest.mark.parametrize("scheme, dtype", COMPILED_SCHEMES)
def test_sm_90(scheme, dtype, simulator):
    check(scheme, dtype)


@pytest.mark.parametrize("scheme, dtype", EVERY_GEOMETRY)
def test_sm_90_every_format_and_granularity(scheme, dtype, simulator):
    check(scheme, dtype)


@pytest.mark.parametrize("simulator", [80], indirect=True)
@pytest.mark.parametrize("scheme, dtype", ON_SM_80, ids=lambda value: str(value).removeprefix("torch."))
def test_sm_80(scheme, dtype, simulator):
    check(scheme, dtype)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("scheme", ["int4.tensor", "nvfp4", "uint4.b3x5", "nf4.column"])
def test_dimensions_of_one(scheme, shape, simulator):
    """Triton makes an argument of 1 a constant, which is no tensor."""
    check(scheme, torch.bfloat16, shape)


@pytest.mark.parametrize("scheme", ["int4.g16", "nf4", "uint4.g32"])
@pytest.mark.parametrize("shape, dtype", [((3, 16), torch.float32), ((2, 72), torch.float64)], ids=str)
def test_fewer_elements_than_threads_load_at_a_time(scheme, shape, dtype, simulator):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)  # in the order of memory, unlike hostile data
    got, want = tritonq.quantize(x, scheme), reference.quantize(x, Scheme.parse(scheme))
    assert all(same_bits(got.tensors()[name], tensor) for name, tensor in want.tensors().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_boundary_at_zero(dtype, simulator):
    check_tiny("fp4_bnb.g64", dtype, "cpu")
