"""Every registered scheme, geometry and dtype through the kernels, bit for bit against the reference."""
import pytest
import torch

import tritonq
from tests.support.schemes import DTYPES, SCHEMES, hostile, same_bits
from tritonq import reference
from tritonq.scheme import Scheme


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize_and_dequantize_equal_the_reference(scheme, dtype, device):
    for shape in ((5, 200), (3, 1), (17, 33)):
        x = hostile(shape, dtype).to(device)
        got, want = tritonq.quantize(x, scheme), reference.quantize(x.cpu(), Scheme.parse(scheme))
        for name, tensor in want.tensors().items():
            assert same_bits(got.tensors()[name].cpu(), tensor), (shape, name)
        for out in (dtype, torch.float32, torch.float64):
            value = reference.dequantize(want, out)
            assert not value.isnan().any()
            assert same_bits(got.dequantize(out).cpu(), value), (shape, out)
