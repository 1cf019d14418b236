"""Decoding apart from the product: dequantize from layout frag, chunked matmul for large M, and the backward, for every scheme."""
import dataclasses

import pytest
import torch
import torch.nn.functional as F

import tritonq
from tests.support.poison import fenced, poisoned_empty
from tests.support.schemes import DTYPES, SCHEMES, same_bits
from tests.support.weights import bound
from tritonq import MatmulBackwardDesc, MatmulDesc, PlanPreference, Scheme, reference
from tritonq.kernels.dequantize_range import dequantize_range
from tritonq.layouts import LAYOUTS

HALVES = (torch.float16, torch.bfloat16)
FRAG = [scheme for scheme in SCHEMES if LAYOUTS["frag"].refuses(Scheme.parse(scheme), torch.float32) is None]
FRAG += ["int4.g7", "uint4.g24", "nf4.g48", "uint4.b3x5", "int4.channel", "uint4.tensor.fz", "nf4.tensor"]
BOTH = [(scheme, "row") for scheme in SCHEMES] + [(scheme, "frag") for scheme in FRAG]
each_layout = pytest.mark.parametrize("layout", ["row", "frag"])


def weight(n, k, dtype, scheme, layout, device):
    """Every group has its own magnitude and offset, so that a scale or zero point of a neighbour shows."""
    generator = torch.Generator().manual_seed(n + 10 * k)
    w = torch.randn(n, k, generator=generator) * torch.exp(torch.randn(n, k, generator=generator)) + torch.randn(n, 1, generator=generator)
    return reference.quantize(w.to(dtype).to(device), Scheme.parse(scheme)).relayout(layout)


def forced(desc, kernel, **config):
    plan = tritonq.select(desc, PlanPreference(prefer_kernel=kernel))
    return dataclasses.replace(plan, config=plan.config | config)


def product(x, q):
    return x.double() @ reference.dequantize(q, torch.float64).T


def within(got, want, plan, x, q):
    return bool(((got.double() - want).abs() <= bound(plan, x, q)).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", FRAG)
def test_dequantize_from_frag_gives_the_bits_of_the_reference(scheme, dtype, device):
    row = weight(70, 200, torch.float32, scheme, "row", device)
    q = row.relayout("frag")
    plan = tritonq.select(tritonq.DequantizeDesc.of(q, dtype))
    assert plan.kernel.name == "dequantize_frag" and same_bits(plan.run(q), reference.dequantize(row, dtype))


@pytest.mark.parametrize("n, k", [(1, 1), (0, 5), (5, 0), (64, 64), (129, 65), (3, 300)])
def test_dequantize_from_frag_of_ragged_shapes(n, k, device):
    q = weight(n, k, torch.float16, "uint4.g32", "frag", device)
    assert same_bits(q.dequantize(), reference.dequantize(q, torch.float16))


@pytest.mark.parametrize("scheme, layout", [("int4.g24", "frag"), ("nf4", "frag"), ("uint3.g5.fz", "row"), ("nvfp4", "row"),
                                            ("bf16", "row")])  # fmt: skip
def test_a_range_is_that_part_of_the_matrix_and_nothing_else_is_written(scheme, layout, device):
    q = weight(200, 330, torch.float32, scheme, layout, device)
    whole = reference.dequantize(q, torch.bfloat16)
    for rows, columns in ((slice(128, 200), slice(128, 330)), (slice(128, 150), slice(0, 70)), (slice(0, 3), slice(256, 259))):
        room = poisoned_empty(rows.stop - rows.start + 2, columns.stop - columns.start + 9, dtype=torch.bfloat16, device=device)
        inside = room[1:-1, 4:-5]
        dequantize_range(q, inside, rows.start, columns.start)
        assert same_bits(inside.contiguous(), whole[rows, columns].contiguous())
        inside.fill_(float("nan"))
        assert bool(room.isnan().all())


@pytest.mark.parametrize("scheme, layout", BOTH)
def test_chunked_matmul_keeps_its_guarantee(scheme, layout, device):
    dtype = HALVES[len(scheme) % 2]
    q = weight(150, 70, torch.float32, scheme, layout, device)
    x = torch.randn(5, 70).to(dtype).to(device)
    plan = forced(MatmulDesc.of(x, q), "dequantize_matmul", CHUNK_N=128)
    assert within(plan.run(x, q), product(x, q), plan, x, q)


@pytest.mark.parametrize("scheme, layout", BOTH)
def test_backward_keeps_its_guarantee(scheme, layout, device):
    """The fused kernel for every dtype in turn, and chunks of 128 columns."""
    q = weight(70, 150, torch.float32, scheme, layout, device)
    dtype = DTYPES[(len(scheme) + len(layout)) % 4]
    dy = torch.randn(5, 70, dtype=torch.float64).to(dtype).to(device)
    want = dy.double() @ reference.dequantize(q, torch.float64)
    plan = forced(MatmulBackwardDesc.of(dy, q), "matmul_dx")
    assert within(plan.run(dy, q), want, plan, dy, q)
    half = dy.to(HALVES[len(scheme) % 2])
    chunked = forced(MatmulBackwardDesc.of(half, q), "dequantize_matmul_dx", CHUNK_K=128)
    assert within(chunked.run(half, q), half.double() @ reference.dequantize(q, torch.float64), chunked, half, q)


@each_layout
@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (17, 1, 65), (33, 65, 63), (2, 129, 1), (0, 7, 9), (4, 0, 6), (4, 6, 0)])
def test_ragged_and_empty_shapes(m, n, k, layout, device):
    q = weight(n, k, torch.float16, "uint4.g24", layout, device)
    x, dy = torch.randn(m, k).half().to(device), torch.randn(m, n).half().to(device)
    forward = forced(MatmulDesc.of(x, q), "dequantize_matmul")
    assert within(forward.run(x, q), product(x, q), forward, x, q)
    for kernel in ("matmul_dx", "dequantize_matmul_dx"):
        plan = forced(MatmulBackwardDesc.of(dy, q), kernel)
        got = plan.run(dy, q)
        assert got.shape == (m, k) and within(got, dy.double() @ reference.dequantize(q, torch.float64), plan, dy, q)


