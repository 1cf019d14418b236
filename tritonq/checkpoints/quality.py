"""How far decoded weights are from the original: SQNR and cosine, accumulated in float64 over slices of rows."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..qtensor import QTensor
from ..reference.matrix import decode_rows

_SLICE = 1 << 22  # elements compared at a time


@dataclass
class Quality:
    """Sums over pairs of tensors; ``+`` of two is the quality of both together. Elements where the original is NaN or Inf are left out."""

    signal: float = 0.0
    noise: float = 0.0
    decoded: float = 0.0
    dot: float = 0.0
    largest: float = 0.0
    elements: int = 0
    nonfinite: int = 0

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise); infinite where they are equal, NaN where there is no element."""
        if self.noise == 0:
            return math.inf if self.elements else math.nan
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the two as one vector each; 1 where they are equal, 0 where one is all zero."""
        if self.noise == 0:
            return 1.0
        norms = math.sqrt(self.signal) * math.sqrt(self.decoded)
        return self.dot / norms if norms else 0.0

    def __add__(self, other: Quality) -> Quality:
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__ if name != "largest"}
        return Quality(**sums, largest=max(self.largest, other.largest))

    def row(self) -> dict:
        """For JSON: infinities are None."""
        sqnr = self.sqnr_db
        return {
            "sqnr_db": round(sqnr, 4) if math.isfinite(sqnr) else None,
            "cosine": round(self.cosine, 8),
            "max_error": self.largest,
            "nonfinite": self.nonfinite,
            "sums": [self.signal, self.noise, self.decoded, self.dot, self.elements],
        }

    @classmethod
    def from_row(cls, row: dict) -> Quality:
        signal, noise, decoded, dot, elements = row["sums"]
        return cls(signal, noise, decoded, dot, row["max_error"], elements, row["nonfinite"])


def compare(original: torch.Tensor, decoded: torch.Tensor) -> Quality:
    """The quality of ``decoded`` against ``original``, tensors of equal size."""
    total = Quality()
    a, b = original.reshape(-1), decoded.reshape(-1)
    for start in range(0, a.numel(), _SLICE):
        x = a[start : start + _SLICE].to(torch.float64)
        y = b[start : start + _SLICE].to(torch.float64)
        finite = torch.isfinite(x)
        bad = x.numel() - int(finite.sum())
        if bad:
            x, y = torch.where(finite, x, 0.0), torch.where(finite, y, 0.0)
        error = y - x
        total += Quality(
            signal=float(x.dot(x)),
            noise=float(error.dot(error)),
            decoded=float(y.dot(y)),
            dot=float(x.dot(y)),
            largest=float(error.abs().max()),
            elements=x.numel() - bad,
            nonfinite=bad,
        )
    return total


def decoded_rows(q: QTensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """``q`` decoded a slice of rows at a time: ``(rows, float32 or, of float64 weights, float64 values)``."""
    n, k = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    step = max(1, _SLICE // max(1, k))
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        yield rows, decode_rows(q, rows, dtype)


def compare_quantized(original: torch.Tensor, q: QTensor) -> Quality:
    """The quality of ``q``, decoded, against the matrix ``original``."""
    return sum((compare(original[rows], values) for rows, values in decoded_rows(q)), Quality())
