"""The families of checkpoints that are read, and those that are written. A further one is a file of its own and a line here."""
from __future__ import annotations

from .bitsandbytes import BitsAndBytes
from .decoded import Decoded
from .family import Family, Target
from .native import Native

FAMILIES: tuple[Family, ...] = (Native(), BitsAndBytes())
TARGETS: tuple[Target, ...] = (Native(), BitsAndBytes(), Decoded())
