"""Floor 1. ``frag``: weights in the order in which a tensor core takes its left operand from registers. See docs/layouts.md.

``frag_codes`` orders the codes. Scales and zero points lie by group, then by row, as 32-bit values: what one thread needs, a row and the
row eight below it, is one load.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

from ..formats import Format
from ..formats.packing import unpack_row
from ..kept import kept
from ..scheme import Scheme
from . import frag_codes
from .by_group import groups_among, refuses_scales, turned, turned_back, up
from .core import Expected, Fields, Layout
from .row import expected as row_expected

N_MULTIPLE = 128  # rows of scales and zero points, so that a kernel may take two tiles at once

# 16-bit pattern in which the kernel loads a scale or float zero point, by the dtype in which it is stored; float32 stays as it is
_PATTERN = {
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
    torch.float8_e8m0fnu: torch.bfloat16,
    torch.float8_e4m3fn: torch.float16,
}


def groups(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Groups along K in this layout: those of the padded columns, or one where a group holds whole rows."""
    return groups_among(wide(scheme, shape), scheme, shape)


def wide(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Columns with their padding."""
    return up(shape[1], frag_codes.k_multiple(scheme.format))


@kept
def marks_rows(fmt: Format) -> bool:
    """Whether codes may be NaN or Inf, which moving bits does not give.

    Scales then end in a row of marks: NaN for a row of W that holds one, else 0.
    """
    return not bool(fmt.levels.isfinite().all())


def loaded_dtype(stored: torch.dtype) -> torch.dtype:
    """What the kernel loads for a scale or zero point stored in ``stored``: float16, bfloat16, float32, bytes. No value changes."""
    return stored if stored == torch.uint8 else _PATTERN.get(stored, torch.float32)


def scale_dtype(scheme: Scheme, dtype: torch.dtype) -> torch.dtype:
    """What the kernel loads as scales: float16 and bfloat16 in pairs, or float32."""
    return torch.float32 if "dq" in scheme.options else loaded_dtype(scheme.scale_format(dtype).dtype)


def refuses(scheme: Scheme, dtype: torch.dtype) -> str | None:
    if reason := frag_codes.refuses(scheme.format):
        return reason
    return refuses_scales("frag", scheme, dtype)


def expected(scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype) -> Expected:
    """Shape and dtype of every tensor of a ``[N, K]`` matrix in this layout."""
    n = shape[0]
    fields = row_expected(scheme, shape, dtype)
    fields["packed"] = (frag_codes.packed_shape(scheme.format, n, wide(scheme, shape)), torch.int32)
    form = _form(groups(scheme, shape) + marks_rows(scheme.format), n, scale_dtype(scheme, dtype))
    fields["expanded_scale" if "dq" in scheme.options else "stored_scale"] = form
    if scheme.format.affine:
        fields["zero_point"] = _form(groups(scheme, shape), n, loaded_dtype(scheme.zero_dtype(dtype)))
    return fields


def _form(rows: int, n: int, loaded: torch.dtype) -> tuple[tuple[int, int], torch.dtype]:
    wide = up(n, N_MULTIPLE)
    return ((rows, wide), torch.float32) if loaded == torch.float32 else ((rows, wide // 2), torch.int32)


def from_row(q) -> Fields:
    packed, marks = frag_codes.pack(q.scheme.format, q.packed, *q.shape, wide(q.scheme, q.shape)), _marks(q)
    return turned(q, packed, lambda scale: _by_group(scale, q, marks), lambda zero: _by_group(zero, q))


def to_row(q) -> Fields:
    packed = frag_codes.unpack(q.scheme.format, q.packed, *q.shape, wide(q.scheme, q.shape))
    return turned_back(q, packed, lambda values, shape, dtype: _by_row(values, q, shape, dtype))


def _marks(q) -> torch.Tensor | None:
    """float32 ``[N]``: NaN where a row holds a code that is NaN or Inf, else 0; None for formats without such codes."""
    fmt, (n, k) = q.scheme.format, q.shape
    if not marks_rows(fmt):
        return None
    odd = ~fmt.levels.isfinite().to(q.device)
    marks = torch.zeros(n, dtype=torch.float32, device=q.device)
    for panel in frag_codes.tile_panels(n, wide(q.scheme, q.shape)):
        rows = slice(panel.start * frag_codes.TILE, panel.stop * frag_codes.TILE)
        marks[rows].masked_fill_(odd[unpack_row(q.packed[rows], fmt.bits, k).int()].any(-1), torch.nan)
    return marks


def _by_group(values: torch.Tensor, q, marks: torch.Tensor | None = None) -> torch.Tensor:
    """Values ``[groups along N, groups along K]`` -> ``[groups, rows]``: float32, or two 16-bit patterns of rows 8 apart per word.

    ``marks`` ``[N]`` become one more row.
    """
    n, rows = q.shape[0], q.scheme.group_shape(*q.shape)[0]
    stored = values.dtype
    values = _to_pattern(values)
    values = values.repeat_interleave(rows, 0)[:n] if rows > 1 else values
    values = F.pad(values, (0, groups(q.scheme, q.shape) - values.shape[1]))
    if marks is not None:
        values = torch.cat((values, _to_pattern(marks.to(loaded_dtype(stored)))[:, None]), 1)
    values = F.pad(values, (0, 0, 0, up(n, N_MULTIPLE) - n)).T.contiguous()
    if values.dtype == torch.float32:
        return values
    low, high = values.int().reshape(values.shape[0], values.shape[1] // 16, 2, 8).unbind(2)
    return ((low & 0xFFFF) | (high << 16)).reshape(values.shape[0], values.shape[1] // 2)


def _by_row(values: torch.Tensor, q, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """The inverse of :func:`_by_group`."""
    if values.dtype == torch.int32:
        words = values.reshape(values.shape[0], values.shape[1] // 8, 1, 8)
        values = torch.cat((words.to(torch.int16), (words >> 16).to(torch.int16)), 2).reshape(values.shape[0], values.shape[1] * 2)
    rows = q.scheme.group_shape(*q.shape)[0]
    dense = torch.empty(shape, dtype=values.dtype, device=values.device)
    return _from_pattern(dense.copy_(values.T[: q.shape[0] : rows, : shape[1]]), dtype)


def _to_pattern(values: torch.Tensor) -> torch.Tensor:
    """Stored values as float32, or as the int16 patterns of :data:`_PATTERN`."""
    if values.dtype == torch.float32:
        return values
    if values.dtype == torch.uint8:
        return values.to(torch.int16)
    if values.dtype == torch.float8_e8m0fnu:  # code 0 is 2**-127, a subnormal of bfloat16
        code = values.view(torch.uint8).to(torch.int16)
        return torch.where(code == 0, 0x40, code << 7)
    return values.to(_PATTERN[values.dtype]).view(torch.int16)


def _from_pattern(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.float32:
        return values
    if dtype == torch.uint8:
        return values.to(torch.uint8)
    if dtype == torch.float8_e8m0fnu:
        return (values >> 7).to(torch.uint8).view(dtype)
    return values.view(_PATTERN[dtype]).to(dtype)


FRAG = Layout(name="frag", expected=expected, refuses=refuses, from_row=from_row, to_row=to_row)
