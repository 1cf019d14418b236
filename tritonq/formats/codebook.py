"""Sixteen sorted levels: search on the device, lookup back, and the torch twins. Code-book formats are built from these."""
from __future__ import annotations

from functools import cache

import torch

from .._triton import jit, tl
from ..kept import kept

# Cells of the kernels' search table: round(u * CELL_DENSITY) + 16 for |u| <= 1.068, so 32 cells hold a group and the rounding of its scale.
# CELL_SLOPE: the least multiple of 1/32 from 4 on with which line_table succeeds for NF4, for 8 bits at 192 and for 11 bits at 0.
_DENSITY, _SLOPE, _MAGIC = 14.5, 5.84375, 12582912.0
CELL_DENSITY, CELL_SLOPE = tl.constexpr(_DENSITY), tl.constexpr(_SLOPE)
CELL_ORIGIN = tl.constexpr(_MAGIC + 16.0)


def midpoints(levels: tuple[float, ...]) -> tuple[float, ...]:
    """Halfway between neighbouring sorted levels, rounded to float32 as bitsandbytes holds them."""
    table = torch.tensor(levels, dtype=torch.float64)
    return tuple(((table[1:] + table[:-1]) / 2).float().tolist())


@jit
def search16(u, BOUNDS: tl.constexpr):
    """How many of the 15 sorted BOUNDS lie strictly below ``u`` (a tie takes the lower code): 4 comparisons."""
    eight = u > BOUNDS[7]
    bound = tl.where(eight, BOUNDS[11], BOUNDS[3])
    four = u > bound
    low = tl.where(four, BOUNDS[5], BOUNDS[1])
    high = tl.where(four, BOUNDS[13], BOUNDS[9])
    bound = tl.where(eight, high, low)
    two = u > bound
    a = tl.where(two, BOUNDS[2], BOUNDS[0])
    b = tl.where(two, BOUNDS[6], BOUNDS[4])
    c = tl.where(two, BOUNDS[10], BOUNDS[8])
    d = tl.where(two, BOUNDS[14], BOUNDS[12])
    bound = tl.where(eight, tl.where(four, d, c), tl.where(four, b, a))
    one = u > bound
    return (eight.to(tl.int32) << 3) | (four.to(tl.int32) << 2) | (two.to(tl.int32) << 1) | one.to(tl.int32)


@jit
def lookup16(code, LEVELS: tl.constexpr):
    """LEVELS[code] by a binary tree of selections, float32."""
    one = (code & 1) != 0
    two = (code & 2) != 0
    four = (code & 4) != 0
    a = tl.where(two, tl.where(one, LEVELS[3], LEVELS[2]), tl.where(one, LEVELS[1], LEVELS[0]))
    b = tl.where(two, tl.where(one, LEVELS[7], LEVELS[6]), tl.where(one, LEVELS[5], LEVELS[4]))
    c = tl.where(two, tl.where(one, LEVELS[11], LEVELS[10]), tl.where(one, LEVELS[9], LEVELS[8]))
    d = tl.where(two, tl.where(one, LEVELS[15], LEVELS[14]), tl.where(one, LEVELS[13], LEVELS[12]))
    return tl.where((code & 8) != 0, tl.where(four, d, c), tl.where(four, b, a)).to(tl.float32)


@cache
def crowded(bounds: tuple[float, ...]) -> tuple[float, ...]:
    """The bounds that share a cell with another, which are too many for a table and compared one by one."""
    cell = [round(bound * _DENSITY) for bound in bounds]
    return tuple(bound for bound, own in zip(bounds, cell) if cell.count(own) > 1)


@kept
def bound_table(bounds: tuple[float, ...]) -> torch.Tensor | None:
    """float32 [2, 32]: the bound inside each cell (Inf: none), and 1.5 * 2**23 + how many lie in lower cells. None where two share a cell.

    The code of ``u`` is ``below + (u > bound)``. A bound too close to the end of its cell is refused, so the rounding of the cell's
    number does not matter.
    """
    scaled = torch.tensor(bounds, dtype=torch.float64) * _DENSITY
    cell = scaled.round().int() + 16
    near_end = (scaled - scaled.round()).abs() > 0.499
    if near_end.any() or cell.unique().numel() < len(bounds) or int(cell[0]) < 1 or int(cell[-1]) > 30:
        return None
    table = torch.full((2, 32), torch.inf, dtype=torch.float32)
    table[0, cell.long()] = torch.tensor(bounds, dtype=torch.float32)
    table[1] = torch.searchsorted(cell, torch.arange(32, dtype=torch.int32)).float() + _MAGIC
    return table


