"""Floor 4. DynamicRangeQuantizePlan: scales and zero points from the data, for a tensor, channel, token or group."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch

from ..dtypes import compute_dtype
from ..errors import InvalidProblemError
from ..kernels.dynamic_range import CHUNK
from .core import expect_type
from .seed_base import FLOATS, SeedPlan, code_range, given_or_empty, implementation, one_of, size, symmetric_range, tensor_refusals


class DynamicRangeMode(Enum):
    """``SYMMETRIC``: scale = absmax / q_max, zero point 0. ``ASYMMETRIC``: the range, extended to contain 0, fills q_min..q_max."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


@dataclass(frozen=True, kw_only=True)
class DynamicRangeScope:
    """What shares a scale in ``[n, d]``; made by :meth:`tensor`, :meth:`channel`, :meth:`token` or :meth:`group`.

    ``axis`` is the axis that keeps its index for a channel (0: one scale per row, 1: one per column), and the axis that is cut
    into groups for a group.
    """

    kind: str
    axis: int = 1
    group_size: int | None = None

    @classmethod
    def tensor(cls) -> DynamicRangeScope:
        """One scale: ``scale_out`` has shape ``[]``."""
        return cls(kind="tensor")

    @classmethod
    def channel(cls, axis: int) -> DynamicRangeScope:
        """One scale per index of ``axis``: ``[n]`` or ``[d]``."""
        return cls(kind="channel", axis=axis)

    @classmethod
    def token(cls) -> DynamicRangeScope:
        """One scale per row: ``[n]``."""
        return cls(kind="token")

    @classmethod
    def group(cls, axis: int, group_size: int) -> DynamicRangeScope:
        """One scale per ``group_size`` neighbours along ``axis``: ``[n, groups]`` for axis 1, ``[groups, d]`` for axis 0."""
        return cls(kind="group", axis=axis, group_size=group_size)

    def check(self) -> None:
        """Raise InvalidProblemError unless this is one of the four scopes."""
        if self.kind not in ("tensor", "channel", "token", "group"):
            raise InvalidProblemError(f"scope must be tensor, channel, token or group, got {self.kind!r}")
        if expect_type(self.axis, int, "scope.axis") not in (-2, -1, 0, 1):
            raise InvalidProblemError(f"scope.axis must be 0 or 1 (or -2, -1) for a tensor [n, d], got {self.axis}")
        if self.kind == "group":
            size(self.group_size, "scope.group_size", 1)


