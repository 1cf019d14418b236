"""quantize straight into layout frag: bit for bit what relayout makes of the reference."""
import pytest
import torch

import tritonq
from tests.support.schemes import hostile
from tritonq import QuantizeDesc, Scheme, reference

SCHEMES = ["int4.g128", "uint4.g32", "nf4.g64", "mxfp4", "int4.channel", "uint4.g256.fz", "fp4_bnb.g16", "uint4.g64.away"]


def check(scheme: str, shape: tuple[int, int], dtype: torch.dtype, device) -> None:
    x = hostile(shape, dtype).to(device)
    plan = tritonq.select(QuantizeDesc.of(x, scheme, "frag"))
    assert plan.kernel.name == "quantize_frag"
    got, want = plan.run(x), reference.quantize(x.cpu(), Scheme.parse(scheme)).relayout("frag")
    for name in ("packed", "stored_scale", "zero_point"):
        left, right = getattr(got, name), getattr(want, name)
        assert (left is None and right is None) or torch.equal(left.cpu(), right), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bit_for_bit(scheme, dtype, device):
    check(scheme, (70, 300), dtype, device)


def test_strides(device):
    x = torch.randn(300, 140, device=device)[:, ::2].T
    got = tritonq.quantize(x, "nf4.g64", layout="frag")
    assert torch.equal(got.packed, tritonq.quantize(x.contiguous(), "nf4.g64").relayout("frag").packed)


@pytest.mark.parametrize("scheme, why", [
    ("int4.g96", "groups of 1, 2, 4"), ("nf4.dq", "second level"), ("int4.tensor", "along rows"), ("uint3.g32", "4-bit codes, uint3 has 3"),
    ("mxfp8", "4-bit codes, fp8_e4m3 has 8"), ("nvfp4", "second level"),
])  # fmt: skip
def test_what_it_leaves_to_relayout(scheme, why, device):
    x = torch.randn(5, 200, device=device)
    line = next(line for line in tritonq.explain(QuantizeDesc.of(x, scheme, "frag")).splitlines() if "quantize_frag" in line)
    assert "refused" in line and why in line
    got, want = tritonq.quantize(x, scheme, layout="frag"), tritonq.quantize(x, scheme).relayout("frag")
    assert got.layout == "frag" and torch.equal(got.packed, want.packed)