@kept
def line_table(bounds: tuple[float, ...], bits: int, origin: float) -> torch.Tensor | None:
    """float32 [32]: ``x / scale * CELL_SLOPE + line[cell]``, rounded to an integer, is ``origin`` + the code of x / scale.

    For x and scale of ``bits`` significant bits. In a cell with a bound the line passes half an integer halfway between the quotients next
    to the bound, elsewhere it stays near the code. That x * (1 / scale) and one float32 rounding are enough is tried for every significand
    of the scale, with the x on both sides of every bound and of every cell's end. None where it fails.
    """
    table = bound_table(bounds)
    if table is None:
        return None
    below, center = table[1].double() - _MAGIC, (torch.arange(32).double() - 16) / _DENSITY
    ends = (torch.arange(31).double() - 15.5) / _DENSITY
    scale = (torch.arange(2 ** (bits - 1), 2**bits).double() / 2 ** (bits - 1))[:, None, None]
    exact = torch.tensor(bounds, dtype=torch.float32)
    target = torch.cat((exact.double(), ends))[:, None] * scale
    unit = torch.exp2(torch.floor(torch.log2(target.abs())) - (bits - 1))
    x = (torch.round(target / unit) + torch.arange(-2, 3)) * unit  # [scale, bound or end, x]
    inverse = (1.0 / scale).float().double()
    product = x * (inverse * _SLOPE).float()
    want = torch.bucketize((x / scale).float(), exact)
    beyond = want > torch.arange(len(target[0]))[:, None]
    under, over = (torch.where(beyond, -torch.inf, product).amax((0, 2)), torch.where(beyond, product, torch.inf).amin((0, 2)))
    line = below - _SLOPE * center
    line[table[0].isfinite()] = torch.arange(len(bounds)).double() + 0.5 - (under + over)[: len(bounds)] / 2
    line = (line + origin).float()
    cell = (x * (inverse * _DENSITY).float()).round().int() + 16
    got = (product + line.double()[cell.clamp(0, 31).long()]).float().round()
    return line if bool((got == want.float() + origin)[cell.clamp(1, 31) == cell].all()) else None


@kept
def thresholds(bounds: tuple[float, ...], bits: int) -> tuple[float, ...] | None:
    """For each bound a float32 t: ``x > scale * t`` in float32 is ``x / scale > bound`` for x and scale of ``bits`` significant bits.

    It lies halfway between the quotients next to the bound. Tried as line_table is; None where a bound has none. 0 is its own.
    """
    scale = (torch.arange(2 ** (bits - 1), 2**bits).double() / 2 ** (bits - 1))[:, None]
    found = []
    for bound in bounds:
        target = bound * scale
        unit = torch.exp2(torch.floor(torch.log2(target.abs())) - (bits - 1)) if bound else 2.0**-60
        x = (torch.round(target / unit) + torch.arange(-2, 3)) * unit
        beyond = (x / scale).float() > bound
        under, over = (x / scale)[~beyond].max(), (x / scale)[beyond].min()
        threshold = ((under + over) / 2).float() if bound else torch.tensor(0.0, dtype=torch.float32)
        if not torch.equal(x > (scale * threshold.double()).float(), beyond):
            return None
        found.append(threshold.item())
    return tuple(found)


@kept
def _cells(bounds: tuple[float, ...], dtype: torch.dtype) -> tuple[float, torch.Tensor, torch.Tensor] | None:
    """Equal cells over the range of ``bounds``, each with at most one of them: cells per unit, bounds below each cell, the bound in it.

    None where bounds lie too close together for a table of reasonable size.
    """
    table, per_unit = torch.tensor(bounds, dtype=dtype), 1.0
    while _cell(table, bounds, per_unit).unique().numel() < len(bounds):
        per_unit *= 2
        if per_unit * (bounds[-1] - bounds[0]) > 1 << 16:
            return None
    cell = _cell(table, bounds, per_unit).long()
    inside = torch.full((int(cell[-1]) + 1,), torch.inf, dtype=dtype).scatter_(0, cell, table)
    below = torch.bucketize(torch.arange(len(inside)), cell).to(dtype)
    return per_unit, below, inside


def _cell(u: torch.Tensor, bounds: tuple[float, ...], per_unit: float) -> torch.Tensor:
    """Number of the cell that holds ``u``. Every operation rounds monotonically, so a larger ``u`` has no smaller number."""
    return u.clamp(bounds[0], bounds[-1]).sub_(bounds[0]).mul_(per_unit).int()


def search16_ref(u: torch.Tensor, bounds: tuple[float, ...]) -> torch.Tensor:
    """How many bounds lie strictly below ``u``, int32: those in lower cells, and the one in u's own cell if it does.

    Equal to ``torch.bucketize(u, bounds)`` at a tenth of its time.
    """
    cells = _cells(bounds, u.dtype)
    if cells is None:
        return torch.bucketize(u, torch.tensor(bounds, dtype=u.dtype, device=u.device), out_int32=True)
    per_unit, below, inside = cells
    cell = _cell(u, bounds, per_unit).flatten()
    bound = inside.to(u.device).index_select(0, cell).view(u.shape)
    return bound.lt_(u).add_(below.to(u.device).index_select(0, cell).view(u.shape)).int()


def lookup_ref(code: torch.Tensor, levels: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.float32, device=code.device)[code.long()]
