"""Floor 1. A sixteen-entry code book as byte tables for the ``prmt`` instruction, which looks up four nibbles in eight bytes.

``prmt(P, x)`` gives byte ``x`` of the eight bytes P for ``x < 8``, and for ``x >= 8`` the sign of byte ``x - 8``, eight times. So

    plane(x) = prmt(P, x) ^ prmt(Q, 15 - x)

reads one table directly and the other one's sign as a mask: for code j entry j of P, for code j + 8 entry 7 - j of Q. It can give any
byte for codes j and j + 8 as long as the two agree in their top bit. The codes are therefore relabelled so that codes j and j + 8 agree
in bits 7 and 15 of their 16-bit patterns, in float16 and in bfloat16 at once (one stored order serves both); the book is multiplied by a
constant per dtype that makes such a pairing exist with the least rounding. The kernel divides the finished sum by it.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ..formats import Format
from ..kept import kept

_STEPS = 256
_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class BytePlanes:
    """A code book in one 16-bit dtype.

    Attributes:
        factor: what the levels were multiplied by before they were rounded; a power-of-two fraction in [1, 2).
        relabel: stored nibble of each code, the same for every dtype.
        words: the eight int32 table words in the order in which the kernel reads them: low plane P, P, Q, Q, high plane P, P, Q, Q.
        error: the largest relative rounding error of a level.
    """

    factor: float
    relabel: tuple[int, ...]
    words: tuple[int, ...]
    error: float


def byte_planes(fmt: Format, dtype: torch.dtype) -> BytePlanes | None:
    """The tables of a 4-bit code-book format for float16 or bfloat16 activations; None where its codes cannot be paired."""
    found = _search(fmt)
    return None if found is None else found[dtype]


@kept
def _search(fmt: Format) -> dict[torch.dtype, BytePlanes] | None:
    levels = fmt.levels.double()
    if fmt.bits != 4 or not bool(levels.isfinite().all()):
        return None
    factors = 1 + torch.arange(_STEPS, dtype=torch.float64) / _STEPS
    rounded = {dtype: (levels * factors[:, None]).float().to(dtype) for dtype in _DTYPES}
    errors = {dtype: _error(values.double() / factors[:, None], levels) for dtype, values in rounded.items()}
    negative = (levels < 0).int()
    for zero in (levels == 0).nonzero().flatten().tolist():  # a zero may take either sign: the one that evens out the signs
        negative[zero] = int(negative.sum()) < 8
    bit7 = {dtype: (values.view(torch.int16).int() >> 7) & 1 for dtype, values in rounded.items()}
    classes = 4 * negative + 2 * bit7[_DTYPES[0]][:, None] + bit7[_DTYPES[1]][None]  # [factor of bf16, factor of fp16, code]
    counts = (1 << 5 * classes.long()).sum(-1)  # five bits per class
    odd = (counts & sum(1 << 5 * kind for kind in range(8))) != 0
    cost = sum(error.view([-1 if i == axis else 1 for i in range(2)]) / torch.finfo(dtype).eps
               for axis, (dtype, error) in enumerate(errors.items()))  # fmt: skip
    cost = cost.masked_fill(odd, torch.inf)
    best = int(cost.argmin())
    if not bool(cost.flatten()[best].isfinite()):
        return None
    chosen = dict(zip(_DTYPES, divmod(best, _STEPS)))
    pairs = _pairs(classes[chosen[_DTYPES[0]], chosen[_DTYPES[1]]].tolist())
    relabel = [0] * 16
    for j, (first, second) in enumerate(pairs):
        relabel[first], relabel[second] = j, j + 8
    result = {}
    for dtype, at in chosen.items():
        bits = (rounded[dtype][at].view(torch.int16).int() & 0x7FFF) | (negative << 15)
        words = _words(bits.tolist(), pairs)
        result[dtype] = BytePlanes(factor=float(factors[at]), relabel=tuple(relabel), words=words, error=float(errors[dtype][at]))
    return result


def _error(got: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return torch.where(levels == 0, 0.0, ((got - levels) / levels).abs()).amax(-1)


def _pairs(classes: list[int]) -> list[tuple[int, int]]:
    members: dict[int, list[int]] = {}
    for code, kind in enumerate(classes):
        members.setdefault(kind, []).append(code)
    return [pair for _, codes in sorted(members.items()) for pair in zip(codes[::2], codes[1::2])]


def _words(bits: list[int], pairs: list[tuple[int, int]]) -> tuple[int, ...]:
    words = []
    for plane in (0, 8):
        first = [(bits[code] >> plane) & 255 for code, _ in pairs]
        second = [(bits[code] >> plane) & 255 for _, code in pairs]
        # P's top bits are kept clear, so that Q is read unmasked; where Q's top bit is set, P is read through a mask of ones
        table = [a ^ (255 if b >> 7 else 0) for a, b in zip(first, second)] + second[::-1]
        words += [int.from_bytes(bytes(table[i : i + 4]), "little", signed=True) for i in range(0, 16, 4)]
    return tuple(words)
