"""What quantize_rows decides with shortened arithmetic: every boundary between codes, and which element of a group is the greatest."""
from dataclasses import replace

import pytest
import torch

import tritonq
from tests.support.schemes import same_bits
from tritonq import Scheme, reference
from tritonq.kernels.short_cuts import short_cuts

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def equal_the_reference(x, scheme, device):
    q, want = tritonq.quantize(x.to(device), scheme), reference.quantize(x, Scheme.parse(scheme))
    assert all(same_bits(q.tensors()[name].cpu(), tensor) for name, tensor in want.tensors().items())


def near_boundaries(scheme, dtype, step=1):
    """[significands, 128]: in every row another significand (each ``step``-th), and what lies next to the boundaries under its scale."""
    parsed = Scheme.parse(scheme)
    one = torch.ones((), dtype=dtype).view(torch.int16)
    most = torch.arange(int(one), int((2 * torch.ones((), dtype=dtype)).view(torch.int16)), step, dtype=torch.int16).view(dtype)[:, None]
    scale = reference.quantize(most.expand(-1, 128), parsed).scale[:, :1].double()
    low, high = parsed.code_range
    bounds = torch.arange(low, high).double() + 0.5 if parsed.format.is_integer else torch.tensor(parsed.format.bounds).double()
    nearest = (scale * bounds).to(dtype).view(torch.int16)
    around = torch.cat([nearest + i for i in range(-2, 3)], 1).view(dtype)  # the next numbers of the dtype, but around zero
    around = torch.where(around.abs() <= most, around, 0)
    assert parsed.format.bounds or (around.double() / scale).frac().abs().eq(0.5).sum() > 50 / step  # ties there are
    return torch.cat([most, around, around.new_zeros(len(around), 127 - around.shape[1])], 1)


def near_affine_boundaries(scheme, dtype, step=1):
    """[significands, group] likewise for codes with a zero point: the greatest, a least of up to 17 sixteenths of it, and boundaries, which
    lie beside 0 or, where the zero point is a float, beside it."""
    parsed = Scheme.parse(scheme)
    one, two = torch.tensor([1.0, 2.0], dtype=dtype).view(torch.int16).tolist()
    most = torch.arange(one, two, step, dtype=torch.int16).view(dtype)[:, None]
    least = (-most.double() * (torch.arange(len(most)) % 18 / 16)[:, None]).to(dtype)
    columns = parsed.group_shape(1, 1 << 20)[1]
    q = reference.quantize(torch.cat([most, least.expand(-1, columns - 1)], 1), parsed)
    scale, origin = q.scale.double(), q.zero_point.double() if parsed.float_zero else 0.0
    high = parsed.code_range[1]
    bounds = torch.arange(0 if parsed.float_zero else -high - 1, high + 1).double() + 0.5
    nearest = (origin + scale * bounds).to(dtype).view(torch.int16)
    around = torch.cat([nearest + i for i in range(-2, 3)], 1).view(dtype)
    other = most if parsed.float_zero else torch.zeros_like(most)  # no boundary
    around = torch.where((around <= most) & (around >= least), around, other)
    assert ((around.double() - origin) / scale).frac().abs().eq(0.5).sum() > 50 / step
    return torch.cat([most, least, around, other.expand(-1, columns - 2 - around.shape[1])], 1)


