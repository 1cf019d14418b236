"""The made-up format through the kernels, by the same checks as the registered ones."""
import pytest
import torch
import triton
import triton.language as tl

from tests.kernels import test_every_scheme, test_matmul
from tests.support.made_up import SCHEMES, registered
from tests.support.schemes import DTYPES


@pytest.fixture(autouse=True)
def sq4():
    with registered() as fmt:
        yield fmt


@triton.jit
def codec(u_ptr, code_ptr, level_ptr, ENCODE: tl.constexpr, DECODE: tl.constexpr, BLOCK: tl.constexpr):
    """code = ENCODE(u), level = DECODE(code), elementwise."""
    at = tl.arange(0, BLOCK)
    code = ENCODE(tl.load(u_ptr + at))
    tl.store(code_ptr + at, code)
    tl.store(level_ptr + at, DECODE(code))


def test_codec_alone(sq4, device):
    levels = sq4.levels
    middle = (levels[1:] + levels[:-1]) / 2
    sides = [middle.nextafter(torch.full_like(middle, side)) for side in (-torch.inf, torch.inf)]
    u = torch.cat([levels, middle, *sides, torch.tensor([1e30, -1e30, -0.0])]).to(device)
    assert u.numel() == 64
    for values in (u, u.double()):
        codes, decoded = torch.empty(64, dtype=torch.int32, device=device), torch.empty(64, device=device)
        codec[(1,)](values, codes, decoded, sq4.encode, sq4.decode, BLOCK=64)
        want = sq4.encode_ref(values.cpu())
        assert torch.equal(codes.cpu(), want) and torch.equal(decoded.cpu(), sq4.decode_ref(want))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize_and_dequantize_equal_the_reference(scheme, dtype, device):
    test_every_scheme.test_quantize_and_dequantize_equal_the_reference(scheme, dtype, device)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_matmul_keeps_its_guarantee(scheme, device):
    test_matmul.test_matmul_keeps_its_guarantee(scheme, device)


def test_one_hot_rows_print_the_weight(device):
    test_matmul.test_one_hot_rows_print_the_weight("sq4", device)
