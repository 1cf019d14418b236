"""The families of checkpoints that are read. A further one is a file of its own and a line here."""
from __future__ import annotations

from .bitsandbytes import BitsAndBytes
from .family import Family
from .native import Native

FAMILIES: tuple[Family, ...] = (Native(), BitsAndBytes())
