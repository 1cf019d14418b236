"""Floor 1. ``frag``: 4-bit codes in the order in which a tensor core takes its left operand from registers. See docs/layouts.md.

A tile of 64 rows x 64 columns is 512 int32 words. Thread ``(warp, g, t)`` of 128 owns four words in a row (16 bytes), one per 16 columns;
a word holds the eight codes that the thread feeds into one m16k16 fragment:

    row = 64 a + 16 warp + 8 h + g        column = 64 b + 16 word + 8 c + 2 t + e        h, c, e in {0, 1}

Scales and zero points lie by group, then by row, as 32-bit values: what one thread needs, a row and the row eight below it, is one load.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

from ..formats import Format
from ..formats.packing import pack_row, unpack_row
from ..scheme import Scheme
from .byte_planes import byte_planes
from .core import Expected, Layout
from .row import TENSOR_FIELDS
from .row import expected as row_expected

TILE = 64  # rows and columns of a tile
K_MULTIPLE = 128  # columns are padded to this, so that a kernel may step by it
N_MULTIPLE = 128  # rows of scales and zero points, so that a kernel may take two tiles at once
_CHUNK = 1 << 24  # codes handled at once: bounds the temporaries of a large layer

# Axes of a tile row as (a, warp, h, g, b, word, c, t, e), and where they go: tiles, threads, words, then nibbles, the lowest last.
_SPLIT = (0, 4, 1, 3, 7, 5, 8, 6, 2)  # nibble h + 2c + 4e: integers, taken out by masks
_SEQUENTIAL = (0, 4, 1, 3, 7, 5, 6, 2, 8)  # nibble 2h + 4c + e: code books, taken as selectors of prmt

# 16-bit pattern in which the kernel loads a scale or float zero point, by the dtype in which it is stored; float32 stays as it is
_PATTERN = {
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
    torch.float8_e8m0fnu: torch.bfloat16,
    torch.float8_e4m3fn: torch.float16,
}


def up(value: int, multiple: int) -> int:
    """``value`` rounded up to a multiple."""
    return -(-value // multiple) * multiple


def groups(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Groups along K in this layout: those of the padded columns, or one where a group holds whole rows."""
    columns = scheme.group_shape(*shape)[1]
    return 1 if columns >= shape[1] else -(-up(shape[1], K_MULTIPLE) // columns)


def loaded_dtype(stored: torch.dtype) -> torch.dtype:
    """What the kernel loads for a scale stored in ``stored``: float16, bfloat16 or float32. No value changes."""
    return _PATTERN.get(stored, torch.float32)


def scale_dtype(scheme: Scheme, dtype: torch.dtype) -> torch.dtype:
    """What the kernel loads as scales: float16 and bfloat16 in pairs, or float32."""
    return torch.float32 if "dq" in scheme.options else loaded_dtype(scheme.scale_format(dtype).dtype)


def refuses(scheme: Scheme, dtype: torch.dtype) -> str | None:
    fmt = scheme.format
    if fmt.bits != 4:
        return f"layout 'frag' holds 4-bit codes; {scheme} has {fmt.bits}-bit codes; stay in 'row'"
    if scheme.granularity.kind == "column":
        return f"layout 'frag' keeps scales per row, and {scheme} shares them along columns; stay in 'row'"
    if torch.float64 in (scheme.scale_format(dtype).dtype, scheme.float_zero and scheme.zero_format(dtype).dtype):
        return f"layout 'frag' holds scales of at most 32 bits; {scheme} stores them in float64; stay in 'row'"
    if not fmt.is_integer and byte_planes(fmt, torch.float16) is None:
        return f"layout 'frag' needs codes that can be paired by sign and exponent, and those of {fmt.name} cannot; stay in 'row'"
    return None


def expected(scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype) -> Expected:
    """Shape and dtype of every tensor of a ``[N, K]`` matrix in this layout."""
    n, k = shape
    fields = row_expected(scheme, shape, dtype)
    fields["packed"] = ((-(-n // TILE), up(k, K_MULTIPLE) * TILE // 8), torch.int32)
    form = _form(groups(scheme, shape), n, scale_dtype(scheme, dtype))
    fields["expanded_scale" if "dq" in scheme.options else "stored_scale"] = form
    if scheme.format.affine:
        loaded = loaded_dtype(scheme.zero_format(dtype).dtype) if scheme.float_zero else torch.uint8
        fields["zero_point"] = _form(groups(scheme, shape), n, loaded)
    return fields


def _form(rows: int, n: int, loaded: torch.dtype) -> tuple[tuple[int, int], torch.dtype]:
    wide = up(n, N_MULTIPLE)
    return ((rows, wide), torch.float32) if loaded == torch.float32 else ((rows, wide // 2), torch.int32)


def from_row(q) -> dict:
    fields = {name: getattr(q, name) for name in TENSOR_FIELDS}
    fields["packed"] = _pack(q)
    if "dq" in q.scheme.options:
        fields["expanded_scale"] = _by_group(q.scale, q)
    else:
        fields["stored_scale"] = _by_group(q.stored_scale, q)
    if q.zero_point is not None:
        fields["zero_point"] = _by_group(q.zero_point, q)
    return fields


def to_row(q) -> dict:
    want = row_expected(q.scheme, q.shape, q.dtype)
    fields = {name: getattr(q, name) for name in TENSOR_FIELDS}
    fields["packed"] = _unpack(q)
    fields["expanded_scale"] = None
    for name in ("zero_point",) if "dq" in q.scheme.options else ("stored_scale", "zero_point"):
        if want[name] is not None:
            fields[name] = _by_row(fields[name], q, *want[name])
    return fields


def _axes(fmt: Format) -> tuple[int, ...]:
    return _SPLIT if fmt.is_integer else _SEQUENTIAL


def _stored_nibbles(fmt: Format, device: torch.device) -> torch.Tensor:
    """uint8 ``[16]``: the nibble that stands for each code. Signed integers become offset binary, code books are relabelled."""
    if fmt.is_integer:
        return torch.arange(16, dtype=torch.uint8, device=device) ^ (8 if fmt.signed else 0)
    return torch.tensor(byte_planes(fmt, torch.float16).relabel, dtype=torch.uint8, device=device)


def _panels(q) -> list[slice]:
    """Runs of tile rows that hold about _CHUNK codes; none where there are no codes."""
    step = max(_CHUNK // max(TILE * up(q.shape[1], K_MULTIPLE), 1), 1)
    tiles = -(-q.shape[0] // TILE) if q.shape[1] else 0
    return [slice(first, min(first + step, tiles)) for first in range(0, tiles, step)]


def _pack(q) -> torch.Tensor:
    fmt, (n, k) = q.scheme.format, q.shape
    wide = up(k, K_MULTIPLE)
    nibbles = _stored_nibbles(fmt, q.device)
    out = torch.empty(-(-n // TILE), wide * TILE // 8, dtype=torch.int32, device=q.device)
    for panel in _panels(q):
        a = panel.stop - panel.start
        codes = unpack_row(q.packed[panel.start * TILE : panel.stop * TILE], 4, k)
        codes = F.pad(nibbles[codes.int()], (0, wide - k, 0, a * TILE - codes.shape[0]))
        codes = codes.reshape(a, 4, 2, 8, wide // TILE, 4, 2, 4, 2).permute(_axes(fmt))
        out[panel] = pack_row(codes.reshape(a, wide * TILE), 4).view(torch.int32)
    return out


def _unpack(q) -> torch.Tensor:
    fmt, (n, k) = q.scheme.format, q.shape
    wide, axes = up(k, K_MULTIPLE), _axes(fmt)
    codes_of = _stored_nibbles(fmt, q.device).argsort().to(torch.uint8)
    shape = [(0, 4, 2, 8, wide // TILE, 4, 2, 4, 2)[axis] for axis in axes[1:]]
    back = [axes.index(axis) for axis in range(9)]
    out = torch.empty(n, q.scheme.format.row_bytes(k), dtype=torch.uint8, device=q.device)
    for panel in _panels(q):
        a = panel.stop - panel.start
        nibbles = unpack_row(q.packed[panel].view(torch.uint8), 4, wide * TILE)
        nibbles = nibbles.reshape(a, *shape).permute(back).reshape(a * TILE, wide)
        rows = out[panel.start * TILE : panel.stop * TILE]
        rows.copy_(pack_row(codes_of[nibbles[: rows.shape[0], :k].int()], 4))
    return out


def _by_group(values: torch.Tensor, q) -> torch.Tensor:
    """Values ``[groups along N, groups along K]`` -> ``[groups, rows]``: float32, or two 16-bit patterns of rows 8 apart per word."""
    n, rows = q.shape[0], q.scheme.group_shape(*q.shape)[0]
    values = _to_pattern(values)
    values = values.repeat_interleave(rows, 0)[:n] if rows > 1 else values
    values = F.pad(values, (0, groups(q.scheme, q.shape) - values.shape[1], 0, up(n, N_MULTIPLE) - n)).T.contiguous()
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
