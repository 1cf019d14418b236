"""Floor 1. What the kernels' layouts have in common: scales and zero points lie by group, then by row, beside codes in another order."""
from __future__ import annotations

from collections.abc import Callable

import torch

from ..scheme import Scheme
from .core import Fields
from .row import TENSOR_FIELDS
from .row import expected as row_expected

_CHUNK = 1 << 24  # codes handled at once: bounds the temporaries of a large layer


def up(value: int, multiple: int) -> int:
    """``value`` rounded up to a multiple."""
    return -(-value // multiple) * multiple


def panels(rows: int, codes: int) -> list[slice]:
    """Runs of ``rows`` of ``codes`` each that hold about _CHUNK codes; none where there are no codes."""
    step = max(_CHUNK // max(codes, 1), 1)
    return [slice(first, min(first + step, rows)) for first in range(0, rows if codes else 0, step)]


def groups_among(columns: int, scheme: Scheme, shape: tuple[int, int]) -> int:
    """Groups along K among ``columns``, which are those of the matrix with their padding; one where a group holds whole rows."""
    group = scheme.group_shape(*shape)[1]
    return 1 if group >= shape[1] else -(-columns // group)


def refuses_scales(layout: str, scheme: Scheme, dtype: torch.dtype) -> str | None:
    """Why scales cannot lie by group, then by row."""
    if scheme.granularity.kind == "column":
        return f"layout {layout!r} keeps scales per row, and {scheme} shares them along columns; stay in 'row'"
    if torch.float64 in (scheme.scale_format(dtype).dtype, scheme.float_zero and scheme.zero_format(dtype).dtype):
        return f"layout {layout!r} holds scales of at most 32 bits; {scheme} stores them in float64; stay in 'row'"
    return None


def turned(q, packed: torch.Tensor, scale: Callable[[torch.Tensor], torch.Tensor], zero: Callable[[torch.Tensor], torch.Tensor]) -> Fields:
    """The fields of q, which is in ``row``, with other codes; ``scale`` and ``zero`` turn ``[groups along N, groups along K]``.

    Doubly quantized scales are expanded; their codes stay as they are, for the way back.
    """
    fields = {name: getattr(q, name) for name in TENSOR_FIELDS} | {"packed": packed}
    if "dq" in q.scheme.options:
        fields["expanded_scale"] = scale(q.scale)
    else:
        fields["stored_scale"] = scale(q.stored_scale)
    if q.zero_point is not None:
        fields["zero_point"] = zero(q.zero_point)
    return fields


def turned_back(q, packed: torch.Tensor, by_row: Callable[[torch.Tensor, tuple[int, int], torch.dtype], torch.Tensor]) -> Fields:
    """The inverse of :func:`turned`: ``by_row`` takes a tensor and the shape and dtype that it has in ``row``."""
    want = row_expected(q.scheme, q.shape, q.dtype)
    fields = {name: getattr(q, name) for name in TENSOR_FIELDS} | {"packed": packed, "expanded_scale": None}
    for name in ("zero_point",) if "dq" in q.scheme.options else ("stored_scale", "zero_point"):
        if want[name] is not None:
            fields[name] = by_row(fields[name], *want[name])
    return fields
