"""Floor 1. Codes in layout ``frag``: in the order in which a tensor core takes its left operand from registers. See docs/layouts.md.

A tile of 64 rows is 512 int32 words, whatever the width of a code; its columns are ``256 / bits``. Thread ``(warp, g, t)`` of 128 owns four
words in a row (16 bytes). A word holds the codes of ``U = 8 / bits`` half fragments of 16 rows x 8 columns:

    row = 64 a + 16 warp + 8 h + g        column = columns * b + 8 (U w + u) + 2 t + e        h, e in {0, 1}, u in 0 .. U - 1

3-bit codes are two planes, of their lower two bits and of their highest.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..formats import Format
from ..formats.numerics import decode_minifloat_ref
from ..formats.packing import pack_row, unpack_row
from ..kept import kept
from .by_group import panels
from .byte_planes import byte_planes

TILE = 64  # rows of a tile
_AXES = "aWhgbwvste"  # of a matrix of whole tiles: rows a, warp, h, g; columns b, w, u = 2 v + s, t, e


@dataclass(frozen=True, kw_only=True)
class Plane:
    """``bits`` bits of every code, from bit ``low`` on.

    ``order`` is that of the codes within a word by axes e, v, s and h, the lowest last.
    """

    bits: int
    low: int = 0
    order: str = "evsh"  # taken out by masks, from 16 bits at once: element e = 1 stands in the upper half of a word

    @property
    def columns(self) -> int:
        return 256 // self.bits

    def words(self, wide: int) -> int:
        """int32 words of a tile row of so many columns."""
        return wide * TILE * self.bits // 32

    def dims(self, tiles: int, wide: int) -> dict[str, int]:
        u = 8 // self.bits
        return dict(zip(_AXES, (tiles, 4, 2, 8, wide // self.columns, 4, max(u // 2, 1), min(u, 2), 4, 2)))

    @property
    def places(self) -> dict[str, int]:
        """By axis of ``order``: how many codes lie between neighbours within a word."""
        sizes, lower = self.dims(1, self.columns), self.order[::-1]
        return {axis: math.prod(sizes[a] for a in lower[:i]) for i, axis in enumerate(lower)}


def planes(fmt: Format) -> tuple[Plane, ...]:
    """The planes of a format's codes in the order in which they lie in a tile row."""
    if fmt.bits == 3:  # in the upper plane h above s, so that one shift brings both h beside the lower plane's bits
        return Plane(bits=2), Plane(bits=1, low=2, order="evhs")
    # of a float of 8 bits e = 0 and e = 1 are neighbours: what converts two of them at once takes a half of a word
    return (Plane(bits=fmt.bits, order="evsh" if fmt.is_integer else "vseh" if is_book(fmt) else "vshe"),)


def k_multiple(fmt: Format) -> int:
    """Columns are padded to this, so that a kernel may step by it."""
    return max(128, *(plane.columns for plane in planes(fmt)))


def is_book(fmt: Format) -> bool:
    """Whether codes are looked up in byte planes, by selectors of ``prmt``: sixteen levels of any kind."""
    return fmt.bits == 4 and not fmt.is_integer


@kept
def exponent_bits(fmt: Format) -> int | None:
    """Of codes that are floats with a sign, an IEEE bias and subnormals, as e4m3 and e5m2; None for other codes."""
    codes = torch.arange(2**fmt.bits)
    for exponent in range(2, min(fmt.bits - 1, 6)):
        known = fmt.levels.isfinite()
        value = decode_minifloat_ref(codes, exponent, fmt.bits - 1 - exponent, 2**fmt.bits)
        if torch.equal(value[known], fmt.levels[known]):
            return exponent
    return None


def refuses(fmt: Format) -> str | None:
    """Why this layout cannot hold such codes, or None."""
    if fmt.bits not in (2, 3, 4, 8):
        return f"layout 'frag' holds codes of 2, 3, 4 or 8 bits; {fmt.name} has {fmt.bits}; stay in 'row'"
    if fmt.is_integer:
        return None
    if is_book(fmt) and byte_planes(fmt, torch.float16) is None:
        return f"layout 'frag' needs codes that can be paired by sign and exponent, and those of {fmt.name} cannot; stay in 'row'"
    if not is_book(fmt) and (fmt.bits != 8 or exponent_bits(fmt) is None):
        return f"layout 'frag' holds integers, sixteen levels, or 8-bit floats with a sign, and {fmt.name} is none; stay in 'row'"
    return None


