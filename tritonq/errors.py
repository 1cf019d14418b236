"""Errors that tritonq raises. Each text says what was asked, the rule, the value and the way out."""
from __future__ import annotations


class TritonQError(Exception):
    """Base class of every error that tritonq raises on purpose."""


class UnsupportedError(TritonQError, NotImplementedError):
    """The request is meaningful, but no kernel or scheme implements it."""


class InvalidProblemError(TritonQError, ValueError):
    """The request contradicts itself or a rule: a shape, dtype, range, name or Python type."""


class WorkspaceTooSmallError(TritonQError):
    """The workspace that the caller gave holds fewer bytes than ``plan.workspace_size()``."""

    def __init__(self, needed: int, got: int, what: str = "this plan"):
        self.needed, self.got = needed, got
        super().__init__(f"{what} needs a workspace of {needed} bytes, got {got}; allocate plan.workspace_size() bytes")


class CheckpointError(TritonQError, ValueError):
    """A file or folder of tensors is malformed, truncated, or not what its header says."""


class ConfigFileError(TritonQError, ValueError):
    """A file of tuned configs is malformed, or not for what its head and its place say; the text names file and line."""


def shorten(value: object) -> str:
    """``repr(value)``, cut to 80 characters: an error's text stays one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
