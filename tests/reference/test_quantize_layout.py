"""quantize(..., layout=): the same matrix as relayout gives, on the reference."""
import pytest
import torch

import tritonq
from tritonq.errors import InvalidProblemError


@pytest.mark.parametrize("scheme", ["int4.g32", "uint4.g96", "nf4.dq", "mxfp4", "int4.tensor"])
def test_equals_relayout(scheme):
    w = torch.randn(70, 200)
    got, want = tritonq.quantize(w, scheme, layout="frag"), tritonq.quantize(w, scheme).relayout("frag")
    assert got.layout == "frag" and torch.equal(got.packed, want.packed) and torch.equal(got.stored_scale, want.stored_scale)
    assert tritonq.quantize(w[:0], scheme, layout="frag").shape == (0, 200)


def test_with_act_order():
    w, g_idx = torch.randn(9, 64), (torch.arange(64) // 32)[torch.randperm(64)]
    q = tritonq.quantize(w, "int4.g32", layout="frag", g_idx=g_idx)
    assert q.layout == "frag" and torch.equal(q.dequantize(), tritonq.quantize(w, "int4.g32", g_idx=g_idx).dequantize())


@pytest.mark.parametrize("scheme, layout, text", [
    ("int4", "rows", "unknown layout 'rows'; known layouts: row, frag"),
    ("int4.column", "frag", "layout 'frag' keeps scales per row"),
    ("int4", None, "layout must be a str, got NoneType"),
])  # fmt: skip
def test_refusals(scheme, layout, text):
    with pytest.raises(InvalidProblemError) as caught:
        tritonq.quantize(torch.randn(4, 64), scheme, layout=layout)
    assert text in str(caught.value)
