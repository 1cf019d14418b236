"""Each format's encode on the device against its torch twin: every bfloat16, and the float32 numbers beside it and around its midpoints."""
import pytest
import torch
import triton
import triton.language as tl

import tritonq
from tests.support.schemes import same_bits
from tritonq import Scheme, reference
from tritonq.formats import FORMATS


@triton.jit
def encode_all(x_ptr, out_ptr, ENCODE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, ENCODE(tl.load(x_ptr + i)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.encode is not None])
def test_every_binade_and_tie(name, dtype, device):
    fmt, bits = FORMATS[name], torch.arange(2**16, dtype=torch.int32) << 16
    x = torch.cat([bits + offset for offset in (-1, 0, 1, 0x7FFF, 0x8000, 0x8001)]).view(torch.float32)
    bounds = torch.tensor(fmt.bounds or ())
    x = torch.cat([x, bounds, bounds.nextafter(torch.tensor(2.0)), bounds.nextafter(torch.tensor(-2.0))])
    x = x[x.isfinite()].to(dtype)
    if dtype == torch.float64:  # too close to a tie for float32
        x = torch.cat([x, x * (1 + 2.0**-50), x * (1 - 2.0**-50)])
    block = 2**16
    x = torch.cat([x, x.new_zeros(-len(x) % block)]).to(device)
    out = torch.empty(len(x), dtype=torch.int32, device=device)
    encode_all[(len(x) // block,)](x, out, ENCODE=fmt.encode, BLOCK=block, enable_fp_fusion=False)
    assert torch.equal(out, fmt.encode_ref(x).int())


def check_tiny(scheme, dtype, device):
    """Scales around powers of two with the least numbers of the dtype in their groups: quotients that nearly underflow."""
    least = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-149}[dtype]
    tiny = least * torch.tensor([0.0, 1, 2, 3, 5, 127, 128, 129], dtype=torch.float64)
    exponent = torch.tensor([-1, 0, 1, 2, 10, 15, 16, 17, 18, 60] if dtype != torch.float16 else [-14, -1, 0, 1, 10, 14, 15])
    most = (2.0**exponent.double()[:, None] * torch.tensor([1, 1 + 2.0**-7, 2 - 2.0**-7, 1.5, 1.25])).flatten()
    x = torch.cat([tiny, -tiny]).repeat(len(most), 4).to(dtype)
    x[:, 7] = most.to(dtype)
    q, want = tritonq.quantize(x.to(device), scheme), reference.quantize(x, Scheme.parse(scheme))
    assert all(same_bits(q.tensors()[name].cpu(), tensor) for name, tensor in want.tensors().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_boundary_at_zero(dtype, device):
    check_tiny("fp4_bnb.g64", dtype, device)
