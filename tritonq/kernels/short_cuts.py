"""Floor 3. Which shorter arithmetic of quantize_words gives the same bits for a scheme and a dtype, and the tables that it searches."""
from __future__ import annotations

from typing import NamedTuple

import torch

from ..formats.codebook import bound_table, crowded, line_table, thresholds
from ..formats.fp4_e2m1 import FP4_E2M1
from ..kept import kept
from ..scheme import Scheme
from .pack import PAIR_ORIGIN

# Smallest positive number.
LEAST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-149}
# More comparisons than that, one for each bound that shares a cell of the search table, take as long as the search without a table.
MOST_CROWDED = 4


@kept
def short_cuts(scheme: Scheme, dtype: torch.dtype) -> dict:
    """Which shorter arithmetic gives the same bits, and for which scales.

    FAST: a reciprocal, in float32. Where a code boundary lies at 0, only under scales that no quotient underflows by: least x / scale
    is 2**-149 at least, and neither x * inverse nor its correction, half a unit at most, rounds such a quotient to 0. Float zero points
    only where they are stored as the least value is: then 0 <= x - zero_point <= max - min.
    QUOTIENT: ``"product"`` with the exact reciprocal of a power of two; ``"short"`` for inputs and scales of at most 11 significant bits
    and integer codes with ties to even, see round_short_quotient; ``"exact"`` corrects the last bit.
    CELLS, CROWDED, RECODE: how a code book is searched by table, see CellSearch; Format.recode.
    IN_RANGE: absmax / scale, or (max - min) / scale, rounds to the largest code at most, whatever the rounding of the scale: symmetric
    codes need no clamp, affine ones none from below, where the zero point is what the least value rounds to, negated, and with a float
    zero point none at all.
    PAIRS: codes are few and near enough to be rounded two at a time, see pack_pairs.
    E2M1: codes are those of the float that pack_e2m1 knows.
    """
    fmt, storage = scheme.format, scheme.scale_format(dtype)
    splits_zero = not fmt.is_integer and fmt.encode_ref(torch.tensor([2.0**-149, 0.0], dtype=torch.float32)).unique().numel() > 1
    fast = dtype != torch.float64 and (not scheme.float_zero or _holds(scheme.zero_format(dtype).dtype, dtype))
    largest = LEAST[dtype] / LEAST[torch.float32] if fast and splits_zero else 2.0**60
    # The scale that divides: as it is stored, but nvfp4's is a product in float32.
    exact = torch.finfo(torch.float32 if scheme.recipe == "nv" else storage.dtype)
    error = 0.0 if scheme.rounds_up else exact.eps / 2
    quotient = "exact"
    if scheme.rounds_up or scheme.recipe == "mx" or storage.name == "e8m0":
        quotient = "product"
    elif fast and dtype.itemsize == 2 and storage.bits <= 16 and fmt.is_integer and not scheme.options & {"away", "fz"}:
        quotient = "short"
    in_range = fmt.is_integer and "full" not in scheme.options and fmt.max_abs / (1 - error) < fmt.max_abs + 0.5
    search = cell_search(scheme, dtype) if fast else None
    pairs = search.pairs if search else quotient == "short" and in_range and fmt.bits <= 4
    return {"FAST": fast, "QUOTIENT": quotient, "IN_RANGE": in_range, "PAIRS": pairs,
            "CELLS": search and search.kind, "CROWDED": search and search.crowded, "RECODE": search and fmt.recode,
            "E2M1": fmt is FP4_E2M1,
            "SCALE_MIN": max(2.0**-60, exact.smallest_normal), "SCALE_MAX": min(largest, 2.0**60, exact.max / 2)}  # fmt: skip


def _holds(wide: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether every number of ``dtype`` is one of ``wide``."""
    a, b = torch.finfo(wide), torch.finfo(dtype)
    return a.eps <= b.eps and a.max >= b.max and a.smallest_normal <= b.smallest_normal


class CellSearch(NamedTuple):
    """How the kernel searches a code book by table: ``"line"`` where x and scale are short enough for it, ``"bound"`` for every float32
    quotient; whether a line's results are rounded in pairs; the table; and what bounds that are too crowded for it are compared with: x
    with these times the scale where the kind is a line, else the quotient with these."""

    kind: str
    pairs: bool
    table: torch.Tensor
    crowded: tuple[float, ...]


@kept
def cell_search(scheme: Scheme, dtype: torch.dtype) -> CellSearch | None:
    """None without a table, see formats/codebook.py."""
    fmt, storage = scheme.format, scheme.scale_format(dtype)
    error = 0.0 if scheme.rounds_up else torch.finfo(storage.dtype).eps / 2
    if fmt.bounds is None or fmt.max_abs != 1.0 or error > 2**-4:
        return None
    many = crowded(fmt.bounds)
    bounds = tuple(bound for bound in fmt.bounds if bound not in many)
    if len(many) > MOST_CROWDED or bound_table(bounds) is None:
        return None
    if dtype.itemsize == 2:
        digits = {torch.bfloat16: 8, torch.float16: 11}
        # A scale kept in float32 is the absmax itself, as short as x.
        bits = max(digits[dtype], digits.get(storage.dtype, 0))
        for pairs in (True, False):
            line = line_table(bounds, bits, PAIR_ORIGIN.value if pairs else 0.0)
            if line is not None and thresholds(many, bits) is not None:
                return CellSearch("line", pairs, line, thresholds(many, bits))
    return CellSearch("bound", False, bound_table(bounds), many)


@kept
def cells_tensor(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The table that the kernel searches, on the device."""
    return cell_search(scheme, dtype).table.to(device)
