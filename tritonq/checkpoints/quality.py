"""How far decoded weights are from the original: SQNR and cosine, accumulated in float64 over slices of rows."""
from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..dtypes import compute_dtype
from ..qtensor import QTensor
from ..reference.matrix import decode_rows

WORST_DB = -1000.0  # also of weights that are all zero, and do not decode to zero
_SLICE = 1 << 18  # elements compared at a time: 2 MiB as float64, which stays in a core's cache
_HUGE = 3.4e38  # stands for a value that decodes to Inf: its square fits a float64


@dataclass
class Quality:
    """Sums over pairs of tensors; ``+`` of two is the quality of both together. Elements where the original is NaN or Inf are left out;
    where only the decoded value is, NaN counts as zero and Inf as 3.4e38, so that every figure stays a number.
    """

    signal: float = 0.0
    noise: float = 0.0
    decoded: float = 0.0
    dot: float = 0.0
    largest: float = 0.0
    elements: int = 0
    nonfinite: int = 0

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise); infinite where they are equal or empty, at least ``WORST_DB``."""
        if self.noise == 0:
            return math.inf
        ratio = self.signal / self.noise
        return max(10 * math.log10(ratio), WORST_DB) if ratio > 0 else WORST_DB

    @property
    def cosine(self) -> float:
        """Cosine of the two as one vector each; 1 where they are equal, 0 where one is all zero."""
        if self.noise == 0:
            return 1.0
        norms = math.sqrt(self.signal) * math.sqrt(self.decoded)
        return self.dot / norms if 0 < norms < math.inf and math.isfinite(self.dot) else 0.0

    def __add__(self, other: Quality) -> Quality:
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__ if name != "largest"}
        return Quality(**sums, largest=max(self.largest, other.largest))

    def row(self) -> dict:
        """For JSON; ``sqnr_db`` is None where nothing was lost."""
        return {
            "sqnr_db": None if self.noise == 0 else round(self.sqnr_db, 4),
            "cosine": round(self.cosine, 8),
            "max_error": self.largest,
            "nonfinite": self.nonfinite,
            "sums": [*map(_number, (self.signal, self.noise, self.decoded, self.dot)), self.elements],
        }

    @classmethod
    def from_row(cls, row: dict) -> Quality:
        signal, noise, decoded, dot, elements = row["sums"]
        return cls(signal, noise, decoded, dot, row["max_error"], elements, row["nonfinite"])


def _number(value: float) -> float:
    """JSON has no infinity: squares of float64 weights beyond 1e154 are cut at the largest float64."""
    return math.copysign(sys.float_info.max, value) if not math.isfinite(value) else value


def compare(original: torch.Tensor, decoded: torch.Tensor) -> Quality:
    """The quality of ``decoded`` against ``original``, tensors of equal size."""
    total = Quality()
    a, b = original.reshape(-1), decoded.reshape(-1)
    for start in range(0, a.numel(), _SLICE):
        total += _compare_slice(a[start : start + _SLICE].to(torch.float64), b[start : start + _SLICE].to(torch.float64))
    return total


def _compare_slice(x: torch.Tensor, y: torch.Tensor) -> Quality:
    signal, power, bad = float(x.dot(x)), float(y.dot(y)), 0
    if not (math.isfinite(signal) and math.isfinite(power)):  # only then is there a NaN or Inf, or float64 values beyond 1e150
        y = y.nan_to_num(nan=0.0, posinf=_HUGE, neginf=-_HUGE)
        finite = torch.isfinite(x)
        bad = x.numel() - int(finite.sum())
        x, y = torch.where(finite, x, 0.0), torch.where(finite, y, 0.0)
        signal, power = float(x.dot(x)), float(y.dot(y))
    dot = float(x.dot(y))
    error = torch.sub(y, x)
    return Quality(
        signal=signal,
        noise=float(error.dot(error)),
        decoded=power,
        dot=dot,
        largest=float(error.abs_().max()),
        elements=x.numel() - bad,
        nonfinite=bad,
    )


def decoded_rows(q: QTensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """``q`` decoded a slice of rows at a time: ``(rows, float32 or, of float64 weights, float64 values)``."""
    n, k = q.shape
    dtype = compute_dtype(q.dtype)
    step = max(1, _SLICE // max(1, k))
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        yield rows, decode_rows(q, rows, dtype)


def compare_quantized(original: torch.Tensor, q: QTensor) -> Quality:
    """The quality of ``q``, decoded, against the matrix ``original``."""
    return sum((compare(original[rows], values) for rows, values in decoded_rows(q)), Quality())
