"""What the tests of both ways to run a kernel decode: matrices that meet each path of the dequantize kernels."""
from __future__ import annotations

import torch

import tritonq
from tritonq import QTensor, reference
from tritonq.formats import FORMATS

from .schemes import DTYPES

# (scheme, shape, kernel): one long row; ragged; short last group; whole rows; blocks; odd groups; many columns per thread and step.
GEOMETRIES = [
    ("int4.g32", (5, 96), "dequantize_rows"), ("uint4.g64", (64, 256), "dequantize_rows"), ("int4.g48", (9, 336), "dequantize_rows"),
    ("uint4.g32", (3, 72), "dequantize_rows"), ("nf4.channel", (33, 40), "dequantize_rows"), ("int8.tensor", (7, 72), "dequantize_rows"),
    ("uint4.b3x16", (10, 56), "dequantize_rows"), ("uint3.channel.fz", (2, 2056), "dequantize_rows"),
    ("int3.g24", (5, 48), "dequantize_rows"), ("uint8.g16", (3, 4112), "dequantize_rows"),
    ("int2.b2x1000", (3, 2000), "dequantize_rows"),
    ("int4.g36", (4, 72), "dequantize_tiles"), ("nf4", (3, 33), "dequantize_tiles"), ("int8.column", (5, 64), "dequantize_tiles"),
]  # fmt: skip
FORMAT_CASES = [(fmt.name, (4, 256 * 16 // fmt.bits if fmt.bits < 16 else 64), dtype) for fmt in FORMATS.values() for dtype in DTYPES[:3]]


def check(q: QTensor, out: torch.dtype) -> None:
    """The kernels give the reference's bits; NaN where it has NaN."""
    got, want = tritonq.dequantize(q, out), reference.dequantize(q.to("cpu"), out)
    same = got.cpu().view(torch.uint8) == want.view(torch.uint8)
    assert (same.view(*want.shape, -1).all(-1) | (want.isnan() & got.cpu().isnan())).all(), (q.scheme, q.shape, out)
    assert (q.scheme.format.bits > 4) | ~want.isnan().any()
