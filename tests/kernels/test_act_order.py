"""Act-order through the Triton kernels: the same as the reference."""
import pytest
import torch

import tritonq
from tests.support.weights import bound
from tritonq import reference


@pytest.mark.parametrize("scheme", ["uint4.g16", "nf4.g16", "int3.g24"])
def test_decodes_and_multiplies_like_the_reference(scheme, device):
    k, group = 100, int(scheme.split(".g")[1])
    g_idx = (torch.arange(k) // group)[torch.randperm(k)].to(device)
    q = tritonq.quantize(torch.randn(9, k).to(device), scheme, g_idx=g_idx)
    assert torch.equal(q.g_idx, g_idx.int())
    assert torch.equal(q.dequantize().cpu(), reference.dequantize(q.to("cpu"), torch.float32))
    x = torch.randn(2, 5, k).to(device)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    assert plan.kernel.name != "reference" and "act_order" in str(plan.sku())
    error = (plan.run(x, q).double() - x.double() @ q.dequantize(torch.float64).T).abs()
    assert (error <= bound(plan, x, q)).all()
