"""Makes Triton's CPU interpreter numerically faithful and strict. Call ``repair()`` once, with ``TRITON_INTERPRET=1`` set.

After it, for Triton 3.6 to 3.9: bf16, fp8, ``fma`` and ``dot`` round as hardware does, as for every user (``tritonq.interpreter``); loads,
stores and atomics outside every argument tensor raise ``OutOfBounds`` and masked lanes are poison (``interp_memory``);
``tl.device_assert`` is live and 32-bit overflow in integer arithmetic raises; ``tl.dot`` refuses shapes below the hardware's minimum K;
``libdevice.rint`` and its kin work; inline PTX is evaluated from its text (``ptx_inline``).
"""
from __future__ import annotations

import dataclasses
import os
import types
from typing import NamedTuple

import numpy as np
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter as stock

from tritonq.interpreter import install
from tritonq.interpreter.floats import Builder, Handle, to_float32

from . import interp_memory, interp_types, ptx_inline
from .interp_memory import OutOfBounds

__all__ = ["OutOfBounds", "is_repaired", "repair"]

_MIN_DOT_K = {8: 32, 16: 16, 32: 8, 64: 4}
_LIBDEVICE = {
    "rint": np.rint,
    "nearbyint": np.rint,
    "trunc": np.trunc,
    "round": lambda v: np.trunc(v + np.copysign(0.5, v)),
    "tanh": np.tanh,
}
_repaired = False


class _AsmCall(NamedTuple):
    """Stands in for the compiler's operation object, of which Triton asks the results one by one."""

    results: list

    def get_result(self, index: int):
        return self.results[index]


def _inline_asm(self, asm, constraints, values, types, is_pure, pack):
    scalars = [t.scalar if hasattr(t, "scalar") else t for t in types]
    widths = [t.primitive_bitwidth for t in scalars]
    raw = ptx_inline.run(str(asm), [v.data for v in values], widths, int(pack))
    return _AsmCall([Handle(r.view(stock._get_np_dtype(t)), t) for r, t in zip(raw, scalars)])


def _libdevice_function(function):
    def apply(x, *_args, **_kwargs):
        handle = x.handle
        values = function(to_float32(handle))
        return tl.tensor(Handle(values.astype(handle.data.dtype), handle.dtype), x.type)

    return apply


def _patch_language_once() -> None:
    """Give ``triton.language`` its interpreted functions for good. Stock Triton looks for all of them again at every launch and every call
    of a device function, which is half of the time that a kernel takes."""
    stock._patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    stock._patch_lang = lambda fn: stock._LangPatchScope()


def is_repaired() -> bool:
    """Whether ``repair()`` has run in this process."""
    return _repaired


def repair() -> None:
    """Install every repair and check; a second call does nothing.

    Raises:
        RuntimeError: ``TRITON_INTERPRET`` is not 1, so that nothing would be interpreted.
    """
    global _repaired
    if _repaired:
        return
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("the interpreter repair needs TRITON_INTERPRET=1, set before triton is imported")
    interp_types.install()
    install()
    interp_memory.install()
    # debug makes device_assert live and has Triton emit its overflow checks for narrow integer arithmetic
    stock.interpreter_builder.options = dataclasses.replace(stock.interpreter_builder.options, debug=True)
    stock.interpreter_builder.codegen_fns["min_dot_size"] = lambda lhs, rhs: (1, 1, _MIN_DOT_K[lhs.scalar.primitive_bitwidth])
    for name, function in _LIBDEVICE.items():
        if hasattr(libdevice, name):
            setattr(libdevice, name, _libdevice_function(function))
    Builder.create_inline_asm = _inline_asm
    _patch_language_once()
    np.seterr(all="ignore")  # infinities and NaN are values here, as on a GPU
    _repaired = True
