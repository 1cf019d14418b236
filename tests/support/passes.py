"""Triton's passes with MLIR's verifier at the end of every stage, not after each of some seventy passes: a third of a compilation less.

The passes are the same, and so is what they make. Not seen is a module that one pass leaves invalid and a later one of the stage mends:
``tests/compiled/test_passes.py`` keeps the verifier after each pass, and so does everything on Triton 3.6.
"""
from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from unittest import mock

from triton._C import libtriton
from triton._C.libtriton import ir

# mlir::PassManager::enableVerifier(bool) has no Python name; Triton 3.6 does not export it
_enable_verifier = getattr(ctypes.CDLL(libtriton.__file__), "_ZN4mlir11PassManager14enableVerifierEb", None)
KNOWN = _enable_verifier is not None and type(ir.pass_manager).__module__ == "nanobind"


class _Instance(ctypes.Structure):
    """nanobind's ``nb_inst``, a Python object that holds a C++ object: where that begins."""

    _fields_ = [("head", ctypes.c_byte * object.__basicsize__), ("offset", ctypes.c_int32),
                ("state", ctypes.c_uint32, 2), ("direct", ctypes.c_uint32, 1)]  # fmt: skip


_PLAIN = ir.pass_manager


class _PassManager(_PLAIN):
    __slots__ = ()

    def __init__(self, context):
        super().__init__(context)
        instance = _Instance.from_address(id(self))
        assert instance.direct and instance.offset == ctypes.sizeof(_Instance)
        _enable_verifier(ctypes.c_void_p(id(self) + instance.offset), ctypes.c_bool(False))

    def run(self, module, stage):
        super().run(module, stage)
        if not module.verify():
            raise RuntimeError(f"{stage} left an invalid module")


@contextlib.contextmanager
def verified_once_per_stage() -> Iterator[None]:
    """Compilations inside the block verify a module when a stage is done with it, where that can be had (``KNOWN``)."""
    with mock.patch.object(ir, "pass_manager", _PassManager) if KNOWN else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def verified_after_every_pass() -> Iterator[None]:
    """As Triton does it."""
    with mock.patch.object(ir, "pass_manager", _PLAIN):
        yield
