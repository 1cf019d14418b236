"""What a caller may have set around a call, and a process without the tables that earlier calls made."""
from __future__ import annotations

import contextlib
import functools
import gc

import torch

from tritonq.formats import FORMATS


def forget_tables() -> None:
    """Have every table of the library made anew."""
    for thing in gc.get_objects():
        if type(thing) is functools._lru_cache_wrapper and getattr(thing, "__module__", "").startswith("tritonq."):
            thing.cache_clear()
    for fmt in FORMATS.values():
        vars(fmt).pop("levels", None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    """Tables are made under that dtype, and forgotten before and after."""
    before = torch.get_default_dtype()
    forget_tables()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        forget_tables()
