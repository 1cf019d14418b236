"""Floor 1. ``row``: one bit stream per row and one scale per group. Matrices are saved, compared and exchanged in this form."""
from __future__ import annotations

import torch

from ..scheme import DQ_BLOCK, Scheme
from .core import Expected, Layout

TENSOR_FIELDS = ("packed", "stored_scale", "zero_point", "second_scale", "scale_offset", "expanded_scale")


def expected(scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype) -> Expected:
    """Shape and dtype of every tensor of a ``[N, K]`` matrix in the canonical layout."""
    n, k = shape
    fields: Expected = dict.fromkeys(TENSOR_FIELDS)
    fields["packed"] = ((n, scheme.format.row_bytes(k)), torch.uint8)
    if scheme.has_scale:
        groups = scheme.scale_shape(n, k)
        double = "dq" in scheme.options
        fields["stored_scale"] = (groups, torch.uint8 if double else scheme.scale_format(dtype).dtype)
        if double:
            fields["second_scale"] = ((-(-groups[0] * groups[1] // DQ_BLOCK),), torch.float32)
            fields["scale_offset"] = ((), torch.float32)
        if scheme.recipe == "nv":
            fields["second_scale"] = ((), torch.float32)
        if scheme.format.affine:
            fields["zero_point"] = (groups, scheme.zero_dtype(dtype))
    return fields


def _same(q) -> dict:
    return {name: getattr(q, name) for name in TENSOR_FIELDS}


ROW = Layout(name="row", expected=expected, refuses=lambda scheme, dtype: None, from_row=_same, to_row=_same)
