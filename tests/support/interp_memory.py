"""Memory as a GPU program must see it: every access inside an argument tensor, masked lanes undefined, bf16 atomics."""
from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as stock

from tritonq.interpreter.floats import BF16, RAW, Builder, Handle, from_float, to_float32


class OutOfBounds(IndexError):
    """A kernel in the interpreter addressed memory outside every tensor that it was given."""


_ranges: list[tuple[int, int]] = []


def _note_ranges(argument) -> None:
    """Record the bytes that a tensor argument (or those in a tuple or descriptor) addresses: the view's extent, not its storage."""
    if isinstance(argument, tuple):
        for part in argument:
            _note_ranges(part)
    elif hasattr(argument, "base") and hasattr(argument, "block_shape"):
        _note_ranges(argument.base)
    elif hasattr(argument, "data_ptr"):
        tensor = stock._unwrap_tensor(argument)
        if tensor.numel():
            extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1
            _ranges.append((tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size()))


def _init_args(original):
    def init_args(self, args, kwargs):
        host_args, host_kwargs = original(self, args, kwargs)
        _ranges.clear()
        for argument in (*host_args, *host_kwargs.values()):
            _note_ranges(argument)
        return host_args, host_kwargs

    return init_args


def _check(pointers, mask, what: str, size: int) -> None:
    addresses = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.data.shape))
    addresses = addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)]
    if not addresses.size:
        return
    inside = np.zeros(addresses.shape, bool)
    for low, high in _ranges:
        inside |= (addresses >= low) & (addresses + np.uint64(size) <= high)
    if not inside.all():
        count, first = int((~inside).sum()), int(addresses[~inside][0])
        raise OutOfBounds(f"{what}: {count} of {addresses.size} lanes outside every argument tensor (first at {first:#x})")


def _masked_load(original):
    def load(self, pointers, mask, other, *args, **kwargs):
        element = pointers.get_element_ty()
        numpy_type = stock._get_np_dtype(element)
        _check(pointers, mask, "load", numpy_type.itemsize)
        if other is None and not mask.data.all():
            poison = np.empty(pointers.data.shape, numpy_type)
            poison.view(np.uint8)[...] = 0xFF if numpy_type.kind == "f" or element in RAW else 0xA5
            other = Handle(poison, element)
        return original(self, pointers, mask, other, *args, **kwargs)

    return load


def _masked_store(original):
    def store(self, pointers, value, mask, *args, **kwargs):
        _check(pointers, mask, "store", stock._get_np_dtype(pointers.get_element_ty()).itemsize)
        return original(self, pointers, value, mask, *args, **kwargs)

    return store


def _bf16_atomic_add(pointers, value, mask) -> Handle:
    previous = np.zeros(value.data.shape, np.uint16)
    lane_mask = np.broadcast_to(mask.data, value.data.shape)
    on = np.ones((1,), bool)
    for lane in np.ndindex(value.data.shape):
        if not lane_mask[lane]:
            continue
        address = np.array([pointers.data[lane]], np.uint64)
        current = stock._interpreter.load(address, on, np.zeros(1, np.uint16), np.dtype(np.uint16))
        previous[lane] = current[0]
        total = to_float32(Handle(current, BF16)) + to_float32(Handle(np.array([value.data[lane]], np.uint16), BF16))
        stock._interpreter.store(address, from_float(total, BF16), on)
    return Handle(previous, BF16)


def _atomic_rmw(original):
    def atomic(self, operation, pointers, value, mask, sem, scope):
        _check(pointers, mask, "atomic", stock._get_np_dtype(value.dtype.scalar).itemsize)
        if value.dtype.scalar != tl.bfloat16:
            return original(self, operation, pointers, value, mask, sem, scope)
        if operation != stock._ir.ATOMIC_OP.FADD:
            raise NotImplementedError(f"bf16 atomic {operation}")
        return _bf16_atomic_add(pointers, value, mask)

    return atomic


def install() -> None:
    """Check bounds of loads, stores and atomics; poison masked lanes without ``other`` (NaN, 0xA5); add bf16 atomic addition."""
    stock.GridExecutor._init_args_hst = _init_args(stock.GridExecutor._init_args_hst)
    Builder.create_masked_load = _masked_load(Builder.create_masked_load)
    Builder.create_masked_store = _masked_store(Builder.create_masked_store)
    Builder.create_atomic_rmw = _atomic_rmw(Builder.create_atomic_rmw)
