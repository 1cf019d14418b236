"""The portable matmul through the kernels: inside its own guarantee, for every scheme, geometry, dtype, stride and epilogue."""
import pytest
import torch

import tritonq
from tests.support.poison import fenced
from tests.support.schemes import DTYPES, SCHEMES
from tests.support.weights import bound, within
from tritonq import reference

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def data(m, n, k, dtype, scheme, device):
    generator = torch.Generator().manual_seed(m + 10 * n + 100 * k)
    x = torch.randn(m, k, generator=generator, dtype=torch.float64).to(dtype).to(device)
    # Every group gets its own magnitude and its own offset, so that a scale or zero point taken from the wrong group shows.
    w = torch.randn(n, k, generator=generator) * torch.exp(torch.randn(n, k, generator=generator)) + torch.randn(n, 1, generator=generator)
    return x, reference.quantize(w.to(dtype).to(device), tritonq.Scheme.parse(scheme))


def exact(x, q):
    return x.double() @ reference.dequantize(q, torch.float64).T


@pytest.mark.parametrize("scheme", SCHEMES)
def test_matmul_keeps_its_guarantee(scheme, device):
    x, q = data(5, 19, 200, torch.float32, scheme, device)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    error = (plan.run(x, q).double() - exact(x, q)).abs()
    assert (error <= bound(plan, x, q)).all(), error.max()


@every_dtype
@pytest.mark.parametrize("scheme", ["int4.g96", "uint4.g7", "nf4", "mxfp4", "uint3.g5.fz", "fp8_e4m3", "bf16"])
@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (3, 33, 65), (17, 5, 130)])
def test_shapes_that_fill_no_tile(m, n, k, scheme, dtype, device):
    x, q = data(m, n, k, dtype, scheme, device)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    got = plan.run(x, q)
    assert got.dtype == dtype
    assert ((got.double() - exact(x, q)).abs() <= bound(plan, x, q)).all()


@pytest.mark.parametrize("scheme", ["int4.g32", "int3.g40", "uint4.g24", "nf4", "nvfp4"])
def test_one_hot_rows_print_the_weight(scheme, device):
    _, q = data(1, 21, 100, torch.float32, scheme, device)
    assert torch.equal(tritonq.matmul(torch.eye(100, device=device), q), q.dequantize().T)


@pytest.mark.parametrize("shape", [(2, 3, 40), (40,), (0, 40), (3, 0, 40)])
def test_leading_dimensions(shape, device):
    _, q = data(1, 7, 40, torch.float32, "int4.g32", device)
    x = torch.randn(shape).to(device)
    y = tritonq.matmul(x, q)
    assert y.shape == (*shape[:-1], 7)
    torch.testing.assert_close(y, x @ q.dequantize().T, rtol=1e-5, atol=1e-5)


def test_k_of_zero_gives_the_epilogue_alone(device):
    q = tritonq.quantize(torch.empty(3, 0, device=device), "nf4")
    bias = torch.tensor([1.0, -2.0, 3.0], device=device)
    assert torch.equal(tritonq.matmul(torch.empty(2, 0, device=device), q, bias=bias, activation="relu"), bias.relu().expand(2, 3))


@pytest.mark.parametrize("m, features", [(1, 1), (5, 7), (17, 40)])
def test_swiglu(m, features, device):
    x, q = data(m, 2 * features, 72, torch.float32, "uint4.g16", device)
    bias, residual = torch.randn(2 * features).to(device), torch.randn(features, m).to(device).T
    got = tritonq.matmul(x, q, bias=bias, activation="swiglu", residual=residual)
    assert within(got, x, q, tritonq.select(tritonq.MatmulDesc.of(x, q, bias, "swiglu", residual)), bias, residual)


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_epilogue(activation, with_bias, with_residual, device):
    x, q = data(6, 20, 64, torch.float32, "uint4.g16", device)
    bias = torch.randn(40).to(device)[::2] if with_bias else None
    residual = torch.randn(20, 6).to(device).T if with_residual else None
    got = tritonq.matmul(x, q, bias=bias, activation=activation, residual=residual)
    assert within(got, x, q, tritonq.select(tritonq.MatmulDesc.of(x, q, bias, activation, residual)), bias, residual)


@pytest.mark.parametrize("scheme", ["int4.g24", "uint3.g8", "nf4", "mxfp8"])
def test_reads_nothing_but_its_operands(scheme, device):
    x, q = data(5, 18, 60, torch.float32, scheme, device)
    guarded = tritonq.QTensor.from_tensors(q.scheme, q.shape, q.dtype, {name: fenced(t) for name, t in q.tensors().items()})
    assert torch.equal(tritonq.matmul(fenced(x), guarded), tritonq.matmul(x, q))


@pytest.mark.parametrize("scheme", ["int4.g32", "uint4.g64.fz", "nf4.dq"])
def test_layout_frag_gives_the_same_where_its_kernel_cannot_run(scheme, device):
    """float32 x everywhere, and everything in the interpreter: the portable kernels turn the layout back."""
    x, q = data(3, 70, 130, torch.float32, scheme, device)
    there = q.relayout("frag")
    assert torch.equal(tritonq.matmul(x, there), tritonq.matmul(x, q)) and torch.equal(there.dequantize(), q.dequantize())
    half = x.half()
    plan = tritonq.select(tritonq.MatmulDesc.of(half, there))
    error = (plan.run(half, there).double() - exact(half, q)).abs()
    assert (error <= bound(plan, half, q)).all()


@pytest.mark.parametrize("scheme", ["nvfp4", "nf4.dq", "mxfp8", "int4.g32", "uint4.g32.fz"])
def test_what_is_written_into_a_weight_is_seen(scheme, device):
    x, q = data(3, 19, 96, torch.float32, scheme, device)
    dy, other = torch.randn(3, 19, device=device), data(4, 19, 96, torch.float32, scheme, device)[1]
    products = (lambda q: tritonq.matmul(x, q), lambda q: torch.ops.tritonq.matmul_dx(dy, *q.operands), tritonq.dequantize)
    before = [product(q) for product in products]
    for mine, theirs in zip(q.flat(), other.flat(), strict=True):
        mine.copy_(theirs)
    for product, was in zip(products, before, strict=True):
        assert torch.equal(product(q), product(other)) and not torch.equal(product(q), was)
