"""The compiled PTX of the portable matmul, run by the simulator: inside its own guarantee, reading and writing nothing but its operands."""
import pytest
import torch
import torch.nn.functional as F

import tritonq
from tests.support.poison import fenced
from tests.support.schemes import DTYPES
from tests.support.weights import bound
from tritonq import reference

SCHEMES = ("int8", "int4.g24", "int3.g40", "int2.g16", "uint4.g7", "uint3.g5.fz", "nf4", "fp4_bnb", "mxfp4", "nvfp4", "fp8_e4m3",
           "int4.b3x5", "bf16")  # fmt: skip
both = pytest.mark.parametrize("simulator", [90, 80], indirect=True)
ids = {"ids": lambda value: str(value).removeprefix("torch.")}


def data(m, n, k, dtype, scheme):
    """Every row of the weight has its own offset and every element its own magnitude, so that a parameter from the wrong group shows."""
    generator = torch.Generator().manual_seed(m + 10 * n + 100 * k)
    x = torch.randn(m, k, generator=generator, dtype=torch.float64).to(dtype)
    w = torch.randn(n, k, generator=generator) * torch.exp(torch.randn(n, k, generator=generator)) + torch.randn(n, 1, generator=generator)
    q = reference.quantize(w.to(dtype), tritonq.Scheme.parse(scheme))
    return fenced(x), tritonq.QTensor.from_tensors(q.scheme, q.shape, q.dtype, {name: fenced(t) for name, t in q.tensors().items()})


def exact(x, q):
    return x.double() @ reference.dequantize(q, torch.float64).T


@both
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_kind_of_scheme(scheme, simulator):
    x, q = data(5, 35, 75, torch.float32, scheme)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    error = (plan.run(x, q).double() - exact(x, q)).abs()
    assert simulator.launches == 1 and (error <= bound(plan, x, q)).all(), error.max()


@both
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (17, 33, 65)])
def test_shapes_that_fill_no_tile(m, n, k, dtype, simulator):
    x, q = data(m, n, k, dtype, "uint4.g7")
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    got = plan.run(x, q)
    assert got.dtype == dtype and ((got.double() - exact(x, q)).abs() <= bound(plan, x, q)).all()


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
def test_epilogue(activation, dtype, simulator):
    x, q = data(6, 20, 40, dtype, "int4.g8")
    bias, residual = torch.randn(40).to(dtype)[::2], torch.randn(20, 6).to(dtype).T
    want = exact(x, q) + bias.double()
    want = {None: lambda y: y, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}[activation](want) + residual.double()
    got = tritonq.matmul(x, q, bias=bias, activation=activation, residual=residual)
    tolerance = 2e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
def test_swiglu(dtype, simulator):
    x, q = data(6, 38, 40, dtype, "uint4.g8")
    bias, residual = torch.randn(76).to(dtype)[::2], torch.randn(19, 6).to(dtype).T
    gate, up = (exact(x, q) + bias.double()).chunk(2, -1)
    got = tritonq.matmul(x, q, bias=bias, activation="swiglu", residual=residual)
    tolerance = 2e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got.double(), F.silu(gate) * up + residual.double(), rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("strides", [(200, 2), (1, 7)])
def test_strided_activations(strides, simulator):
    x, q = data(5, 9, 40, torch.float32, "nf4")
    strided = torch.empty(2000).as_strided((5, 40), strides).copy_(x)
    assert torch.equal(tritonq.matmul(strided, q), tritonq.matmul(x, q))
