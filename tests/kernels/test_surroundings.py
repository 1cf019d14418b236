"""The kernels' tables do not depend on what a caller has set; see tests/reference/test_surroundings.py."""
import pytest
import torch

import tritonq
from tests.support.schemes import same_bits
from tests.support.surroundings import default_dtype
from tritonq import Scheme, reference


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scheme", ["nf4.g32", "fp4_bnb.g32", "nf4.dq", "uint4.g32.fz", "mxfp4"])
def test_a_default_dtype(device, default, scheme):
    for dtype in (torch.float32, torch.bfloat16):
        w = torch.randn(32, 128, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        want = reference.quantize(w, Scheme.parse(scheme))
        with default_dtype(default):
            got = tritonq.quantize(w, scheme)
            assert all(map(same_bits, got.flat(), want.flat()))
            assert same_bits(got.relayout("frag").dequantize(), reference.dequantize(want, dtype))