@dataclass(frozen=True, kw_only=True)
class DynamicRangeQuantizeDescriptor:
    """``[n, d]`` of ``input_dtype`` to codes ``q_min..q_max`` of ``output_dtype``; symmetric per token unless told otherwise.

    Symmetric needs ``q_min <= 0 < q_max``, asymmetric ``q_max > q_min``.
    """

    n: int
    d: int
    q_min: int
    q_max: int
    mode: DynamicRangeMode | str = DynamicRangeMode.SYMMETRIC
    scope: DynamicRangeScope = DynamicRangeScope(kind="token")
    input_dtype: torch.dtype = torch.float32
    output_dtype: torch.dtype = torch.int8

    @property
    def asymmetric(self) -> bool:
        return self.mode in (DynamicRangeMode.ASYMMETRIC, DynamicRangeMode.ASYMMETRIC.value)

    @property
    def transposed(self) -> bool:
        """Whether a scale reaches along the columns of ``[n, d]`` downwards."""
        axis = self.scope.axis % 2
        return axis == 1 if self.scope.kind == "channel" else self.scope.kind == "group" and axis == 0

    @property
    def group_size(self) -> int:
        """Elements under one scale, along a row of the (transposed) tensor."""
        length = self.n if self.transposed else self.d
        return min(self.scope.group_size, max(1, length)) if self.scope.kind == "group" else max(1, length)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        if self.scope.kind == "tensor":
            return ()
        if self.scope.kind != "group":
            return (self.d,) if self.transposed else (self.n,)
        groups = -(-(self.n if self.transposed else self.d) // self.group_size)
        return (groups, self.d) if self.transposed else (self.n, groups)

    def check(self) -> None:
        """Raise InvalidProblemError or UnsupportedError unless a plan can be made of this."""
        size(self.n, "n")
        size(self.d, "d")
        if expect_type(self.mode, (DynamicRangeMode, str), "mode") not in set(DynamicRangeMode) | {m.value for m in DynamicRangeMode}:
            raise InvalidProblemError(f"mode must be symmetric or asymmetric, got {self.mode!r}")
        expect_type(self.scope, DynamicRangeScope, "scope").check()
        one_of(self.input_dtype, FLOATS, "input_dtype")
        code_range(self.q_min, self.q_max, self.output_dtype)
        if not self.asymmetric:
            symmetric_range(self.q_min, self.q_max)
        elif self.q_max == self.q_min:
            raise InvalidProblemError(f"an asymmetric range needs at least two codes, got q_min = q_max = {self.q_min}")


@dataclass(frozen=True, kw_only=True, eq=False)
class DynamicRangeQuantizeArgs:
    """``input`` ``[n, d]`` with any strides; ``output`` (codes), ``scale_out`` (input's dtype), ``zero_point_out`` (int32) may be None."""

    input: torch.Tensor
    output: torch.Tensor | None = None
    scale_out: torch.Tensor | None = None
    zero_point_out: torch.Tensor | None = None


class DynamicRangeQuantizePlan(SeedPlan):
    """Codes with scales and zero points taken from the data; ``run`` returns ``(output, scale, zero_point)``.

    NaN and +-Inf do not enter the statistics; NaN codes as the zero point, +-Inf at the ends. A range without extent has scale 1.
    Codes and zero points are computed with the scale as stored. Everything but the scope ``tensor`` is one launch;
    that one needs a workspace for partial ranges.

    Example:
        >>> desc = DynamicRangeQuantizeDescriptor(n=1, d=3, q_min=-127, q_max=127)
        >>> plan = DynamicRangeQuantizePlan.select(None, desc)
        >>> codes, scale, zero_point = plan.run(None, None, DynamicRangeQuantizeArgs(input=torch.tensor([[1.0, -2.0, 0.5]])))
        >>> codes.tolist()
        [[64, -127, 32]]
    """

    Descriptor, Args = DynamicRangeQuantizeDescriptor, DynamicRangeQuantizeArgs
    op, kernel = "dynamic_range_quantize", "dynamic_range"

    def _elements(self) -> tuple[torch.dtype, torch.dtype | None]:
        return self.desc.input_dtype, self.desc.output_dtype

    def workspace_size(self) -> int:
        """Bytes for the partial ranges of the scope ``tensor``, else 0; ``run`` allocates them when ``workspace`` is None."""
        if self.desc.scope.kind != "tensor":
            return 0
        # For rows that are not neighbours in memory; contiguous input needs no more.
        return 2 * self.desc.n * -(-self.desc.d // CHUNK) * compute_dtype(self.desc.input_dtype).itemsize

    def _refusals(self, args: DynamicRangeQuantizeArgs) -> Iterator[str]:
        desc, shape = self.desc, (self.desc.n, self.desc.d)
        x = expect_type(args.input, torch.Tensor, "input")
        yield from tensor_refusals("input", x, desc.input_dtype, (shape,), x.device, contiguous=False)
        if args.output is not None:
            yield from tensor_refusals("output", args.output, desc.output_dtype, (shape,), x.device)
        scale_shapes = (desc.scale_shape, (1,)) if desc.scale_shape == () else (desc.scale_shape,)
        for name, dtype in (("scale_out", desc.input_dtype), ("zero_point_out", torch.int32)):
            if getattr(args, name) is not None:
                yield from tensor_refusals(name, getattr(args, name), dtype, scale_shapes, x.device)

    def _execute(self, args: DynamicRangeQuantizeArgs, workspace: torch.Tensor | None):
        desc, x = self.desc, args.input
        out = given_or_empty(args.output, (desc.n, desc.d), desc.output_dtype, x.device)
        scale = given_or_empty(args.scale_out, desc.scale_shape, desc.input_dtype, x.device)
        zero_point = given_or_empty(args.zero_point_out, desc.scale_shape, torch.int32, x.device)
        if not x.numel():
            scale.fill_(1)
            zero_point.fill_(desc.q_min if desc.asymmetric else 0)
            return out, scale, zero_point
        options = {"q_min": desc.q_min, "q_max": desc.q_max}
        if desc.scope.kind == "tensor":
            self._whole_tensor(x, scale.view(1, 1), zero_point.view(1, 1), out, workspace, options)
            return out, scale, zero_point
        shape = (desc.n, -1) if not desc.transposed else (-1, desc.d)
        rows, scales, zeros, codes = x, scale.view(shape), zero_point.view(shape), out
        if desc.transposed:
            rows, scales, zeros, codes = rows.T, scales.T, zeros.T, codes.T
        implementation("dynamic_range", x.device).quantize_rows(
            rows, **options, asymmetric=desc.asymmetric, group_size=desc.group_size, scale=scales, zero_point=zeros, out=codes
        )
        return out, scale, zero_point

    def _whole_tensor(self, x, scale, zero_point, out, workspace, options) -> None:
        flat = x.view(1, -1) if x.is_contiguous() else x
        count = flat.shape[0] * -(-flat.shape[1] // CHUNK)
        dtype = compute_dtype(x.dtype)
        if workspace is None:
            partials = torch.empty((2, count), dtype=dtype, device=x.device)
        else:
            partials = workspace.view(-1).view(torch.uint8)[: 2 * count * dtype.itemsize].view(dtype).view(2, count)
        implementation("dynamic_range", x.device).tensor_range(
            flat, **options, asymmetric=self.desc.asymmetric, scale=scale, zero_point=zero_point, partials=partials
        )
        dims = (1, *flat.shape)
        implementation("affine", x.device).quantize(flat.view(dims), scale, zero_point, **options, group_size=1, out=out.view(dims))
