"""Floor 5. What TTGIR tells: reductions that Triton before 3.8 gets wrong."""
from __future__ import annotations

import re

_LAYOUT = re.compile(r"^(#\w+) = #ttg\.linear<\{.*?lane = (\[\[.*?\]\])", re.MULTILINE)
_BASIS = re.compile(r"\[([\d, ]+)\]")
_REDUCE = re.compile(r'"tt\.(?:reduce|scan)"\([^)]*\) <\{axis = (\d+) : i32.*?\}\) : \(tensor<[^#>]*(#[^>]*(?:\}>)*)', re.DOTALL)
_SLICE = re.compile(r"dim = (\d+)")
_NAME = re.compile(r"#\w+(?![\w.])")


def scattered_reductions(ttgir: str) -> list[str]:
    """Reductions along an axis whose values lie in lanes that are no neighbours, such as lanes 0, 1, 16 and 17 of a warp.

    Triton before 3.8 takes as many neighbours as there are values, beginning with the first of those lanes, and reduces others instead.
    Only ``#ttg.linear`` layouts can be like that.
    """
    layouts = {name: [[int(i) for i in lane.split(",")] for lane in _BASIS.findall(lanes)] for name, lanes in _LAYOUT.findall(ttgir)}
    found = []
    for axis, encoding in _REDUCE.findall(ttgir):
        lanes = layouts.get(_NAME.findall(encoding)[-1])
        if lanes is None:
            continue
        dim = int(axis)
        for sliced in map(int, _SLICE.findall(encoding)):  # from the outermost: what is cut away there is an axis again inside
            dim += dim >= sliced
        bits = [bit for bit, lane in enumerate(lanes) if lane[dim]]
        if bits and bits != [*range(bits[0], bits[0] + len(bits))]:
            found.append(f"axis {axis} of {encoding}: bits {bits} of the lane")
    return found
