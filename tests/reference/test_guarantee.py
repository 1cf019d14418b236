"""The bound of a matmul holds where it is tightest: single products, and float zeros that nearly cancel."""
import pytest
import torch

import tritonq
import tritonq.plans as P
from tests.support.weights import expected, within


@pytest.mark.parametrize("scheme", ["uint4.g2.fz", "uint4.fz", "uint8.tensor.fz", "uint3.b2x2.fz", "uint4.g2", "int4.g2", "nf4"])
def test_one_product_keeps_the_bound(scheme):
    w = torch.stack([-0.5 - torch.rand(64), 1e-7 * torch.randn(64)], 1)
    q, x = tritonq.quantize(w, scheme), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    error = (plan.run(x, q).double() - x.double() @ q.dequantize(torch.float64).T).abs()
    bound = plan.precision_guarantee().bound(x, q)
    assert bound.shape == error.shape and (error <= bound).all()
    assert (bound <= 1e-5).all()  # K = 2: a handful of float32 roundings of numbers near 1


def test_products_below_the_normal_numbers():
    """Each may be lost, half a subnormal at a time."""
    q, x = tritonq.quantize(torch.full((1, 400), 1e-38), "int8"), torch.full((1, 400), 1.3e-7)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    error = (plan.run(x, q).double() - x.double() @ q.dequantize(torch.float64).T).abs()
    bound = plan.precision_guarantee().bound(x, q)
    assert 20 * 2.0**-149 < error <= bound < 410 * 2.0**-149


def test_nf4_plans_below_the_normal_numbers_of_float16():
    torch.manual_seed(0)
    args = P.Nf4MatmulArgs(activation=torch.randn(1, 64).half() * 1e-3, weight=torch.randint(0, 256, (8, 64), dtype=torch.uint8),
                           absmax=torch.full((16, 1), 1e-3))  # fmt: skip
    plan = P.Nf4MatmulPlan.select(None, P.Nf4MatmulDescriptor(m=1, n=16, k=64, activation_dtype=torch.float16))
    w_desc = P.Nf4DequantizeDescriptor(n=16, k=64)
    w = P.Nf4DequantizePlan.select(None, w_desc).run(None, None, P.Nf4DequantizeArgs(weight=args.weight, absmax=args.absmax)).double()
    promise, x = plan.precision_guarantee(), args.activation.double()
    normal = promise.relative * (x.abs() @ w.abs().T) + promise.output_eps * (x @ w.T).abs()
    error = (plan.run(None, None, args).double() - x @ w.T).abs()
    assert (error > normal).any() and (error <= normal + promise.output_tiny).all() and promise.output_tiny < 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "swiglu"])
def test_an_epilogue_keeps_the_bound(activation, dtype):
    """Sums of many sizes, a bias and a residual that cancel most of what stands before them."""
    torch.manual_seed(0)
    size = 10 ** torch.linspace(-6, 1.2 if activation == "swiglu" else 3.5, 40, dtype=torch.float64)  # no overflow of float16
    q = tritonq.quantize(torch.randn(64, 48).to(dtype), "int8")
    x = (torch.randn(40, 48, dtype=torch.float64) * size[:, None]).to(dtype)
    bias = -tritonq.matmul(x[20:21], q)[0]
    before = expected(x, q, bias, activation)
    residual = (-before * (1 + 1e-3)).to(dtype)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q, bias, activation, residual))
    got = plan.run(x, q, bias=bias, residual=residual)
    assert within(got, x, q, plan, bias, residual)
    bound = plan.precision_guarantee().bound(x, q, bias, activation, residual)
    assert bound.shape == got.shape and not within(got + 2.01 * bound.to(dtype), x, q, plan, bias, residual)
    scale = torch.finfo(dtype).eps + 60 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    grown = x.double().abs() @ q.dequantize(torch.float64).abs().T + bias.double().abs()
    if activation == "swiglu":
        gate, up = grown.chunk(2, -1)
        grown = (1 + gate) * (1 + up) * 4
    assert (bound <= 4 * scale * (1 + grown) + plan.precision_guarantee().output_tiny).all(), "near what one rounding of each step costs"
