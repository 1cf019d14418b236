"""One process runs kernels one way: Triton decides at import between compiled and interpreted functions."""
from __future__ import annotations

import os
import sys

import pytest

_claimed_by: str | None = None  # the folder that wanted this process without TRITON_INTERPRET
_alone: str | None = None  # the folder that replaces Triton's driver in this process


def _refuse(folder: str, reason: str) -> None:
    raise pytest.UsageError(f"{folder} {reason}; run the whole suite with `python tests/run.py`, or one folder with `pytest {folder}`")


def require_alone(folder: str) -> None:
    """Refuse a process that other folders share."""
    global _alone
    if _claimed_by is not None or os.environ.get("TRITON_INTERPRET", "0") != "0":
        _refuse(folder, f"replaces Triton's driver and shares this process with {_claimed_by or 'the interpreter'}")
    _alone = folder


def require_compiled(folder: str) -> None:
    """Refuse a process in which kernels are interpreted, and keep it that way."""
    global _claimed_by
    if _alone is not None:
        _refuse(folder, f"shares this process with {_alone}, which replaces Triton's driver")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        _refuse(folder, "needs a process without TRITON_INTERPRET, which is set here")
    _claimed_by = folder


def require_interpreted(folder: str) -> None:
    """Set ``TRITON_INTERPRET=1``, or refuse a process in which Triton was imported, or is wanted, without it."""
    if _claimed_by is not None or _alone is not None:
        _refuse(folder, f"runs kernels in the interpreter, but shares this process with {_claimed_by or _alone}, which must not")
    if os.environ.get("TRITON_INTERPRET") != "1" and "triton" in sys.modules:
        _refuse(folder, "runs kernels in the interpreter, but triton was already imported without TRITON_INTERPRET=1 in this process")
    os.environ["TRITON_INTERPRET"] = "1"
