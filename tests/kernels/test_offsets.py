"""Offsets beyond 2**31 elements: views of a large tensor of which only a few pages are ever touched."""
import pytest
import torch

import tritonq
from tests.support.schemes import same_bits
from tritonq import reference
from tritonq.scheme import Scheme

FAR = 2**31 + 64


@pytest.mark.parametrize("scheme", ["int4.g32", "nf4", "mxfp4", "uint4.column", "int8.b2x16", "int4.tensor"])
@pytest.mark.parametrize("strides", [(FAR, 1), (1, FAR // 63)], ids=["rows", "columns"])
def test_views_that_span_more_than_31_bits(scheme, strides, device):
    try:
        storage = torch.empty(FAR + 128, dtype=torch.float16, device=device)
    except RuntimeError as error:
        pytest.skip(f"4 GiB of address space are not to be had: {error}")
    x = storage.as_strided((2, 64), strides)
    x.copy_(torch.randn(2, 64, generator=torch.Generator().manual_seed(1)))
    got, want = tritonq.quantize(x, scheme), reference.quantize(x.cpu().contiguous(), Scheme.parse(scheme))
    for name, tensor in want.tensors().items():
        assert same_bits(got.tensors()[name].cpu(), tensor), name
