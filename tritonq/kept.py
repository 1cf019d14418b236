"""Floor 0. Tensors that a process makes once and keeps: tables of levels, bounds, words."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache, wraps

import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextlib.contextmanager
def plainly():
    """Make ordinary tensors on the CPU, whatever the caller has set: FakeTensorMode, ``torch.device("meta")``, inference mode.

    Default dtypes, which a process has one of, cannot be set aside: floats are made with a dtype of their own.
    """
    with torch.inference_mode(False), torch.no_grad(), _disable_current_modes(), torch.device("cpu"):
        yield


def kept(function: Callable) -> Callable:
    """``functools.cache`` for a function that returns tensors."""

    @wraps(function)
    def made(*args):
        with plainly():
            return function(*args)

    return cache(made)
