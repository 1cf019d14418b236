"""Which implementation runs: compiled Triton, Triton's interpreter, or the torch reference."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import torch

from ._triton import INTERPRETED, triton
from .errors import InvalidProblemError

_CHOICES = ("auto", "reference", "triton")


def backend(device: torch.device | str | None = None) -> str:
    """Name what would run for tensors on ``device`` (default: cuda where there is one, else cpu).

    Returns ``"triton"`` (compiled kernels), ``"interpreter"`` (the same kernels, where
    ``TRITON_INTERPRET=1`` was set before tritonq was imported) or ``"reference"`` (vectorised torch). The environment variable
    ``TRITONQ_BACKEND`` = ``auto`` | ``reference`` | ``triton`` overrides the choice.

    Raises:
        InvalidProblemError: ``TRITONQ_BACKEND`` holds another word, or asks for Triton where it is not installed; ``device`` names none.

    Example:
        >>> backend("cpu") in ("reference", "interpreter", "triton")
        True
    """
    choice = os.environ.get("TRITONQ_BACKEND") or "auto"
    if choice not in _CHOICES:
        raise InvalidProblemError(f"TRITONQ_BACKEND={choice!r} is not one of {', '.join(_CHOICES)}")
    if choice == "triton" and triton is None:
        raise InvalidProblemError("TRITONQ_BACKEND=triton, but Triton is not installed; pip install triton or unset the variable")
    device = named_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    if choice == "reference" or triton is None:
        return "reference"
    if INTERPRETED:
        return "interpreter"
    return "triton" if choice == "triton" or device.type != "cpu" else "reference"


def named_device(device: torch.device | str) -> torch.device:
    """The device of that name; InvalidProblemError where there is none."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidProblemError(f"device must name a torch device such as 'cpu' or 'cuda:0', got {device!r}") from error


def environment() -> tuple[Callable, str | bytes]:
    """A way to read the variable that :func:`backend` obeys as fast as a dict, to compare with an earlier answer: (get, name).

    ``os.environ`` encodes and decodes on every look-up, which takes as long as a kernel launch.
    """
    try:
        return os.environ._data.get, os.environ.encodekey("TRITONQ_BACKEND")
    except AttributeError:
        return os.environ.get, "TRITONQ_BACKEND"


def current_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Make ``device`` the current one, because Triton launches on the current device whatever its arguments live on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def as_computed(device: torch.device) -> contextlib.AbstractContextManager:
    """Products in the dtypes that are written, also under autocast."""
    return torch.autocast(device.type, enabled=False)


def reshaped(out: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """``out``, which nothing else holds, in another shape. A view, made where autograd does not look, could not be written in place."""
    return out if out.shape == shape else torch.ops.aten._unsafe_view(out, shape)


def uses_kernels(device: torch.device | str) -> bool:
    """Whether tensors on ``device`` go through the Triton kernels (compiled or interpreted)."""
    return backend(device) != "reference"