@pytest.mark.parametrize("split", [2, 3, 8])
def test_a_split_sum_is_the_whole_sum(split, device):
    """More splits than tiles of N too: those programs add nothing."""
    q = weight(300, 70, torch.float16, "int4.g32", "frag", device)
    dy = torch.randn(19, 300).half().to(device)
    plan = forced(MatmulBackwardDesc.of(dy, q), "matmul_dx", SPLIT_K=split)
    results = [plan.run(dy, q) for _ in range(2)]
    assert within(results[0], dy.double() @ reference.dequantize(q, torch.float64), plan, dy, q) and same_bits(*results)


@each_layout
def test_strided_and_leading_dimensions(layout, device):
    q = weight(70, 40, torch.float32, "nf4.g16", layout, device)
    w = reference.dequantize(q, torch.float64)
    x = fenced(torch.randn(3, 40, 2).half()).to(device).permute(0, 2, 1)
    dy = fenced(torch.randn(3, 70, 2).half()).to(device).permute(0, 2, 1)
    forward = forced(MatmulDesc.of(x, q), "dequantize_matmul")
    assert forward.run(x, q).shape == (3, 2, 70) and within(forward.run(x, q), x.double() @ w.T, forward, x, q)
    for kernel in ("matmul_dx", "dequantize_matmul_dx"):
        plan = forced(MatmulBackwardDesc.of(dy, q), kernel)
        assert plan.run(dy, q).shape == (3, 2, 40) and within(plan.run(dy, q), dy.double() @ w, plan, dy, q)


@each_layout
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "swiglu"])
@pytest.mark.parametrize("with_bias, with_residual", [(False, False), (True, False), (True, True)])
def test_epilogue_on_float32_sums(activation, with_bias, with_residual, layout, device):
    """Against the weight rounded to float16: what remains is the rounding of the result."""
    q = weight(300, 64, torch.float32, "int4.g16", layout, device)
    x = torch.randn(6, 64).half().to(device)
    features = 150 if activation == "swiglu" else 300
    bias = (torch.randn(600) - 2).to(device)[::2] if with_bias else None
    residual = torch.randn(features, 6).to(device).T if with_residual else None
    want = x.double() @ reference.dequantize(q, torch.float16).double().T + (0 if bias is None else bias.double())
    want = reference.matrix.ACTIVATIONS[activation](want) if activation else want
    want = want + (0 if residual is None else residual.double())
    desc = MatmulDesc.of(x, q, bias, activation, residual)
    plan = forced(desc, "dequantize_matmul", CHUNK_N=128, CHUNK_M=4 if desc.epilogue else 0)
    got = plan.run(x, q, bias=bias, residual=residual)
    torch.testing.assert_close(got.double(), want, rtol=2**-10, atol=1e-4)


def test_the_epilogue_does_not_round_its_argument(device):
    """70000 - 69999 is 1; a product rounded to float16 first would be Inf."""
    q = tritonq.quantize(torch.full((3, 64), 700.0, device=device), "int8")
    x = torch.full((2, 64), 100 / 64, device=device, dtype=torch.float16)
    bias = torch.full((3,), -69999.0, device=device)
    plan = forced(MatmulDesc.of(x, q, bias), "dequantize_matmul")
    torch.testing.assert_close(plan.run(x, q, bias=bias).float(), torch.ones(2, 3, device=device), rtol=0, atol=0.3)


@each_layout
@pytest.mark.parametrize("activation", [None, "silu", "swiglu"])
def test_gradients_reach_x_bias_and_residual(activation, layout, device):
    q = weight(24, 40, torch.float32, "uint4.g8", layout, device)
    x = torch.randn(2, 3, 40, device=device, requires_grad=True)
    bias = torch.randn(24, device=device, requires_grad=True)
    residual = torch.randn(2, 3, 12 if activation == "swiglu" else 24, device=device, requires_grad=True)
    got = torch.autograd.grad(tritonq.matmul(x, q, bias, activation, residual).square().sum(), (x, bias, residual))
    y = F.linear(x, reference.dequantize(q, torch.float32), bias)
    y = (reference.matrix.ACTIVATIONS[activation](y) if activation else y) + residual
    for ours, theirs in zip(got, torch.autograd.grad(y.square().sum(), (x, bias, residual)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_gradcheck(device):
    q = weight(6, 10, torch.float64, "uint4.g4", "row", device)
    x = torch.randn(2, 10, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tritonq.matmul(x, q, activation="gelu"), x)


@each_layout
def test_act_order(layout, device):
    w, g_idx = torch.randn(20, 64, device=device), torch.arange(64).flip(0) // 16
    q = tritonq.quantize(w, "int4.g16", g_idx=g_idx).relayout(layout)
    x, dy = torch.randn(40, 64).half().to(device), torch.randn(40, 20).half().to(device)
    w_hat = reference.dequantize(q.relayout("row"), torch.float64)
    assert same_bits(q.dequantize(torch.float64), w_hat)
    for desc, tensor, want in ((MatmulDesc.of(x, q), x, x.double() @ w_hat.T), (MatmulBackwardDesc.of(dy, q), dy, dy.double() @ w_hat)):
        plan = tritonq.select(desc)
        assert plan.kernel.name.startswith("dequantize_matmul") and within(plan.run(tensor, q), want, plan, tensor, q)
