"""Floor 0. What is made of a weight's tensors and kept."""
from __future__ import annotations

import torch


class Derived:
    """A property that is made of a QTensor's scales, offsets or order, and kept: made anew, where it lies, once those were written to or
    lie elsewhere.

    torch counts what is written to a tensor, but not to one of inference mode, and not what collectives write or what goes through storage
    or NumPy: what is made of such is kept as it is.
    """

    def __init__(self, make):
        self.make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner, name):
        self.name, self.key = name, "_" + name

    def __get__(self, q, owner=None):
        if q is None:
            return self
        sources, writes, kept = q.__dict__.get(self.key) or (None, None, None)
        if sources is not None and _writes(sources) == writes:
            return kept
        _, scale, _, others, _ = q.operands
        sources = [tensor for tensor in (scale, *(others or ())) if tensor is not None]
        writes = _writes(sources)
        with torch.inference_mode(False), torch.no_grad():  # what is kept must be one that can be written to, whoever asks
            value = self.make(q)
            if value is None or any(value is tensor for tensor in sources):
                q.__dict__[self.name] = value  # found before this object from now on
                return value
            if kept is not None and kept is not value:
                value = kept.copy_(value)  # kernels have its address
        q.__dict__[self.key] = sources, writes, value
        return value


def _writes(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    return [(_address(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor without memory: while a graph is traced, for one
        return 0
