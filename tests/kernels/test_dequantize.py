"""The dequantize kernels: every code, every path, bit for bit the reference."""
import pytest
import torch

import tritonq
from tests.support.decoding import FORMAT_CASES, GEOMETRIES, check
from tests.support.schemes import DTYPES, every_code
from tritonq.kernels import dequantize as kernels
from tritonq.plans.descriptors import DequantizeDesc


@pytest.mark.parametrize("scheme, shape, dtype", FORMAT_CASES, ids=str)
def test_every_code_of_a_format(scheme, shape, dtype, device):
    q = every_code(scheme, shape, dtype)
    for out in DTYPES:
        check(q.to(device), out)


@pytest.mark.parametrize("scheme, shape, kernel", GEOMETRIES, ids=str)
def test_every_path(scheme, shape, kernel, device):
    q = every_code(scheme, shape, torch.float16).to(device)
    assert tritonq.select(DequantizeDesc.of(q, torch.float16)).kernel.name == kernel
    for out in DTYPES:
        check(q, out)


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("scheme", ["int4.g32", "int8", "int2.g16", "int3.g8"])
def test_codes_at_any_address(scheme, offset, device):
    q = every_code(scheme, (3, 64), torch.bfloat16).to(device)
    storage = torch.zeros(q.packed.numel() + offset, dtype=torch.uint8, device=device)
    storage[offset:] = q.packed.view(-1)
    object.__setattr__(q, "packed", storage[offset:].view(q.packed.shape))
    check(q, torch.bfloat16)


def test_more_rows_than_a_grid_axis_holds(device, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_GRID_Y", 2)
    for n in (1, 2, 5, 6):
        check(every_code("int8", (n, 256), torch.bfloat16).to(device), torch.bfloat16)