def near_float_boundaries(scheme, dtype, step=1):
    """[.., group] likewise for small floats: the greatest, -0, and as many boundaries as fit, all n places beside where they lie."""
    parsed = Scheme.parse(scheme)
    columns = parsed.group_shape(1, 1 << 20)[1]
    one, two = torch.tensor([1.0, 2.0], dtype=dtype).view(torch.int16).tolist()
    most = torch.arange(one, two, step, dtype=torch.int16).view(dtype)[:, None]
    q = reference.quantize(most.expand(-1, columns), parsed)
    levels = parsed.format.levels.double()
    levels = levels[levels.isfinite()].unique()
    chunks = ((levels[1:] + levels[:-1]) / 2).split(columns - 2)
    bounds = torch.stack([torch.nn.functional.pad(chunk, (0, columns - 2 - len(chunk))) for chunk in chunks])
    # what one level decodes to tells the scale, whatever it is made of
    code = 2 ** (parsed.format.bits - 2)
    scale = reference.dequantize(replace(q, packed=torch.full_like(q.packed, code)), torch.float64)[:, :1] / parsed.format.levels[code]
    nearest = (scale[:, None] * bounds).to(dtype).view(torch.int16)  # [significands, chunks, bounds]
    around = torch.stack([nearest + i for i in range(-2, 3)], 2).view(dtype)
    around = torch.where(around.abs() <= most[:, None, None], around, -0.0)
    greatest = most[:, None, None].expand(*around.shape[:-1], 1)
    return torch.cat([greatest, -torch.zeros_like(greatest), around], 3).flatten(0, 2)


def one_in_every_place(dtype):
    """[7 * 128, 128]: small numbers, and at every place of a group its greatest, or what the short way must not miss."""
    others = torch.randn(7, 128, 128, generator=torch.Generator().manual_seed(1)) / 64
    special = torch.tensor([1.0, -1.0, 2.0**-3, -(2.0**12), float("inf"), -float("inf"), float("nan")])
    return torch.where(torch.eye(128).bool(), special[:, None, None], others).to(dtype).flatten(0, 1)


def finite(rows, columns):
    """Numbers that take the short way; groups of 32 are a power of two, so that no empty one takes it from them."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)).to(BF16)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("scheme", ["int4.g128", "int3.g128", "int2.g128", "int4.g128.s32", "nf4.g128", "nf4.g128.s16", "fp4_bnb.g128"])
def test_every_boundary_and_its_neighbours(scheme, dtype, device):
    equal_the_reference(near_boundaries(scheme, dtype), scheme, device)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("scheme", ["uint4.g256", "uint3.g128", "uint2.g128", "uint4.g256.s32", "uint4.g128.fz", "uint3.g64.s32.fz"])
def test_every_boundary_beside_a_zero_point(scheme, dtype, device):
    equal_the_reference(near_affine_boundaries(scheme, dtype, 1 if dtype == BF16 else 16), scheme, device)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("scheme", ["fp8_e4m3.g256", "fp8_e5m2.g256", "mxfp8", "fp4_e2m1.g16", "mxfp4", "nvfp4"])
def test_every_boundary_of_small_floats(scheme, dtype, device):
    step = 128 if dtype == F16 else 4 if scheme in ("fp8_e5m2.g256", "mxfp8") else 1
    equal_the_reference(near_float_boundaries(scheme, dtype, step), scheme, device)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("scheme", ["int4.g128", "nf4.g64", "uint4.g128", "uint4.g128.fz"])
def test_every_place_counts(scheme, dtype, device):
    equal_the_reference(one_in_every_place(dtype)[:: 3 if scheme.startswith("uint4") else 1], scheme, device)


@pytest.mark.parametrize("scheme", ["int4.g32", "uint4.g32", "uint4.g32.fz", "int3.g32", "int2.g32", "nf4.g32", "fp4_bnb.g32",
                                    "mxfp4", "nvfp4"])  # fmt: skip
def test_ends_of_rows_hold_zeros(scheme, device):
    for columns in (107, 127):  # a row of 4-bit codes ends in a byte, or in a word of 8
        equal_the_reference(finite(4, columns), scheme, device)


def test_weights_of_a_model_take_the_short_way_of_nvfp4(device):
    """Scales of groups like 0.05 / 6, less than the least normal e4m3: what is stored is 448 / absmax of the tensor times that."""
    limits = short_cuts(Scheme.parse("nvfp4"), BF16)
    assert limits["SCALE_MIN"] == 2.0**-60 and limits["SCALE_MAX"] == 2.0**60
    equal_the_reference(near_float_boundaries("nvfp4", BF16, 4) * 2.0**-9, "nvfp4", device)
