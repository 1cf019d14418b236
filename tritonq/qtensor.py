"""Floor 1. A quantized matrix: packed codes, scales, and the scheme that says how to read them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod
from weakref import WeakValueDictionary

import torch

from .act_order import check_order, column_order, inverse
from .backend import named_device
from .derived import Derived
from .dtypes import FLOAT_DTYPES, NAMED_DTYPES, dtype_name
from .errors import InvalidProblemError, UnsupportedError
from .formats.dynamic_map import DYNAMIC_MAP
from .formats.packing import computable, pack_row, unpack_row
from .layouts import get_layout
from .layouts.core import Expected
from .scheme import DQ_BLOCK, Scheme

# Fields of a QTensor that files hold, and what they are called there.
STORED = {"packed": "packed", "stored_scale": "scale", "zero_point": "zero_point", "second_scale": "second_scale",
          "scale_offset": "scale_offset", "column_order": "column_order"}  # fmt: skip
# The QTensors that are alive, by form and tensors, so that an operator of PyTorch, which is given those, finds what was prepared for one.
_alive: WeakValueDictionary[tuple, QTensor] = WeakValueDictionary()
# Of those that share ``packed``, the one that was made or found last, by the identity of that tensor.
_of_packed: WeakValueDictionary[int, QTensor] = WeakValueDictionary()
find_of_packed = _of_packed.data.get  # without the Python of WeakValueDictionary.get: a weak reference or None
# A weight in the schema of an operator. What most schemes have stands by itself, since a list costs a call 0.3 us (docs/launch.md).
WEIGHT = "Tensor packed, Tensor? scale, Tensor? zero_point, Tensor[]? others, str form"
_OTHERS = "second_scale", "scale_offset", "expanded_scale", "column_order"


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized ``[N, K]`` matrix. Not a torch.Tensor: arithmetic on it is a TypeError, :meth:`dequantize` is explicit.

    ``value[n, k] = scale * (level(code) - zero_point)``, or ``zero_point + scale * code`` for float zero (``fz``) schemes.

    Attributes:
        scheme: the :class:`Scheme`.
        shape: logical ``(N, K)``.
        dtype: of the tensor that was quantized; what :meth:`dequantize` returns by default.
        packed: uint8 ``[N, ceil(K * bits / 8)]``, the canonical bit stream (element 2i of 4-bit codes in the low nibble).
        stored_scale: ``[groups along N, groups along K]`` as stored (``dq``: uint8 codes), None for plain casts.
        zero_point: same shape, uint8, or a float for ``fz``; None for symmetric and level formats.
        second_scale: nvfp4: float32 scalar; ``dq``: float32 ``[ceil(groups / 256)]``; else None.
        scale_offset: ``dq``: float32 scalar that was subtracted from the scales; else None.
        layout: ``"row"``, or a kernel's own such as ``"frag"``: then ``packed``, ``stored_scale`` and ``zero_point`` are in that
            layout's order (docs/layouts.md) and everything else here means the same matrix.
        expanded_scale: ``dq`` in a kernel's layout: the float32 scales that the kernel loads; None in ``row``.
        column_order: act-order: int32 ``[K]``, packed column i is column ``column_order[i]`` of the matrix; None where columns lie in
            their own order. ``codes()``, ``dequantize()`` and ``matmul`` speak of the matrix; ``packed`` is sorted.
        form: everything but the tensors as a text, such as ``"int4.g128 4096x4096 bfloat16 row"``; see :meth:`from_flat`.
        operands: tensors and form as ``torch.ops.tritonq`` takes them: ``torch.ops.tritonq.matmul(x, *q.operands)``.

    Every tensor is contiguous, on one device, and of the shape and dtype that scheme and layout say; InvalidProblemError otherwise.
    """

    scheme: Scheme
    shape: tuple[int, int]
    dtype: torch.dtype
    packed: torch.Tensor
    stored_scale: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None
    second_scale: torch.Tensor | None = None
    scale_offset: torch.Tensor | None = None
    layout: str = "row"
    expanded_scale: torch.Tensor | None = None
    column_order: torch.Tensor | None = None

    def __post_init__(self):
        scheme = self.scheme
        if not isinstance(scheme, Scheme):
            raise InvalidProblemError(f"scheme must be a Scheme, got {type(scheme).__name__}; use Scheme.parse")
        if not isinstance(self.shape, tuple) or len(self.shape) != 2 or any(not isinstance(d, int) or d < 0 for d in self.shape):
            raise InvalidProblemError(f"shape must be two non-negative integers (N, K), got {self.shape!r}")
        if self.dtype not in FLOAT_DTYPES:
            raise InvalidProblemError(f"dtype must be float16, bfloat16, float32 or float64, got {self.dtype}")
        layout = get_layout(self.layout)
        if reason := layout.refuses(scheme, self.dtype):
            raise UnsupportedError(reason)
        expected = layout.expected(scheme, self.shape, self.dtype)
        if self.column_order is not None:
            expected["column_order"] = ((self.shape[1],), torch.int32)
        for name, want in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and not isinstance(tensor, torch.Tensor):
                raise InvalidProblemError(f"{name} must be a Tensor, got {type(tensor).__name__}")
            got = None if tensor is None else (tuple(tensor.shape), tensor.dtype)
            if got != want:
                where = "" if self.layout == "row" else f" in layout {self.layout}"
                raise InvalidProblemError(f"{scheme} of shape {self.shape} {self.dtype}{where} needs {name} = {want}, got {got}")
            if tensor is not None and tensor.device != self.packed.device:
                raise InvalidProblemError(f"{name} is on {tensor.device}, packed on {self.packed.device}; move both to one device")
            if tensor is not None and not tensor.is_contiguous():
                strides = f"shape {got[0]} with strides {tensor.stride()}"
                raise InvalidProblemError(f"{name} must be contiguous, got {strides}; {name}.contiguous() is a copy that is")
        form = form_of(scheme, self.shape, self.dtype, self.layout, act_order=self.column_order is not None)
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "operands", operands(vars(self), self.form))
        _alive[(self.form, *map(id, self.flat()))] = _of_packed[id(self.packed)] = self

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @Derived
    def scale(self) -> torch.Tensor | None:
        """Scales ``[groups along N, groups along K]``: as stored, or expanded to float32 for ``dq``. The same in every layout."""
        if self.layout != "row":
            return self.relayout("row").scale
        if "dq" not in self.scheme.options:
            return self.stored_scale
        table = torch.tensor(DYNAMIC_MAP, dtype=torch.float32, device=self.device)
        flat = self.stored_scale.flatten()
        outer = self.second_scale.repeat_interleave(DQ_BLOCK)[: flat.numel()]
        expanded = table[flat.long()] * outer + self.scale_offset
        return expanded.nan_to_num().view(self.stored_scale.shape)  # a scale near the largest float32 must not become Inf

    @Derived
    def group_scale(self) -> torch.Tensor | None:
        """What a level is multiplied by, float32 (float64 for s64): the stored scale, times the tensor's scale for nvfp4."""
        if self.stored_scale is None:
            return None
        scale = self.scale if self.scale.dtype == torch.float64 else self.scale.float()
        return scale * self.second_scale if self.scheme.recipe == "nv" else scale

    @Derived
    def column_rank(self) -> torch.Tensor | None:
        """The inverse of ``column_order``: column k of the matrix is packed column ``column_rank[k]``."""
        return None if self.column_order is None else inverse(self.column_order)

    @property
    def g_idx(self) -> torch.Tensor:
        """int32 ``[K]``: the group of each column of the matrix along K; 0 where a group holds whole rows."""
        columns = self.scheme.group_shape(*self.shape)[1] if self.scheme.has_scale else max(self.shape[1], 1)
        packed = torch.arange(self.shape[1], dtype=torch.int32, device=self.device) // columns
        return packed if self.column_order is None else packed[self.column_rank]

    @cached_property
    def _products(self) -> dict:
        """What :mod:`tritonq.plans.bound` keeps for this weight. No field: copies, files and other layouts start without it."""
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they lie in memory: codes, metadata, and what the layout pads (see docs/layouts.md)."""
        return sum(tensor.nbytes for f in fields(self) if isinstance(tensor := getattr(self, f.name), torch.Tensor))

    @property
    def bits_per_weight(self) -> float:
        """``8 * nbytes / (N * K)``, metadata counted; the format's bits for an empty matrix."""
        n, k = self.shape
        return 8 * self.nbytes / (n * k) if n * k else float(self.scheme.format.bits)

    def codes(self) -> torch.Tensor:
        """Logical codes ``[N, K]``: int8 for ``int*`` formats, uint8 otherwise, int32 bit patterns for fp16 and bf16.

        Example:
            >>> import torch, tritonq
            >>> tritonq.quantize(torch.tensor([[7.0, -1.0]]), "int4").codes().tolist()
            [[7, -1]]
        """
        fmt = self.scheme.format
        codes = unpack_row(self.relayout("row").packed, fmt.bits, self.shape[1])
        codes = codes if self.column_order is None else codes.index_select(1, self.column_rank)
        if not fmt.signed:
            return codes
        return (codes << (8 - fmt.bits)).view(torch.int8) >> (8 - fmt.bits)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The decoded matrix ``[N, K]``; see :func:`tritonq.dequantize`."""
        from .ops import dequantize  # the one arrow that points up: a method is where users look for it

        return dequantize(self, dtype)

    def to(self, device: torch.device | str) -> QTensor:
        """This matrix with every tensor on ``device``; itself when it is there already."""
        device = checked_device(device)
        if device == self.device:
            return self
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return QTensor(**{name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in moved.items()})

    def relayout(self, name: str) -> QTensor:
        """The same matrix in another layout, losslessly: ``q.relayout(name).relayout(q.layout)`` holds the same bytes as ``q``.

        ``"row"`` is canonical and takes every scheme. ``"frag"`` is the order of the tensor cores, ``"ksplit"`` the portable one. Do it
        once, when a model is loaded. Itself when it is there already.

        Raises:
            UnsupportedError: there is no such layout, or it cannot hold this scheme.

        Example:
            >>> import torch, tritonq
            >>> q = tritonq.quantize(torch.randn(100, 200), "nf4").relayout("frag")
            >>> q.packed.shape, q.codes().shape
            (torch.Size([2, 2048]), torch.Size([100, 200]))
        """
        target = get_layout(name)
        if name == self.layout:
            return self
        if reason := target.refuses(self.scheme, self.dtype):
            raise UnsupportedError(reason)
        if self.layout != "row":
            self = replace(self, layout="row", **get_layout(self.layout).to_row(self))
        return self if name == "row" else replace(self, layout=name, **target.from_row(self))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name in a file: packed, scale, zero_point, second_scale, scale_offset, column_order; None ones left out.

        Files hold the ``row`` layout, so a matrix in another layout is turned back first.
        """
        row = self.relayout("row")
        return {name: tensor for field, name in STORED.items() if (tensor := getattr(row, field)) is not None}

    def rows(self, indices: torch.Tensor) -> QTensor:
        """The rows ``indices`` (integers ``[T]``, on the same device) as a matrix ``[T, K]`` in ``row``: what an embedding looks up.

        Raises:
            UnsupportedError: rows that share a scale with others (``column``, ``tensor``, blocks), or that double quantization spans.

        Example:
            >>> import torch, tritonq
            >>> tritonq.quantize(torch.tensor([[1.0], [2.0], [4.0]]), "int8").rows(torch.tensor([2, 0])).dequantize().tolist()
            [[4.0], [1.0]]
        """
        if not isinstance(indices, torch.Tensor) or indices.dtype not in (torch.int32, torch.int64) or indices.dim() != 1:
            got = f"{indices.dtype} {list(indices.shape)}" if isinstance(indices, torch.Tensor) else type(indices).__name__
            raise InvalidProblemError(f"rows are named by integers [T], int32 or int64, got {got}")
        if indices.device.type == "cpu" and indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.shape[0]:
            raise InvalidProblemError(f"rows 0 to {self.shape[0] - 1} exist, got {int(indices.min())} to {int(indices.max())}")
        if "dq" in self.scheme.options or (self.scheme.has_scale and self.scheme.group_shape(2, self.shape[1])[0] != 1):
            rule = "rows can be taken where each has scales of its own; take a group size or 'channel', without dq"
            raise UnsupportedError(f"{self.scheme}: {rule}")
        row = self.relayout("row")
        taken = {name: None if getattr(row, name) is None else getattr(row, name)[indices] for name in ("packed", "zero_point")}
        scale = row.stored_scale
        if scale is not None:
            scale = as_bytes(scale)[indices].view(scale.dtype)
        return replace(row, shape=(indices.numel(), self.shape[1]), stored_scale=scale, **taken)

    def flat(self) -> list[torch.Tensor]:
        """Its tensors as they lie in memory; with ``form``, the text of everything else, they are all of it."""
        return [value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)]

    @classmethod
    def from_flat(cls, tensors: list[torch.Tensor], form: str) -> QTensor:
        """The inverse of :meth:`flat`; the same object where it is alive.

        Args:
            tensors: of :meth:`flat`.
            form: ``"scheme NxK dtype layout"``, with ``" act_order"`` where columns are sorted: ``QTensor.form``.

        Raises:
            InvalidProblemError: a form that cannot be read, tensors that are not those of the form.

        Example:
            >>> import torch, tritonq
            >>> q = tritonq.quantize(torch.eye(64), "int4.g32")
            >>> q.form
            'int4.g32 64x64 float32 row'
            >>> tritonq.QTensor.from_flat(q.flat(), q.form) is q
            True
        """
        if (alive := _alive.get(flat_key(tensors, form))) is not None:
            _of_packed[id(alive.packed)] = alive
            return alive
        scheme, shape, dtype, layout, act_order = parse_form(form)
        names = list(expected_flat(scheme, shape, dtype, layout)) + ["column_order"] * act_order
        if len(tensors) != len(names):
            raise InvalidProblemError(f"a weight of form {form!r} has the tensors {', '.join(names)}, got {len(tensors)}")
        return cls(scheme, shape, dtype, layout=layout, **dict(zip(names, tensors, strict=True)))

    @classmethod
    def on_meta(cls, scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype, *, act_order: bool = False) -> QTensor:
        """Shapes and dtypes alone, in layout ``row`` on the meta device: what a loader fills."""
        wanted = expected_flat(scheme, shape, dtype, "row") | ({"column_order": ((shape[1],), torch.int32)} if act_order else {})
        return cls(scheme, shape, dtype, **{name: torch.empty(size, dtype=kind, device="meta") for name, (size, kind) in wanted.items()})

    @classmethod
    def from_tensors(cls, scheme: Scheme | str, shape: tuple[int, int], dtype: torch.dtype, tensors: dict[str, torch.Tensor]) -> QTensor:
        """The inverse of :meth:`tensors`; every shape and dtype is checked against the scheme, and scales must be finite.

        Tensors may have any strides; what is not contiguous is copied.

        Raises:
            InvalidProblemError: a tensor is missing, unknown, of the wrong shape or dtype, a scale is NaN or Inf, or an integer zero point
                is larger than ``2**bits``, the most that GPTQ files hold.
        """
        known = STORED.values()
        if not isinstance(tensors, dict):
            raise InvalidProblemError(f"tensors must be a dict of {', '.join(known)}, got {type(tensors).__name__}")
        if unknown := sorted(str(name) for name in set(tensors) - set(known)):
            raise InvalidProblemError(f"unknown tensors {', '.join(unknown)}; a QTensor holds {', '.join(known)}")
        if "packed" not in tensors:
            raise InvalidProblemError(f"tensor 'packed' is missing; got {', '.join(tensors) or 'none'}")
        shape = tuple(shape) if isinstance(shape, list | torch.Size) else shape
        tensors = {name: tensor.contiguous() if isinstance(tensor, torch.Tensor) else tensor for name, tensor in tensors.items()}
        q = cls(Scheme.parse(scheme), shape, dtype, **{field: tensors.get(name) for field, name in STORED.items()})
        if q.column_order is not None:
            check_order(q.column_order)
        for name, tensor in tensors.items():
            if tensor is not None and tensor.is_floating_point() and not bool(tensor.to(torch.float64).isfinite().all()):
                raise InvalidProblemError(f"{name} holds NaN or Inf, which would decode to NaN; scales and zero points must be finite")
        # kernels put code and zero point into the few mantissa bits of 16-bit floats
        most, zeros = 2**q.scheme.format.bits, q.zero_point
        if zeros is not None and zeros.dtype == torch.uint8 and zeros.numel() and int(zeros.max()) > most:
            raise InvalidProblemError(f"zero points of {q.scheme} must be in 0..{most}, got {int(zeros.max())}")
        return q

    @classmethod
    def from_codes(cls, scheme: Scheme | str, codes: torch.Tensor, scale: torch.Tensor | None = None,
                   zero_point: torch.Tensor | None = None, *, dtype: torch.dtype,
                   g_idx: torch.Tensor | None = None) -> QTensor:  # fmt: skip
        """A matrix from logical codes and their parameters, as quantizers and checkpoints hold them; the inverse of :meth:`codes`.

        Args:
            scheme: how the codes were made. Schemes with a second level of scales (``dq``, nvfp4) come from :meth:`from_tensors`.
            codes: integers ``[N, K]`` in the format's range, signed for ``int*`` formats.
            scale: ``[groups along N, groups along K]`` in the dtype in which the scheme stores scales for ``dtype``.
            zero_point: same shape; uint8, or a float for ``fz``.
            dtype: of the tensor that was quantized.
            g_idx: act-order: integers ``[K]``, the group of each column. Columns are sorted by it here, once.

        Raises:
            InvalidProblemError: a code out of range, a shape or dtype that does not fit, ``g_idx`` that names a group that is not there
                or gives a group the wrong number of columns.

        Example:
            >>> import torch, tritonq
            >>> codes, scale = torch.tensor([[1, -2, 3, -4]]), torch.tensor([[0.5, 2.0]])
            >>> q = tritonq.QTensor.from_codes("int4.g2", codes, scale, dtype=torch.float32, g_idx=torch.tensor([0, 1, 0, 1]))
            >>> q.dequantize().tolist()
            [[0.5, -4.0, 1.5, -8.0]]
        """
        scheme = Scheme.parse(scheme)
        fmt = scheme.format
        if "dq" in scheme.options or scheme.recipe == "nv":
            raise InvalidProblemError(f"{scheme} has a second level of scales; build it with QTensor.from_tensors")
        if not isinstance(codes, torch.Tensor) or codes.dim() != 2 or codes.dtype.is_floating_point or codes.dtype.is_complex:
            got = f"{codes.dtype} of shape {tuple(codes.shape)}" if isinstance(codes, torch.Tensor) else type(codes).__name__
            raise InvalidProblemError(f"codes must be an integer tensor [N, K], got {got}")
        low, high = fmt.code_range
        codes = computable(codes)
        if codes.numel() and not low <= int(codes.min()) <= int(codes.max()) <= high:
            raise InvalidProblemError(f"codes of {fmt.name} must be in {low}..{high}, got {int(codes.min())}..{int(codes.max())}")
        shape = tuple(codes.shape)
        order = None if g_idx is None else column_order(g_idx, shape[1], scheme.group_size)
        if order is not None:
            order = order.to(codes.device)
            codes = codes.index_select(1, order)
        stored = codes.to(torch.int32) & (2**fmt.bits - 1)
        packed = pack_row(stored if fmt.bits > 8 else stored.to(torch.uint8), fmt.bits)
        named = {"packed": packed, "scale": scale, "zero_point": zero_point, "column_order": order}
        return cls.from_tensors(scheme, shape, dtype, {name: tensor for name, tensor in named.items() if tensor is not None})

    def __reduce__(self):
        return reduce(self)

    def __repr__(self) -> str:
        facts = f"shape={self.shape}, dtype={self.dtype}, {self.bits_per_weight:.3f} bits/weight, device={self.device}"
        layout = "" if self.layout == "row" else f", layout={self.layout}"
        return f"QTensor({str(self.scheme)!r}, {facts}{layout})"


