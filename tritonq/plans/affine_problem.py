"""Floor 4. Descriptors of the plans whose scale and zero point the caller gives.

Four granularities say how a tensor maps to scales; each is a small class that the descriptors of its four operations share.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from ..dtypes import dtype_name
from ..errors import InvalidProblemError, UnsupportedError
from .core import expect_type
from .seed_base import CODES, FLOATS, code_range, one_of, size

_MAX_GROUP = 2**30
_MAX_CODE = 2**22  # integers of this size stay exact in float32
_record = dataclass(frozen=True, kw_only=True)


@_record
class _PerTensor:
    """One scale for ``numel`` elements of any shape."""

    numel: int

    scale_shape = None  # a Python number or a 0-d tensor
    group_size_in_view = 1

    def check_shape(self) -> None:
        size(self.numel, "numel")

    def accepts(self, t: torch.Tensor) -> str | None:
        return None if t.numel() == self.numel else f"must hold numel={self.numel} elements, got {t.numel()} in shape {list(t.shape)}"

    def views(self, shape: torch.Size) -> tuple[tuple[int, int, int], ...]:
        lead = (1, 1, *shape)
        return (1, 1, self.numel), (prod(lead[:-2]), lead[-2], lead[-1])

    def scale_view(self, scale: torch.Tensor) -> torch.Tensor:
        return scale.reshape(1, 1)


@_record
class _PerChannel:
    """One scale per index of ``axis`` (negative: from the end). ``shape`` has rank 1 to 4, or is padded with ones behind ``rank``."""

    shape: tuple[int, ...]
    axis: int
    rank: int | None = None

    group_size_in_view = 1

    @property
    def dims(self) -> tuple[int, ...]:
        """``shape`` without the padding."""
        return tuple(self.shape)[: self.rank]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        return (self.dims[self.axis],)

    def check_shape(self) -> None:
        shape = expect_type(self.shape, (tuple, list), "shape")
        if not 1 <= len(shape) <= 4:
            raise InvalidProblemError(f"shape must have 1 to 4 dimensions, got {list(shape)}; merge neighbours beside the channel axis")
        for i, n in enumerate(shape):
            size(n, f"shape[{i}]")
        if self.rank is not None:
            size(self.rank, "rank", 1)
            if self.rank > len(shape) or any(n != 1 for n in shape[self.rank :]):
                raise InvalidProblemError(f"rank {self.rank} does not describe shape {list(shape)}: dimensions behind the rank must be 1")
        rank = len(self.dims)
        if not -rank <= expect_type(self.axis, int, "axis") < rank:
            raise InvalidProblemError(f"axis must be in {-rank}..{rank - 1} for shape {list(self.dims)}, got {self.axis}")

    def accepts(self, t: torch.Tensor) -> str | None:
        known = (self.dims, tuple(self.shape), self.dims + (1,) * (4 - len(self.dims)))
        return None if tuple(t.shape) in known else f"must have shape {list(self.dims)}, got {list(t.shape)}"

    def views(self, shape: torch.Size) -> tuple[tuple[int, int, int], ...]:
        axis = self.axis % len(self.dims)
        return ((prod(self.dims[:axis]), self.dims[axis], prod(self.dims[axis + 1 :])),)

    def scale_view(self, scale: torch.Tensor) -> torch.Tensor:
        return scale.view(1, -1)


@_record
class _PerToken:
    """``[n, d]`` with one scale per row."""

    n: int
    d: int

    group_size_in_view = 1

    @property
    def scale_shape(self) -> tuple[int, ...]:
        return (self.n,)

    def check_shape(self) -> None:
        size(self.n, "n")
        size(self.d, "d")

    def accepts(self, t: torch.Tensor) -> str | None:
        return None if tuple(t.shape) == (self.n, self.d) else f"must have shape {[self.n, self.d]}, got {list(t.shape)}"

    def views(self, shape: torch.Size) -> tuple[tuple[int, int, int], ...]:
        return ((self.n, 1, self.d),)

    def scale_view(self, scale: torch.Tensor) -> torch.Tensor:
        return scale.view(-1, 1)


@_record
class _PerGroup:
    """``[outer_size, axis_size]`` with one scale per ``group_size`` columns of a row; the last group may be short."""

    outer_size: int
    axis_size: int
    group_size: int

    def num_groups(self) -> int:
        """Scales per row."""
        return -(-self.axis_size // self.group_size)

    @property
    def group_size_in_view(self) -> int:
        return self.group_size

    @property
    def scale_shape(self) -> tuple[int, ...]:
        return (self.outer_size, self.num_groups())

    def check_shape(self) -> None:
        size(self.outer_size, "outer_size")
        size(self.axis_size, "axis_size")
        size(self.group_size, "group_size", 1)
        if self.group_size > _MAX_GROUP:
            raise UnsupportedError(f"group_size is limited to {_MAX_GROUP}, got {self.group_size}; PerToken plans have one scale per row")

    def accepts(self, t: torch.Tensor) -> str | None:
        want = (self.outer_size, self.axis_size)
        return None if tuple(t.shape) == want else f"must have shape {list(want)}, got {list(t.shape)}"

    def views(self, shape: torch.Size) -> tuple[tuple[int, int, int], ...]:
        return ((self.outer_size, self.axis_size, 1),)

    def scale_view(self, scale: torch.Tensor) -> torch.Tensor:
        return scale


@_record
class _ToCodes:
    """Real numbers in, codes ``q_min..q_max`` out."""

    q_min: int
    q_max: int
    input_dtype: torch.dtype = torch.float32
    output_dtype: torch.dtype = torch.int8

    @property
    def float_dtype(self) -> torch.dtype:
        return self.input_dtype

    @property
    def code_dtype(self) -> torch.dtype:
        return self.output_dtype

    def check(self) -> None:
        """Raise InvalidProblemError or UnsupportedError unless a plan can be made of this."""
        self.check_shape()
        one_of(self.input_dtype, FLOATS, "input_dtype")
        code_range(self.q_min, self.q_max, self.output_dtype)


@_record
class _FromCodes:
    """Codes in, real numbers out. The seed names the real type first, as for quantizing; both orders are understood."""

    input_dtype: torch.dtype = torch.int8
    output_dtype: torch.dtype = torch.float32

    @property
    def float_dtype(self) -> torch.dtype:
        return self.input_dtype if self.input_dtype in FLOATS else self.output_dtype

    @property
    def code_dtype(self) -> torch.dtype:
        return self.output_dtype if self.input_dtype in FLOATS else self.input_dtype

    def check(self) -> None:
        """Raise InvalidProblemError or UnsupportedError unless a plan can be made of this."""
        self.check_shape()
        for name in ("input_dtype", "output_dtype"):
            one_of(getattr(self, name), CODES + FLOATS, name)
        if (self.input_dtype in FLOATS) == (self.output_dtype in FLOATS):
            raise UnsupportedError(
                "dequantize goes from int8 or uint8 to a floating type, "
                f"got {dtype_name(self.input_dtype)} to {dtype_name(self.output_dtype)}"
            )


@_record
class QuantizePerTensorDescriptor(_PerTensor, _ToCodes):
    """``numel, q_min, q_max, input_dtype=float32, output_dtype=int8``."""


class QuantizePerTensorBackwardDescriptor(QuantizePerTensorDescriptor):
    """Fields of :class:`QuantizePerTensorDescriptor`, which is accepted in its place."""


@_record
class DequantizePerTensorDescriptor(_PerTensor, _FromCodes):
    """``numel, input_dtype=int8, output_dtype=float32``."""


class DequantizePerTensorBackwardDescriptor(DequantizePerTensorDescriptor):
    """Fields of :class:`DequantizePerTensorDescriptor`, which is accepted in its place."""


@_record
class QuantizePerChannelDescriptor(_PerChannel, _ToCodes):
    """``shape, axis, rank=None, q_min, q_max, input_dtype=float32, output_dtype=int8``."""


class QuantizePerChannelBackwardDescriptor(QuantizePerChannelDescriptor):
    """Fields of :class:`QuantizePerChannelDescriptor`, which is accepted in its place."""


@_record
class DequantizePerChannelDescriptor(_PerChannel, _FromCodes):
    """``shape, axis, rank=None, input_dtype=int8, output_dtype=float32``."""


class DequantizePerChannelBackwardDescriptor(DequantizePerChannelDescriptor):
    """Fields of :class:`DequantizePerChannelDescriptor`, which is accepted in its place."""


@_record
class QuantizePerTokenDescriptor(_PerToken, _ToCodes):
    """``n, d, q_min, q_max, input_dtype=float32, output_dtype=int8``."""


class QuantizePerTokenBackwardDescriptor(QuantizePerTokenDescriptor):
    """Fields of :class:`QuantizePerTokenDescriptor`, which is accepted in its place."""


@_record
class DequantizePerTokenDescriptor(_PerToken, _FromCodes):
    """``n, d, input_dtype=int8, output_dtype=float32``."""


class DequantizePerTokenBackwardDescriptor(DequantizePerTokenDescriptor):
    """Fields of :class:`DequantizePerTokenDescriptor`, which is accepted in its place."""


@_record
class QuantizePerGroupDescriptor(_PerGroup, _ToCodes):
    """``outer_size, axis_size, group_size, q_min, q_max, input_dtype=float32, output_dtype=int8``."""


class QuantizePerGroupBackwardDescriptor(QuantizePerGroupDescriptor):
    """Fields of :class:`QuantizePerGroupDescriptor`, which is accepted in its place."""


@_record
class DequantizePerGroupDescriptor(_PerGroup, _FromCodes):
    """``outer_size, axis_size, group_size, input_dtype=int8, output_dtype=float32``."""


class DequantizePerGroupBackwardDescriptor(DequantizePerGroupDescriptor):
    """Fields of :class:`DequantizePerGroupDescriptor`, which is accepted in its place."""


@_record
class FakeQuantizeDescriptor(_PerTensor):
    """``numel, q_min, q_max, input_dtype=float32``: codes never leave the kernel, so they may be up to 2**22 in magnitude."""

    q_min: int
    q_max: int
    input_dtype: torch.dtype = torch.float32

    code_dtype = None

    @property
    def float_dtype(self) -> torch.dtype:
        return self.input_dtype

    def check(self) -> None:
        """Raise InvalidProblemError or UnsupportedError unless a plan can be made of this."""
        self.check_shape()
        one_of(self.input_dtype, FLOATS, "input_dtype")
        expect_type(self.q_min, int, "q_min")
        expect_type(self.q_max, int, "q_max")
        if not -_MAX_CODE <= self.q_min <= self.q_max <= _MAX_CODE:
            raise InvalidProblemError(f"-2**22 <= q_min <= q_max <= 2**22 is required, got q_min={self.q_min}, q_max={self.q_max}")


class FakeQuantizeBackwardDescriptor(FakeQuantizeDescriptor):
    """Fields of :class:`FakeQuantizeDescriptor`, which is accepted in its place."""
