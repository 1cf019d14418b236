"""Floor 1. ``ksplit``: codes that unpack by shift and mask alone, on every GPU and in Triton's interpreter. See docs/layouts.md.

A row is cut into blocks of 256 columns. The 16-bit words of a block hold planes: word j has column j in its lowest bits, column
``j + width`` in the next, and so on, where ``width`` is the number of words. One shift and one mask of consecutive words thus give
consecutive columns, and nothing is interleaved. Scales and zero points lie by group, then by row, as they are stored.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

from ..formats.packing import pack_row, unpack_row
from ..scheme import Scheme
from .by_group import groups_among, panels, refuses_scales, turned, turned_back, up
from .core import Expected, Fields, Layout
from .row import expected as row_expected

BLOCK = 256  # columns of a block; K is padded to whole blocks
N_MULTIPLE = 64  # rows of scales and zero points, so that a kernel loads them unmasked


def groups(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Groups along K in this layout: those of the padded columns, or one where a group holds whole rows."""
    return groups_among(up(shape[1], BLOCK), scheme, shape)


def refuses(scheme: Scheme, dtype: torch.dtype) -> str | None:
    if not scheme.has_scale or scheme.format.bits > 8:
        return f"layout 'ksplit' holds scaled codes of at most 8 bits; {scheme} is a cast to {scheme.format.bits} bits; stay in 'row'"
    return refuses_scales("ksplit", scheme, dtype)


def expected(scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype) -> Expected:
    """Shape and dtype of every tensor of a ``[N, K]`` matrix in this layout."""
    n, k = shape
    fields = row_expected(scheme, shape, dtype)
    fields["packed"] = ((n, up(k, BLOCK) * scheme.format.bits // 16), torch.int16)
    by_group = (groups(scheme, shape), up(n, N_MULTIPLE))
    if "dq" in scheme.options:
        fields["expanded_scale"] = (by_group, torch.float32)
    else:
        fields["stored_scale"] = (by_group, _loaded(fields["stored_scale"][1]))
    if fields["zero_point"] is not None:
        fields["zero_point"] = (by_group, _loaded(fields["zero_point"][1]))
    return fields


def from_row(q) -> Fields:
    return turned(q, _pack(q), lambda scale: _by_group(scale, q), lambda zero: _by_group(zero, q))


def to_row(q) -> Fields:
    return turned_back(q, _unpack(q), lambda values, shape, dtype: _by_row(values, q, shape, dtype))


def fold(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 ``[..., C]`` to int16 words ``[..., width]``; field j at bit ``bits * (j // width)`` of word ``j % width``."""
    planes = fields.unflatten(-1, (16 // bits, fields.shape[-1] * bits // 16)).to(torch.int16)
    return sum(planes[..., p, :] << (bits * p) for p in range(16 // bits)).to(torch.int16)


def unfold(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of :func:`fold`."""
    return torch.cat([(words >> (bits * p)) & (2**bits - 1) for p in range(16 // bits)], -1).to(torch.uint8)


def _fold_blocks(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """``[..., 256]`` to words. 3 bits: the low two of each half of the block, then the high ones of all of it."""
    if bits != 3:
        return fold(codes, bits)
    low = fold((codes & 3).unflatten(-1, (2, BLOCK // 2)), 2).flatten(-2)
    return torch.cat((low, fold(codes >> 2, 1)), -1)


def _unfold_blocks(words: torch.Tensor, bits: int) -> torch.Tensor:
    if bits != 3:
        return unfold(words, bits)
    low, high = words.split((BLOCK // 8, BLOCK // 16), -1)
    return unfold(low.unflatten(-1, (2, BLOCK // 16)), 2).flatten(-2) | (unfold(high, 1) << 2)


def _offset(q) -> int:
    """Signed codes are stored as unsigned ones: code + 2**(bits - 1)."""
    return 1 << (q.scheme.format.bits - 1) if q.scheme.format.signed else 0


def _pack(q) -> torch.Tensor:
    bits, (n, k) = q.scheme.format.bits, q.shape
    out = torch.empty(n, up(k, BLOCK) * bits // 16, dtype=torch.int16, device=q.device)
    for panel in panels(n, up(k, BLOCK)):
        codes = unpack_row(q.packed[panel], bits, k) ^ _offset(q)
        codes = F.pad(codes, (0, up(k, BLOCK) - k)).unflatten(-1, (-1, BLOCK))
        out[panel] = _fold_blocks(codes, bits).flatten(-2)
    return out


def _unpack(q) -> torch.Tensor:
    bits, (n, k) = q.scheme.format.bits, q.shape
    out = torch.empty(n, q.scheme.format.row_bytes(k), dtype=torch.uint8, device=q.device)
    for panel in panels(n, up(k, BLOCK)):
        words = q.packed[panel].unflatten(-1, (-1, BLOCK * bits // 16))
        codes = _unfold_blocks(words, bits).flatten(-2)[..., :k]
        out[panel] = pack_row(codes ^ _offset(q), bits)
    return out


def _loaded(stored: torch.dtype) -> torch.dtype:
    """8-bit floats lie as their bytes, which every architecture can load."""
    return torch.uint8 if stored.itemsize == 1 else stored


def _by_group(values: torch.Tensor, q) -> torch.Tensor:
    """Values ``[groups along N, groups along K]`` -> ``[groups, rows]``, zeros beyond the matrix."""
    n, rows = q.shape[0], q.scheme.group_shape(*q.shape)[0]
    values = values.view(_loaded(values.dtype))
    out = torch.zeros(groups(q.scheme, q.shape), up(n, N_MULTIPLE), dtype=values.dtype, device=q.device)
    out[: values.shape[1], :n] = values.repeat_interleave(rows, 0)[:n].T
    return out


def _by_row(values: torch.Tensor, q, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """The inverse of :func:`_by_group`."""
    rows = q.scheme.group_shape(*q.shape)[0]
    dense = torch.empty(shape, dtype=values.dtype, device=q.device)
    return dense.copy_(values[: shape[1], : q.shape[0] : rows].T).view(dtype)


KSPLIT = Layout(name="ksplit", expected=expected, refuses=refuses, from_row=from_row, to_row=to_row)
