"""The bound of a matmul holds where it is tightest: single products, and float zeros that nearly cancel."""
import pytest
import torch

import tritonq


@pytest.mark.parametrize("scheme", ["uint4.g2.fz", "uint4.fz", "uint8.tensor.fz", "uint3.b2x2.fz", "uint4.g2", "int4.g2", "nf4"])
def test_one_product_keeps_the_bound(scheme):
    w = torch.stack([-0.5 - torch.rand(64), 1e-7 * torch.randn(64)], 1)
    q, x = tritonq.quantize(w, scheme), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    error = (plan.run(x, q).double() - x.double() @ q.dequantize(torch.float64).T).abs()
    bound = plan.precision_guarantee().bound(x, q)
    assert bound.shape == error.shape and (error <= bound).all()
    assert (bound <= 1e-5).all()  # K = 2: a handful of float32 roundings of numbers near 1
