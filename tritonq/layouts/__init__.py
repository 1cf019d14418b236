"""Floor 1. How a quantized matrix lies in memory. ``row`` is canonical; the others are what a kernel family reads. One file per layout."""
from __future__ import annotations

from ..errors import InvalidProblemError, UnsupportedError
from .core import Layout
from .frag import FRAG
from .ksplit import KSPLIT
from .row import ROW

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (ROW, FRAG, KSPLIT)}


def get_layout(name: str) -> Layout:
    """The layout called ``name``.

    Raises:
        UnsupportedError: there is no such layout; the text lists the known ones.
        InvalidProblemError: ``name`` is not a text.
    """
    if not isinstance(name, str):
        raise InvalidProblemError(f"a layout is a name such as 'row', got {type(name).__name__} {name!r}"[:200])
    if name not in LAYOUTS:
        raise UnsupportedError(f"unknown layout {name!r}; known layouts: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


__all__ = ["LAYOUTS", "Layout", "get_layout"]
