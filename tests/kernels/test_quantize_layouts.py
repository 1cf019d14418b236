"""quantize straight into the layouts of products: bit for bit what relayout makes of the reference."""
import pytest
import torch

import tritonq
from tests.kernels import test_rounding as rounding
from tests.support.schemes import hostile
from tritonq import QuantizeDesc, Scheme, reference

SCHEMES = {"frag": ["int4.g128", "uint4.g32", "nf4.g64", "mxfp4", "int4.channel", "uint4.g256.fz", "fp4_bnb.g16", "uint4.g64.away",
                    "int8", "uint8.g64.fz", "uint8.g16", "int2.g32", "uint2.g16", "fp8_e4m3", "fp8_e5m2.g8", "mxfp8"],
           "ksplit": ["int4.g128", "uint4.g32", "nf4.g64", "mxfp4", "mxfp8", "int8", "uint8.g64.fz", "int3.g64", "uint3.g256.fz",
                      "int2.g32", "uint2.channel", "fp8_e4m3", "fp8_e5m2.g16", "int4.g512", "fp4_bnb.g1", "int4.g64.narrow.away"]}


SHORT = ["int4.g128", "int4.g16", "int4.g256", "int4.channel.full", "uint4.g32", "uint4.channel", "uint4.g64.fz", "uint4.g64.away",
         "nf4.g64", "nf4.channel", "fp4_bnb.g32", "mxfp4", "fp4_e2m1.g128", "int4.g128.pow2",
         "int8.g128", "int8.g16", "int8.g8", "int8.full", "uint8", "uint8.g32", "uint8.g64.fz", "int2.g64", "int2.g32", "int2.g16",
         "uint2.g128", "uint2.channel", "fp8_e4m3", "fp8_e4m3.g16", "fp8_e5m2.g64", "mxfp8"]  # fmt: skip


def plain(dtype: torch.dtype, columns: int = 384) -> torch.Tensor:
    """[192, columns]: numbers that take the short way, but for 64 rows with an Inf and 64 with a scale that is too small for it; and a
    group that is zero."""
    x = torch.randn(192, columns, generator=torch.Generator().manual_seed(3))
    x[70, 200], x[130, :256], x[5, 128:256] = float("inf"), x[130, :256] * 2.0**-100, 0.0
    return x.to(dtype)


def check(layout: str, scheme: str, x: torch.Tensor, device) -> None:
    plan = tritonq.select(QuantizeDesc.of(x.to(device), scheme, layout))
    assert plan.kernel.name == f"quantize_{layout}"
    got, want = plan.run(x.to(device)), reference.quantize(x, Scheme.parse(scheme)).relayout(layout)
    for name in ("packed", "stored_scale", "zero_point"):
        left, right = getattr(got, name), getattr(want, name)
        assert (left is None and right is None) or torch.equal(left.cpu(), right), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("layout, scheme", [(layout, scheme) for layout, schemes in SCHEMES.items() for scheme in schemes])
def test_bit_for_bit(layout, scheme, dtype, device):
    check(layout, scheme, hostile((70, 300), dtype), device)


# every scheme from bfloat16, and from float16 or float32 in turns
WHOLE = [(s, torch.bfloat16) for s in SHORT] + [(s, torch.float32 if i % 4 else torch.float16) for i, s in enumerate(SHORT[::2])]


@pytest.mark.parametrize("layout", SCHEMES)
@pytest.mark.parametrize("scheme, dtype", WHOLE, ids=str)
def test_whole_steps(scheme, layout, dtype, device):
    check(layout, scheme, plain(dtype, 512 if layout == "ksplit" else 384), device)


@pytest.mark.parametrize("scheme, columns", [("int4.channel", 512), ("fp8_e4m3", 1024), ("uint8.channel", 768), ("nf4.g512", 1024),
                                             ("uint2.g256.fz", 512), ("int2.channel", 640)])  # fmt: skip
@pytest.mark.parametrize("layout", SCHEMES)
def test_long_groups(layout, scheme, columns, device):
    """Steps of one span and of two."""
    check(layout, scheme, plain(torch.bfloat16, columns * (2 if layout == "ksplit" else 1)), device)


@pytest.mark.parametrize("layout, dtype", [("frag", torch.bfloat16), ("frag", torch.float16), ("ksplit", torch.bfloat16)], ids=str)
@pytest.mark.parametrize("scheme", ["int4.g128", "nf4.g128", "fp4_bnb.g128", "uint4.g256", "uint4.g128.fz", "mxfp4", "fp4_e2m1.g16",
                                    "int2.g128", "uint2.g128", "fp8_e4m3.g256", "mxfp8"])  # fmt: skip
def test_every_boundary(layout, scheme, dtype, device):
    make = rounding.near_affine_boundaries if scheme.startswith("u") else rounding.near_boundaries
    make = rounding.near_float_boundaries if scheme.startswith(("mx", "fp8", "fp4_e2m1")) else make
    x = make(scheme, dtype, (1 if dtype == torch.bfloat16 else 8) * (16 if "fp8" in scheme else 1))
    x = torch.nn.functional.pad(x, (0, -x.shape[1] % 256, 0, -x.shape[0] % 64))
    check(layout, scheme, x, device)


@pytest.mark.parametrize("shape", [(300, 140), (256, 256)], ids=str)
@pytest.mark.parametrize("layout", SCHEMES)
def test_strides(layout, shape, device):
    x = torch.randn(shape, device=device)[:, ::2].T
    got = tritonq.quantize(x, "nf4.g64", layout=layout)
    assert torch.equal(got.packed, tritonq.quantize(x.contiguous(), "nf4.g64").relayout(layout).packed)


@pytest.mark.parametrize("layout, scheme, why", [
    ("frag", "int4.g96", "groups of 1, 2, 4"), ("frag", "nf4.dq", "second level"), ("frag", "int4.tensor", "along rows"),
    ("frag", "uint3.g32", "2, 4 or 8 bits, uint3 has 3"), ("frag", "nvfp4", "second level"),
    ("ksplit", "int4.g96", "groups of 1, 2, 4"), ("ksplit", "nf4.dq", "second level"), ("ksplit", "int8.tensor", "along rows"),
    ("ksplit", "nvfp4", "second level"),
])  # fmt: skip
def test_what_is_left_to_relayout(layout, scheme, why, device):
    x = torch.randn(5, 200, device=device)
    line = next(line for line in tritonq.explain(QuantizeDesc.of(x, scheme, layout)).splitlines() if f"quantize_{layout}" in line)
    assert "refused" in line and why in line
    got, want = tritonq.quantize(x, scheme, layout=layout), tritonq.quantize(x, scheme).relayout(layout)
    assert got.layout == layout and torch.equal(got.packed, want.packed)
