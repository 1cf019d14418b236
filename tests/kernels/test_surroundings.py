"""The kernels' tables do not depend on what a caller has set; see tests/reference/test_surroundings.py."""
import pytest
import torch

import tritonq
from tests.support.schemes import same_bits, same_tensors
from tests.support.surroundings import default_dtype
from tritonq import Scheme, reference
from tritonq.layouts import LAYOUTS


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scheme", ["nf4.g32", "fp4_bnb.g32", "nf4.dq", "uint4.g32.fz", "mxfp4"])
def test_a_default_dtype(device, default, scheme):
    for dtype in (torch.float32, torch.bfloat16):
        w = torch.randn(32, 128, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        want = reference.quantize(w, Scheme.parse(scheme))
        with default_dtype(default):
            got = tritonq.quantize(w, scheme)
            assert same_tensors(got.flat(), want.flat())
            assert same_bits(got.relayout("frag").dequantize(), reference.dequantize(want, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_without_memory(device, layout):
    """Zeros that have none, and what functionalization wraps, also after a call with a tensor like them."""
    q = tritonq.quantize(torch.randn(64, 128, device=device), "int4.g32", layout=layout)
    x, zeros = torch.randn(3, 128, device=device), torch._efficientzerotensor((3, 128), device=device)
    for product in (tritonq.matmul, lambda x, q: torch.ops.tritonq.matmul(x, *q.operands)):
        want = product(x, q)
        assert torch.equal(product(zeros, q), torch.zeros_like(want))
        wrapped = torch._to_functional_tensor(x)
        torch._enable_functionalization(reapply_views=True)
        try:
            out = product(wrapped, q)
            torch._sync(out)
        finally:
            torch._disable_functionalization()
        assert same_bits(torch._from_functional_tensor(out), want)
