"""quantize straight into the layouts of products: bit for bit what relayout makes of the reference."""
import pytest
import torch

import tritonq
from tests.support.schemes import hostile
from tritonq import QuantizeDesc, Scheme, reference

SCHEMES = {"frag": ["int4.g128", "uint4.g32", "nf4.g64", "mxfp4", "int4.channel", "uint4.g256.fz", "fp4_bnb.g16", "uint4.g64.away"],
           "ksplit": ["int4.g128", "uint4.g32", "nf4.g64", "mxfp4", "mxfp8", "int8", "uint8.g64.fz", "int3.g64", "uint3.g256.fz",
                      "int2.g32", "uint2.channel", "fp8_e4m3", "fp8_e5m2.g16", "int4.g512", "fp4_bnb.g1", "int4.g64.narrow.away"]}


def check(layout: str, scheme: str, shape: tuple[int, int], dtype: torch.dtype, device) -> None:
    x = hostile(shape, dtype).to(device)
    plan = tritonq.select(QuantizeDesc.of(x, scheme, layout))
    assert plan.kernel.name == f"quantize_{layout}"
    got, want = plan.run(x), reference.quantize(x.cpu(), Scheme.parse(scheme)).relayout(layout)
    for name in ("packed", "stored_scale", "zero_point"):
        left, right = getattr(got, name), getattr(want, name)
        assert (left is None and right is None) or torch.equal(left.cpu(), right), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("layout, scheme", [(layout, scheme) for layout, schemes in SCHEMES.items() for scheme in schemes])
def test_bit_for_bit(layout, scheme, dtype, device):
    check(layout, scheme, (70, 300), dtype, device)


@pytest.mark.parametrize("layout", SCHEMES)
def test_strides(layout, device):
    x = torch.randn(300, 140, device=device)[:, ::2].T
    got = tritonq.quantize(x, "nf4.g64", layout=layout)
    assert torch.equal(got.packed, tritonq.quantize(x.contiguous(), "nf4.g64").relayout(layout).packed)


@pytest.mark.parametrize("layout, scheme, why", [
    ("frag", "int4.g96", "groups of 1, 2, 4"), ("frag", "nf4.dq", "second level"), ("frag", "int4.tensor", "along rows"),
    ("frag", "uint3.g32", "4-bit codes, uint3 has 3"), ("frag", "mxfp8", "4-bit codes, fp8_e4m3 has 8"), ("frag", "nvfp4", "second level"),
    ("ksplit", "int4.g96", "groups of 1, 2, 4"), ("ksplit", "nf4.dq", "second level"), ("ksplit", "int8.tensor", "along rows"),
    ("ksplit", "nvfp4", "second level"),
])  # fmt: skip
def test_what_is_left_to_relayout(layout, scheme, why, device):
    x = torch.randn(5, 200, device=device)
    line = next(line for line in tritonq.explain(QuantizeDesc.of(x, scheme, layout)).splitlines() if f"quantize_{layout}" in line)
    assert "refused" in line and why in line
    got, want = tritonq.quantize(x, scheme, layout=layout), tritonq.quantize(x, scheme).relayout(layout)
    assert got.layout == layout and torch.equal(got.packed, want.packed)
