"""Floor 1. Quantized matrices of one shape and scheme, stacked: the weights of a layer's experts."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod
from weakref import WeakValueDictionary

import torch

from .errors import InvalidProblemError, UnsupportedError
from .layouts import get_layout
from .qtensor import STORED, QTensor, as_bytes, checked_device, expected_flat, flat_key, form_of, operands, parse_form, reduce
from .scheme import Scheme

# The stacks that are alive, as qtensor._alive has the matrices.
_alive: WeakValueDictionary[tuple, QStack] = WeakValueDictionary()


def refuses(scheme: Scheme, rows: int) -> str | None:
    """Why matrices of ``rows`` rows cannot be stacked under ``scheme``, or None. A stack is a matrix ``[E * N, K]`` too, as in files."""
    kind = scheme.granularity.kind
    if kind == "block" and rows % scheme.granularity.rows:
        return f"{scheme} has blocks of {scheme.granularity.rows} rows, which {rows} rows of an expert are no multiple of"
    if kind in ("tensor", "column") or "dq" in scheme.options or scheme.recipe == "nv":
        return f"{scheme} has scales that all rows share, and experts need their own; take a group size or 'channel', without dq"
    return None


@dataclass(frozen=True, eq=False)
class QStack:
    """``E`` quantized matrices ``[N, K]`` of one scheme; made by :meth:`of`. Iterating and indexing give :class:`QTensor` views.

    Attributes:
        scheme: of every matrix.
        shape: ``(E, N, K)``.
        dtype: that was quantized.
        packed, stored_scale, zero_point: the tensors of a QTensor in ``layout``, stacked along a first axis ``E``.
        operands: what ``torch.ops.tritonq.grouped_matmul`` takes, as :attr:`QTensor.operands`.
    """

    scheme: Scheme
    shape: tuple[int, int, int]
    dtype: torch.dtype
    packed: torch.Tensor
    stored_scale: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None
    layout: str = "row"

    def __post_init__(self):
        count, *one = self.shape
        expected = get_layout(self.layout).expected(self.scheme, tuple(one), self.dtype)
        for name in ("packed", "stored_scale", "zero_point"):
            tensor, want = getattr(self, name), expected.get(name)
            got = None if tensor is None else (tuple(tensor.shape), tensor.dtype)
            want = None if want is None else ((count, *want[0]), want[1])
            if got != want:
                rule = f"{count} matrices {one} of {self.scheme} in layout {self.layout} need {name} = {want}"
                raise InvalidProblemError(f"{rule}, got {got}")
        # QTensor.form of each matrix; text, as a compiled graph needs it
        form = form_of(self.scheme, tuple(one), self.dtype, self.layout)
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "operands", operands(vars(self), form))
        _alive[(form, *map(id, self.flat()))] = self

    @classmethod
    def of(cls, q: QTensor, count: int) -> QStack:
        """The matrix ``[E * N, K]`` seen as ``count`` = E matrices, in layout ``row``; no copy where it is in that layout.

        Raises:
            UnsupportedError: a scheme whose scales rows of several matrices share (``tensor``, ``column``, ``dq``, nvfp4).
            InvalidProblemError: rows that are no multiple of ``count``, act-order.

        Example:
            >>> import torch, tritonq
            >>> stack = QStack.of(tritonq.quantize(torch.randn(4 * 32, 64), "nf4"), 4)
            >>> stack.shape, stack[3].shape
            ((4, 32, 64), (32, 64))
        """
        if not isinstance(q, QTensor):
            raise InvalidProblemError(f"QStack.of takes a QTensor, got {type(q).__name__}")
        rows, k = q.shape
        if type(count) is not int or count < 1 or rows % count:
            raise InvalidProblemError(f"{rows} rows cannot be {count!r} matrices of as many rows each")
        if q.column_order is not None:
            raise InvalidProblemError("matrices with act-order cannot be stacked; each has an order of columns of its own")
        if reason := refuses(q.scheme, rows // count):
            raise UnsupportedError(reason)
        q = q.relayout("row")
        tensors = {name: value.view(count, value.shape[0] // count, value.shape[1]) for f in fields(cls)
                   if isinstance(value := getattr(q, name := f.name, None), torch.Tensor)}  # fmt: skip
        return cls(q.scheme, (count, rows // count, k), q.dtype, **tensors)

    @classmethod
    def on_meta(cls, scheme: Scheme, shape: tuple[int, int, int], dtype: torch.dtype) -> QStack:
        """Shapes and dtypes alone, as :meth:`QTensor.on_meta`; raises as :meth:`of` does."""
        count, n, k = shape
        return cls.of(QTensor.on_meta(scheme, (count * n, k), dtype), count)

    def matrix(self) -> QTensor:
        """The matrix ``[E * N, K]``: the inverse of :meth:`of`."""
        row = self.relayout("row")
        flat = {name: value.flatten(0, 1) for f in fields(self)
                if isinstance(value := getattr(row, name := f.name), torch.Tensor)}  # fmt: skip
        return QTensor(self.scheme, (prod(self.shape[:2]), self.shape[2]), self.dtype, **flat)

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.flat())

    @cached_property
    def _matrices(self) -> tuple[QTensor, ...]:
        """Kept, because what is prepared for a product lives on its weight."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}
        each = [{name: tensor[e] for name, tensor in tensors.items()} for e in range(len(self))]
        return tuple(QTensor(self.scheme, self.shape[1:], self.dtype, layout=self.layout, **one) for one in each)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> QTensor:
        return self._matrices[index]

    def __iter__(self) -> Iterator[QTensor]:
        return iter(self._matrices)

    def relayout(self, name: str) -> QStack:
        """Every matrix in another layout; see :meth:`QTensor.relayout`."""
        if name == self.layout:
            return self
        turned = [q.relayout(name).flat() for q in self]
        stacked = [torch.stack([as_bytes(t) for t in one]).view(one[0].dtype) for one in zip(*turned)]
        names = expected_flat(self.scheme, self.shape[1:], self.dtype, name)
        return replace(self, layout=name, **dict(zip(names, stacked, strict=True)))

    def to(self, device: torch.device | str) -> QStack:
        """This stack with every tensor on ``device``."""
        device = checked_device(device)
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}
        return replace(self, **moved)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As :meth:`QTensor.tensors`, each with a first axis ``E``."""
        row = self.relayout("row")
        return {name: tensor for field, name in STORED.items() if (tensor := getattr(row, field, None)) is not None}

    def flat(self) -> list[torch.Tensor]:
        """Its tensors as they lie in memory."""
        return [value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)]

    @classmethod
    def from_flat(cls, tensors: list[torch.Tensor], form: str) -> QStack:
        """The inverse of :meth:`flat`; the same object where it is alive."""
        alive = _alive.get(flat_key(tensors, form))
        if alive is not None:
            return alive
        scheme, shape, dtype, layout, _ = parse_form(form)
        names = list(expected_flat(scheme, shape, dtype, layout))
        if len(tensors) != len(names):
            raise InvalidProblemError(f"stacked weights of form {form!r} have the tensors {', '.join(names)}, got {len(tensors)}")
        return cls(scheme, (tensors[0].shape[0], *shape), dtype, layout=layout, **dict(zip(names, tensors, strict=True)))

    def __reduce__(self):
        return reduce(self)

    def __repr__(self) -> str:
        layout = "" if self.layout == "row" else f", layout={self.layout}"
        return f"QStack({str(self.scheme)!r}, shape={self.shape}, dtype={self.dtype}, device={self.device}{layout})"
