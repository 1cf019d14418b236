"""The 256 levels in which double quantization stores scales: a dynamic tree of 8 bits (arXiv:2110.02861 section 2.1).

A byte is a sign, a unary decimal exponent and a linear fraction that takes the remaining bits: exponent ``10**(i - 6)`` has
``2**i`` fractions, the centres of equal steps of [0.1, 1]. Zero and one complete the table.
"""
from __future__ import annotations

import torch


def _dynamic_map() -> tuple[float, ...]:
    levels = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        centres = (10 ** (i - 6)) * ((edges[:-1] + edges[1:]) / 2)
        levels += centres.tolist() + (-centres).tolist()
    return tuple(sorted(levels))


DYNAMIC_MAP = _dynamic_map()