def checked_device(device: torch.device | str) -> torch.device:
    """A device that tensors can be moved to."""
    device = named_device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidProblemError(f"cannot move to {device}: torch sees no CUDA or HIP device; stay on 'cpu'")
    return device


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """8-bit floats as bytes: torch does not index, copy, join or send every one of them."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def flat_key(tensors: list[torch.Tensor], form: str) -> tuple:
    """Under which what ``from_flat`` makes is found while it is alive."""
    if not isinstance(tensors, list | tuple):
        raise InvalidProblemError(f"from_flat takes a list of tensors, what flat() gives; got {type(tensors).__name__} {tensors!r}"[:300])
    return form if isinstance(form, str) else None, *map(id, tensors)  # None is never alive; parse_form says what a form is


def form_of(scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype, layout: str, *, act_order: bool = False) -> str:
    """``QTensor.form``: ``"scheme NxK dtype layout"``, with ``" act_order"`` where columns are sorted."""
    return f"{scheme} {shape[0]}x{shape[1]} {dtype_name(dtype)} {layout}" + " act_order" * act_order


def parse_form(form: str) -> tuple[Scheme, tuple[int, int], torch.dtype, str, bool]:
    """The inverse of :func:`form_of`: (scheme, (N, K), dtype, layout, act_order)."""
    words = form.split(" ") if isinstance(form, str) else []
    sizes = words[1].split("x") if len(words) in (4, 5) else []
    read = len(sizes) == 2 and all(size.isdecimal() for size in sizes) and words[2] in NAMED_DTYPES and words[4:] in ([], ["act_order"])
    if not read:
        raise InvalidProblemError(f"a form reads like 'int4.g128 4096x4096 bfloat16 row', then maybe ' act_order'; got {form!r}")
    return Scheme.parse(words[0]), (int(sizes[0]), int(sizes[1])), NAMED_DTYPES[words[2]], words[3], len(words) == 5


def operands(tensors: dict[str, torch.Tensor | None], form: str) -> tuple:
    """The weight of these tensors, by field of a QTensor, as an operator of PyTorch takes it: ``WEIGHT``."""
    others = tuple([tensors[name] for name in _OTHERS if tensors.get(name) is not None])
    return tensors["packed"], tensors.get("stored_scale"), tensors.get("zero_point"), others or None, form


def flat_operands(packed: torch.Tensor, scale: torch.Tensor | None, zero_point: torch.Tensor | None,
                  others: Sequence[torch.Tensor] | None) -> list[torch.Tensor]:  # fmt: skip
    """The tensors of :func:`operands` as :meth:`QTensor.flat` has them."""
    return [tensor for tensor in (packed, scale, zero_point, *(others or ())) if tensor is not None]


def expected_flat(scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype, layout: str) -> Expected:
    """Shape and dtype of each tensor of ``QTensor.flat`` without act-order, in its order."""
    expected = get_layout(layout).expected(scheme, shape, dtype)
    return {f.name: want for f in fields(QTensor) if (want := expected.get(f.name)) is not None}


def expected_bytes(scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype, layout: str) -> int:
    """``QTensor.nbytes`` of such a matrix without act-order."""
    return sum(prod(size) * kind.itemsize for size, kind in expected_flat(scheme, shape, dtype, layout).values())


def reduce(value) -> tuple:
    """How the fields of a QTensor, and no more, are pickled: 8-bit floats as (bytes, dtype), since torch cannot pickle their storage."""
    state = {f.name: getattr(value, f.name) for f in fields(value)}
    small = {name: (part.view(torch.uint8), part.dtype) for name, part in state.items()
             if isinstance(part, torch.Tensor) and part.dtype.itemsize == 1 and part.dtype != torch.uint8}  # fmt: skip
    return _unpickle, (type(value), state | small)


def _unpickle(kind: type, state: dict):
    pairs = {name: value for name, value in state.items() if isinstance(value, tuple) and isinstance(value[0], torch.Tensor)}
    return kind(**state | {name: stored.view(dtype) for name, (stored, dtype) in pairs.items()})
