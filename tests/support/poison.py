"""Tensors that betray a kernel that reads what it should not, or leaves unwritten what it should write."""
from __future__ import annotations

import torch

_FENCE = 64  # elements on each side; a whole number of 16-byte vectors for every dtype


def _fill(tensor: torch.Tensor) -> None:
    """All bits set: NaN in every float type that tritonq uses, -1 or the largest value in integers."""
    if tensor.numel():
        tensor.view(torch.uint8).fill_(0xFF) if tensor.dtype != torch.bool else tensor.fill_(True)


def poisoned_empty(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.Tensor:
    """An uninitialised tensor filled with NaN (floats) or 0xFF bytes (integers), so that an unwritten element shows."""
    tensor = torch.empty(*shape, dtype=dtype, device=device)
    _fill(tensor.view(-1) if tensor.dim() else tensor.view(1))
    return tensor


def fenced(tensor: torch.Tensor, *, before: int = _FENCE, after: int = _FENCE) -> torch.Tensor:
    """A copy with the same values, shape and strides whose storage is surrounded by poison.

    Holes between strided elements are poison too. ``check_fence`` tells whether a kernel wrote outside. Choose ``before`` to test
    misaligned pointers: one element of offset makes the copy only element-aligned.
    """
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1 if tensor.numel() else 0
    storage = poisoned_empty(before + extent + after, dtype=tensor.dtype, device=tensor.device)
    inner = storage.as_strided(tensor.shape, tensor.stride(), before)
    inner.copy_(tensor)
    return inner


def check_fence(tensor: torch.Tensor, *, before: int = _FENCE) -> None:
    """Raise AssertionError where the poison around a ``fenced`` tensor was overwritten."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    storage = tensor.as_strided((size,), (1,), 0).clone()
    outside = torch.ones(size, dtype=torch.bool, device=tensor.device)
    outside.as_strided(tensor.shape, tensor.stride(), before).fill_(False)
    touched = (storage.view(torch.uint8).view(size, -1) != 0xFF).any(1) & outside
    if touched.any():
        where = touched.nonzero().flatten().tolist()
        raise AssertionError(f"{len(where)} elements outside the tensor were overwritten, first at offset {where[0] - before}")