def stored_codes(fmt: Format, device: torch.device) -> torch.Tensor:
    """uint8 ``[2**bits]``: what stands for each code. Signed integers become offset binary, code books are relabelled, floats stay."""
    if is_book(fmt):
        return torch.tensor(byte_planes(fmt, torch.float16).relabel, dtype=torch.uint8, device=device)
    offset = 1 << (fmt.bits - 1) if fmt.is_integer and fmt.signed else 0
    return (torch.arange(2**fmt.bits, device=device) ^ offset).to(torch.uint8)


def packed_shape(fmt: Format, n: int, wide: int) -> tuple[int, int]:
    """Of int32 words: tile rows, and words of one, plane after plane."""
    return -(-n // TILE), sum(plane.words(wide) for plane in planes(fmt))


def tile_panels(n: int, wide: int) -> list[slice]:
    """:func:`panels` of tile rows."""
    return panels(-(-n // TILE), TILE * wide)


def pack(fmt: Format, row_packed: torch.Tensor, n: int, k: int, wide: int) -> torch.Tensor:
    """Canonical bit streams ``[N, ceil(K * bits / 8)]`` to int32 ``packed_shape``; ``wide`` is the padded K."""
    stored = stored_codes(fmt, row_packed.device)
    out = torch.empty(packed_shape(fmt, n, wide), dtype=torch.int32, device=row_packed.device)
    for panel in tile_panels(n, wide):
        tiles = panel.stop - panel.start
        codes = unpack_row(row_packed[panel.start * TILE : panel.stop * TILE], fmt.bits, k)
        codes = F.pad(stored[codes.int()], (0, wide - k, 0, tiles * TILE - codes.shape[0]))
        first = 0
        for plane in planes(fmt):
            dims, last = plane.dims(tiles, wide), first + plane.words(wide)
            part = (codes >> plane.low & (1 << plane.bits) - 1).reshape(tuple(dims.values()))
            part = part.permute([_AXES.index(axis) for axis in "abWgtw" + plane.order]).reshape(tiles, TILE * wide)
            out[panel, first:last] = _pack_bits(part, plane.bits).view(torch.int32)
            first = last
    return out


def unpack(fmt: Format, packed: torch.Tensor, n: int, k: int, wide: int) -> torch.Tensor:
    """The inverse of :func:`pack`."""
    codes_of = stored_codes(fmt, packed.device).argsort().to(torch.uint8)
    out = torch.empty(n, fmt.row_bytes(k), dtype=torch.uint8, device=packed.device)
    for panel in tile_panels(n, wide):
        tiles, first = panel.stop - panel.start, 0
        codes = torch.zeros(tiles * TILE, wide, dtype=torch.uint8, device=packed.device)
        for plane in planes(fmt):
            dims, last = plane.dims(tiles, wide), first + plane.words(wide)
            order = "abWgtw" + plane.order
            part = _unpack_bits(packed[panel, first:last].contiguous().view(torch.uint8), plane.bits, wide * TILE)
            part = part.reshape([dims[axis] for axis in order]).permute([order.index(axis) for axis in _AXES])
            codes |= part.reshape(tiles * TILE, wide) << plane.low
            first = last
        rows = out[panel.start * TILE : panel.stop * TILE]
        rows.copy_(pack_row(codes_of[codes[: rows.shape[0], :k].int()], fmt.bits))
    return out


def _pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """As pack_row, for single bits too."""
    return pack_row(codes[..., ::2] | codes[..., 1::2] << 1, 2) if bits == 1 else pack_row(codes, bits)


def _unpack_bits(packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    if bits != 1:
        return unpack_row(packed, bits, length)
    pairs = unpack_row(packed, 2, length // 2)
    return torch.stack((pairs & 1, pairs >> 1), -1).flatten(-2)
