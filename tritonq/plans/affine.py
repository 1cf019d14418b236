"""Floor 4. Quantize, dequantize and fake quantize with the caller's scale and zero point, and their straight-through gradients.

Five operations are written once; each granularity's plan names its operation, its descriptor and its arguments.
Tensors may have any strides that can be viewed as ``[outer, axis, inner]`` (no copy is made); outputs, scales and
zero points are contiguous.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..dtypes import compute_dtype
from . import affine_args as args_of
from . import affine_problem as problems
from .core import expect_type
from .seed_base import SeedPlan, as_float, given_or_empty, implementation, int32_refusals, positive_refusals, tensor_refusals


class _AffinePlan(SeedPlan):
    """An elementwise operation under scales. ``tensors`` names the shaped arguments, the last of them the output."""

    tensors: tuple[str, ...]
    codes: frozenset[str] = frozenset()  # those of them that hold codes
    has_zero_point = True

    def _elements(self) -> tuple[torch.dtype, torch.dtype | None]:
        return self.desc.float_dtype, self.desc.code_dtype

    def _dtype(self, name: str) -> torch.dtype:
        return self.desc.code_dtype if name in self.codes else self.desc.float_dtype

    def _refusals(self, args: Any) -> Iterator[str]:
        first = expect_type(getattr(args, self.tensors[0]), torch.Tensor, self.tensors[0])
        *inputs, out = self.tensors
        for name in inputs:
            yield from self._tensor_refusals(name, getattr(args, name), first, contiguous=False)
        if getattr(args, out) is not None:
            yield from self._tensor_refusals(out, getattr(args, out), first, contiguous=True)
        yield from self._scale_refusals(args, first.device)
        if first.numel() and self._view(args) is None:
            shown = ", ".join(f"{name} {list(getattr(args, name).stride())}" for name in inputs)
            view = list(self.desc.views(first.shape)[-1])
            yield f"strides cannot be viewed as [outer, axis, inner] = {view} without a copy: {shown}; pass .contiguous() tensors"

    def _tensor_refusals(self, name: str, t: Any, first: torch.Tensor, contiguous: bool) -> Iterator[str]:
        expect_type(t, torch.Tensor, name)
        reason = self.desc.accepts(t)
        if reason:
            yield f"{name} {reason}"
        yield from tensor_refusals(name, t, self._dtype(name), (tuple(first.shape),), first.device, contiguous)

    def _scale_refusals(self, args: Any, device: torch.device) -> Iterator[str]:
        shape, scale = self.desc.scale_shape, args.scale
        zero_point = args.zero_point if self.has_zero_point else 0
        if shape is not None:
            yield from tensor_refusals("scale", scale, self.desc.float_dtype, (shape,), device)
            if self.has_zero_point:
                yield from tensor_refusals("zero_point", zero_point, torch.int32, (shape,), device)
        else:
            if isinstance(expect_type(scale, (float, int, torch.Tensor), "scale"), torch.Tensor):
                yield from tensor_refusals("scale", scale, None, ((),), device)
                if not scale.is_floating_point():
                    yield f"scale must be a floating type, got {scale.dtype}"
            if isinstance(expect_type(zero_point, (int, torch.Tensor), "zero_point"), torch.Tensor):
                yield from tensor_refusals("zero_point", zero_point, torch.int32, ((),), device)
            else:
                yield from int32_refusals("zero_point", zero_point)
            scale = scale if isinstance(scale, torch.Tensor) else as_float(scale)
            scale = torch.as_tensor(scale, dtype=compute_dtype(self.desc.float_dtype))  # as it is used: 1e-60 is no scale for float32
        yield from positive_refusals("scale", scale)

    def _view(self, args: Any) -> tuple[int, int, int] | None:
        """The first ``[outer, axis, inner]`` that every given tensor can be viewed as."""
        tensors = [t for t in (getattr(args, name) for name in self.tensors) if t is not None]
        return next((dims for dims in self.desc.views(tensors[0].shape) if all(_viewable(t, dims) for t in tensors)), None)

    def _execute(self, args: Any, workspace: torch.Tensor | None) -> torch.Tensor:
        *inputs, out_name = self.tensors
        first = getattr(args, self.tensors[0])
        out = given_or_empty(getattr(args, out_name), tuple(first.shape), self._dtype(out_name), first.device)
        if not first.numel():
            return out
        dims = self._view(args)
        operands = [getattr(args, name).view(dims) for name in inputs]
        operands.append(self._per_group(args.scale, first.device, compute_dtype(self.desc.float_dtype)))
        if self.has_zero_point:
            operands.append(self._per_group(args.zero_point, first.device, torch.int32))
        options = {"q_min": self.desc.q_min, "q_max": self.desc.q_max} if hasattr(self.desc, "q_min") else {}
        function = getattr(implementation("affine", first.device), self.function)
        function(*operands, **options, group_size=self.desc.group_size_in_view, out=out.view(dims))
        return out

    def _per_group(self, value: Any, device: torch.device, scalar_dtype: torch.dtype) -> torch.Tensor:
        if not isinstance(value, torch.Tensor):
            value = torch.full((), value, dtype=scalar_dtype, device=device)
        return self.desc.scale_view(value)


def _viewable(t: torch.Tensor, dims: tuple[int, int, int]) -> bool:
    try:
        t.view(dims)
    except RuntimeError:
        return False
    return True


class _Quantize(_AffinePlan):
    tensors, codes, function = ("input", "output"), frozenset({"output"}), "quantize"


class _QuantizeBackward(_AffinePlan):
    tensors, function = ("input", "d_output", "d_input"), "quantize_backward"


class _Dequantize(_AffinePlan):
    category, tensors, codes, function = "dequantize", ("input", "output"), frozenset({"input"}), "dequantize"


class _DequantizeBackward(_AffinePlan):
    category, tensors, function, has_zero_point = "dequantize", ("d_output", "d_input"), "dequantize_backward", False


class QuantizePerTensorPlan(_Quantize):
    """``output = clamp(round_half_even(input / scale) + zero_point, q_min, q_max)``, one scale for all elements of any shape.

    Rounded first, then added, saturating; NaN codes as zero, +-Inf at the ends; computed in float32 (float64 for float64).

    Example:
        >>> import torch
        >>> from tritonq.plans import QuantizePerTensorArgs, QuantizePerTensorDescriptor
        >>> desc = QuantizePerTensorDescriptor(numel=4, q_min=-128, q_max=127)
        >>> plan = QuantizePerTensorPlan.select(None, desc)
        >>> plan.run(None, None, QuantizePerTensorArgs(input=torch.tensor([0.5, 1.5, -9e9, 1.0]), scale=1.0, zero_point=3)).tolist()
        [3, 5, -128, 4]
    """

    Descriptor, Args, op = problems.QuantizePerTensorDescriptor, args_of.QuantizePerTensorArgs, "quantize_per_tensor"


class QuantizePerTensorBackwardPlan(_QuantizeBackward):
    """``d_input = d_output / scale`` where the rounded, unclamped code lies in ``q_min..q_max`` (both included), else 0."""

    Descriptor, Args, op = problems.QuantizePerTensorDescriptor, args_of.QuantizePerTensorBackwardArgs, "quantize_per_tensor_backward"


class DequantizePerTensorPlan(_Dequantize):
    """``output = (input - zero_point) * scale``, one scale for all elements of any shape."""

    Descriptor, Args, op = problems.DequantizePerTensorDescriptor, args_of.DequantizePerTensorArgs, "dequantize_per_tensor"


class DequantizePerTensorBackwardPlan(_DequantizeBackward):
    """``d_input = d_output * scale``, the gradient with respect to the codes."""

    Descriptor, Args, op = problems.DequantizePerTensorDescriptor, args_of.DequantizePerTensorBackwardArgs, "dequantize_per_tensor_backward"


class QuantizePerChannelPlan(_Quantize):
    """:class:`QuantizePerTensorPlan` with scale and zero point ``[C]`` along any axis of a tensor of rank 1 to 4."""

    Descriptor, Args, op = problems.QuantizePerChannelDescriptor, args_of.QuantizePerChannelArgs, "quantize_per_channel"


class QuantizePerChannelBackwardPlan(_QuantizeBackward):
    """:class:`QuantizePerTensorBackwardPlan` with scale and zero point ``[C]`` along any axis."""

    Descriptor, Args, op = problems.QuantizePerChannelDescriptor, args_of.QuantizePerChannelBackwardArgs, "quantize_per_channel_backward"


class DequantizePerChannelPlan(_Dequantize):
    """``output = (input - zero_point[c]) * scale[c]`` along any axis of a tensor of rank 1 to 4."""

    Descriptor, Args, op = problems.DequantizePerChannelDescriptor, args_of.DequantizePerChannelArgs, "dequantize_per_channel"


class DequantizePerChannelBackwardPlan(_DequantizeBackward):
    """``d_input = d_output * scale[c]``."""

    Descriptor, Args = problems.DequantizePerChannelDescriptor, args_of.DequantizePerChannelBackwardArgs
    op = "dequantize_per_channel_backward"


class QuantizePerTokenPlan(_Quantize):
    """:class:`QuantizePerTensorPlan` with scale and zero point ``[n]``, one per row of ``[n, d]``."""

    Descriptor, Args, op = problems.QuantizePerTokenDescriptor, args_of.QuantizePerTokenArgs, "quantize_per_token"


class QuantizePerTokenBackwardPlan(_QuantizeBackward):
    """:class:`QuantizePerTensorBackwardPlan` with scale and zero point ``[n]``, one per row of ``[n, d]``."""

    Descriptor, Args, op = problems.QuantizePerTokenDescriptor, args_of.QuantizePerTokenBackwardArgs, "quantize_per_token_backward"


class DequantizePerTokenPlan(_Dequantize):
    """``output = (input - zero_point[row]) * scale[row]`` of ``[n, d]``."""

    Descriptor, Args, op = problems.DequantizePerTokenDescriptor, args_of.DequantizePerTokenArgs, "dequantize_per_token"


class DequantizePerTokenBackwardPlan(_DequantizeBackward):
    """``d_input = d_output * scale[row]``."""

    Descriptor, Args, op = problems.DequantizePerTokenDescriptor, args_of.DequantizePerTokenBackwardArgs, "dequantize_per_token_backward"


class QuantizePerGroupPlan(_Quantize):
    """:class:`QuantizePerTensorPlan` on ``[outer_size, axis_size]`` with scale and zero point ``[outer_size, num_groups]``."""

    Descriptor, Args, op = problems.QuantizePerGroupDescriptor, args_of.QuantizePerGroupArgs, "quantize_per_group"


class QuantizePerGroupBackwardPlan(_QuantizeBackward):
    """:class:`QuantizePerTensorBackwardPlan` with scale and zero point ``[outer_size, num_groups]``."""

    Descriptor, Args, op = problems.QuantizePerGroupDescriptor, args_of.QuantizePerGroupBackwardArgs, "quantize_per_group_backward"


class DequantizePerGroupPlan(_Dequantize):
    """``output = (input - zero_point) * scale`` with scale and zero point ``[outer_size, num_groups]``."""

    Descriptor, Args, op = problems.DequantizePerGroupDescriptor, args_of.DequantizePerGroupArgs, "dequantize_per_group"


class DequantizePerGroupBackwardPlan(_DequantizeBackward):
    """``d_input = d_output * scale`` with scale ``[outer_size, num_groups]``."""

    Descriptor, Args, op = problems.DequantizePerGroupDescriptor, args_of.DequantizePerGroupBackwardArgs, "dequantize_per_group_backward"


class FakeQuantizePlan(_AffinePlan):
    """``output = (code - zero_point) * scale`` with the code of :class:`QuantizePerTensorPlan`, in the input's dtype."""

    Descriptor, Args, op = problems.FakeQuantizeDescriptor, args_of.FakeQuantizeArgs, "fake_quantize"
    tensors, function = ("input", "output"), "fake_quantize"


class FakeQuantizeBackwardPlan(_AffinePlan):
    """``d_input = d_output`` where the rounded, unclamped code lies in ``q_min..q_max`` (both included), else 0."""

    Descriptor, Args, op = problems.FakeQuantizeDescriptor, args_of.FakeQuantizeBackwardArgs, "fake_quantize_backward"
    tensors, function = ("input", "d_output", "d_input"), "fake_quantize_backward"
