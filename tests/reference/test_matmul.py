"""The reference matmul: its guarantee, its epilogue and its gradients."""
import pytest
import torch
import torch.nn.functional as F

import tritonq

SCHEMES = ["int4.g24", "uint4.g7", "nf4", "mxfp4", "uint3.g5.fz", "fp8_e4m3", "bf16", "int8.column", "nvfp4", "int4.b3x5"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_keeps_its_guarantee(scheme, dtype):
    x, w = torch.randn(2, 9, 120, dtype=torch.float64).to(dtype), torch.randn(31, 120, dtype=torch.float64).to(dtype)
    q = tritonq.quantize(w, scheme)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    y, bound = plan.run(x, q), plan.precision_guarantee().bound(x, q)
    assert y.shape == bound.shape == (2, 9, 31)
    assert y.dtype == dtype
    assert ((y.double() - x.double() @ q.dequantize(torch.float64).T).abs() <= bound).all()


def test_the_guarantee_is_tight_enough_to_see_a_wrong_scale():
    x, q = torch.randn(4, 64), tritonq.quantize(torch.randn(8, 64), "int4.g32")
    wrong = tritonq.QTensor.from_tensors(q.scheme, q.shape, q.dtype, q.tensors() | {"scale": q.scale.roll(1, 1)})
    bound = tritonq.select(tritonq.MatmulDesc.of(x, q)).precision_guarantee().bound(x, q)
    assert ((tritonq.matmul(x, wrong) - tritonq.matmul(x, q)).abs() > bound).any()


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "swiglu"])
def test_gradients(activation):
    q = tritonq.quantize(torch.randn(6, 10, dtype=torch.float64), "uint4.g4")
    x = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(2, 3, 3 if activation == "swiglu" else 6, dtype=torch.float64, requires_grad=True)

    def fused(x, bias, residual):
        return tritonq.matmul(x, q, bias=bias, activation=activation, residual=residual)

    assert torch.autograd.gradcheck(fused, (x, bias, residual))


def test_gradients_equal_those_of_the_decoded_weight_in_half_precision():
    q = tritonq.quantize(torch.randn(20, 64).half(), "nf4")
    x = torch.randn(5, 64).half().requires_grad_()
    (got,) = torch.autograd.grad(tritonq.matmul(x, q).float().square().sum(), x)
    twin = x.detach().float().requires_grad_()
    (want,) = torch.autograd.grad(F.linear(twin, q.dequantize(torch.float32)).square().sum(), twin)
    torch.testing.assert_close(got.float(), want, rtol=5e-3, atol=5e-2)


def test_no_graph_without_a_need_for_one():
    q = tritonq.quantize(torch.randn(4, 8), "int8")
    assert not tritonq.matmul(torch.randn(2, 8), q).requires_grad
    with torch.no_grad():
        assert not tritonq.matmul(torch.randn(2, 8, requires_grad=True), q).requires_grad


def test_swiglu_is_silu_of_the_first_half_times_the_second():
    gate, up = torch.randn(5, 16), torch.randn(5, 16)
    q = tritonq.quantize(torch.cat((gate, up)), "int8")
    x = torch.randn(2, 3, 16)
    parts = [tritonq.matmul(x, tritonq.quantize(half, "int8")) for half in (gate, up)]
    torch.testing.assert_close(tritonq.matmul(x, q, activation="swiglu"), F.silu(parts[0]) * parts[1])
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q, activation="swiglu"))
    assert plan.run(x, q).shape == (2, 3, 5) and plan.desc.features == 5
