"""Part of the interpreter's repair: what an operation asks of types, shapes and numpy dtypes is worked out once.

Stock Triton makes all of it anew at every operation, a quarter of the time that a kernel takes.
"""
from __future__ import annotations

import functools
import math

import triton.language as tl
from triton._utils import validate_block_shape
from triton.language.core import _unwrap_shape
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as stock

_remembered = functools.lru_cache(maxsize=None, typed=True)  # a size of 1.0 or True is not 1


@_remembered
def _shape(*sizes) -> tuple[tl.tuple, int]:
    """The shape and the number of elements of a block type."""
    if not sizes:
        raise TypeError("0d block_type is forbidden")
    if any(isinstance(size, tl.constexpr) for size in sizes):
        return _shape(*_unwrap_shape(sizes))
    return tl.tuple(sizes), validate_block_shape(sizes)


@_remembered
def _constexpr_shape(*sizes) -> tuple[tl.tuple, tl.constexpr]:
    """The same of a tensor."""
    return tl.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(math.prod(sizes))


def _block_type(self, element_ty, shape):
    self.element_ty = element_ty
    self.shape, self.numel = _shape(*shape)


def _tensor(self, handle, type):
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _constexpr_shape(*type.shape.values) if type.is_block() else _constexpr_shape()


def _broadcast(original):
    def broadcast_impl_value(self, lhs, rhs):
        if lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape:
            return lhs, rhs
        return original(self, lhs, rhs)

    return broadcast_impl_value


def _np_dtype(original):
    of_scalar = functools.cache(original)

    def np_dtype(type):
        scalar = type.scalar
        return original(scalar) if scalar.is_ptr() else of_scalar(scalar)

    return np_dtype


def install() -> None:
    """Remember what is the same from one operation to the next."""
    tl.block_type.__init__ = _block_type
    tl.block_type.name = property(lambda self: f"<{self.shape}, {self.element_ty}>")
    tl.tensor.__init__ = _tensor
    TritonSemantic.broadcast_impl_value = _broadcast(TritonSemantic.broadcast_impl_value)
    stock._get_np_dtype = _np_dtype(stock._get_np_dtype)
