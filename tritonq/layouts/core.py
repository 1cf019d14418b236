"""Floor 1. What a layout is: which tensors it holds, and the way there and back."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..scheme import Scheme

Fields = dict[str, torch.Tensor | None]
Expected = dict[str, tuple[tuple[int, ...], torch.dtype] | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """One order of a QTensor's tensors in memory. Every layout can be turned back into ``row`` without loss.

    Attributes:
        name: what :meth:`QTensor.relayout` calls it.
        expected: ``(scheme, (N, K), dtype)`` -> shape and dtype of every tensor field of a QTensor, None for absent ones.
        refuses: ``(scheme, dtype)`` -> why this layout cannot hold such a matrix, or None.
        from_row: a QTensor in ``row`` -> its tensor fields in this layout.
        to_row: the inverse.
    """

    name: str
    expected: Callable[[Scheme, tuple[int, int], torch.dtype], Expected]
    refuses: Callable[[Scheme, torch.dtype], str | None]
    from_row: Callable[..., Fields]
    to_row: Callable[..., Fields]

    def __repr__(self) -> str:
        return f"Layout({self.name!r})"
