"""Floor 4. What can be asked at all: the one statement of every rule that does not depend on a kernel."""
from __future__ import annotations

from types import NoneType

import torch

from ..dtypes import FLOAT_DTYPES, dtype_name
from ..errors import InvalidProblemError
from ..layouts import LAYOUTS
from ..reference.matrix import ACTIVATIONS
from ..scheme import Scheme
from .core import OK, Status, Target, expect_type
from .descriptors import Desc, MatmulDesc, QuantizeDesc

# Offsets inside kernels are 64-bit; a column number, the end of a tile included, fits 32 bits.
MAX_DIMENSION = 2**31 - 2**16

_KINDS = {
    "dtype": torch.dtype, "source_dtype": torch.dtype, "scheme": Scheme, "target": Target, "layout": str, "act_order": bool,
    "bias": bool, "activation": (str, NoneType), "residual": bool,
}  # fmt: skip


def check(desc: Desc) -> None:
    """Raise InvalidProblemError where :func:`valid` says no."""
    if not (status := valid(desc)):
        raise InvalidProblemError(f"{desc}: {status.reason}")


def valid(desc: Desc) -> Status:
    """Whether the request itself makes sense, whatever the kernel. Wrong Python types raise InvalidProblemError: they cannot be shown."""
    for name, value in vars(desc).items():
        if name in _KINDS:
            expect_type(value, _KINDS[name], name)
    if desc.dtype not in FLOAT_DTYPES:
        return Status(f"dtype {dtype_name(desc.dtype)} is not one of {', '.join(map(dtype_name, FLOAT_DTYPES))}; convert with .to()")
    sizes = {"n": desc.n, "k": desc.k} | ({"m": desc.m} if hasattr(desc, "m") else {})
    for name, size in sizes.items():
        if not isinstance(size, int):
            return Status(f"{name}={size!r} is not a whole number")
        if not 0 <= size <= MAX_DIMENSION:
            return Status(f"{name}={size} is not in 0..{MAX_DIMENSION}; split the matrix")
    if desc.layout not in LAYOUTS:
        return Status(f"unknown layout {desc.layout!r}; known layouts: {', '.join(LAYOUTS)}")
    if isinstance(desc, QuantizeDesc) and (reason := LAYOUTS[desc.layout].refuses(desc.scheme, desc.dtype)):
        return Status(reason)
    if isinstance(desc, MatmulDesc) and desc.activation is not None and desc.activation not in ACTIVATIONS:
        return Status(f"unknown activation {desc.activation!r}; known activations: {', '.join(ACTIVATIONS)}")
    if isinstance(desc, MatmulDesc) and desc.activation == "swiglu" and desc.n % 2:
        return Status(f"activation 'swiglu' needs a weight of as many gate rows as up rows, got n={desc.n}; concatenate both along N")
    return OK
