"""Floor 4. Arguments of the plans whose scale and zero point the caller gives: one record per operation and granularity."""
from __future__ import annotations

from dataclasses import dataclass

import torch

_record = dataclass(frozen=True, kw_only=True, eq=False)  # tensors do not compare to a bool


@_record
class _QuantizeArgs:
    """``input`` (the descriptor's shape and input_dtype), ``scale`` in the input's dtype, ``zero_point`` int32, ``output`` (codes) or None.

    Per tensor, scale and zero point are Python numbers or 0-d tensors; else tensors of the granularity's shape:
    per channel ``[C]``, per token ``[n]``, per group ``[outer_size, num_groups]``.
    """

    input: torch.Tensor
    scale: float | torch.Tensor
    zero_point: int | torch.Tensor
    output: torch.Tensor | None = None


@_record
class _QuantizeBackwardArgs:
    """``input``, ``scale``, ``zero_point`` as in the forward; ``d_output`` and ``d_input`` like ``input`` (``d_input`` may be None)."""

    input: torch.Tensor
    scale: float | torch.Tensor
    zero_point: int | torch.Tensor
    d_output: torch.Tensor
    d_input: torch.Tensor | None = None


@_record
class _DequantizeArgs:
    """``input`` (codes), ``scale`` in the output's dtype, ``zero_point`` int32, ``output`` (real numbers) or None."""

    input: torch.Tensor
    scale: float | torch.Tensor
    zero_point: int | torch.Tensor
    output: torch.Tensor | None = None


@_record
class _DequantizeBackwardArgs:
    """``scale``, ``d_output``, and ``d_input`` or None: the gradient with respect to the codes, in d_output's dtype."""

    scale: float | torch.Tensor
    d_output: torch.Tensor
    d_input: torch.Tensor | None = None


class QuantizePerTensorArgs(_QuantizeArgs):
    __doc__ = _QuantizeArgs.__doc__


class QuantizePerChannelArgs(_QuantizeArgs):
    __doc__ = _QuantizeArgs.__doc__


class QuantizePerTokenArgs(_QuantizeArgs):
    __doc__ = _QuantizeArgs.__doc__


class QuantizePerGroupArgs(_QuantizeArgs):
    __doc__ = _QuantizeArgs.__doc__


class FakeQuantizeArgs(_QuantizeArgs):
    """``input``, ``scale``, ``zero_point`` (Python numbers or 0-d tensors), ``output`` (like ``input``) or None."""


class QuantizePerTensorBackwardArgs(_QuantizeBackwardArgs):
    __doc__ = _QuantizeBackwardArgs.__doc__


class QuantizePerChannelBackwardArgs(_QuantizeBackwardArgs):
    __doc__ = _QuantizeBackwardArgs.__doc__


class QuantizePerTokenBackwardArgs(_QuantizeBackwardArgs):
    __doc__ = _QuantizeBackwardArgs.__doc__


class QuantizePerGroupBackwardArgs(_QuantizeBackwardArgs):
    __doc__ = _QuantizeBackwardArgs.__doc__


class FakeQuantizeBackwardArgs(_QuantizeBackwardArgs):
    __doc__ = _QuantizeBackwardArgs.__doc__


class DequantizePerTensorArgs(_DequantizeArgs):
    __doc__ = _DequantizeArgs.__doc__


class DequantizePerChannelArgs(_DequantizeArgs):
    __doc__ = _DequantizeArgs.__doc__


class DequantizePerTokenArgs(_DequantizeArgs):
    __doc__ = _DequantizeArgs.__doc__


class DequantizePerGroupArgs(_DequantizeArgs):
    __doc__ = _DequantizeArgs.__doc__


class DequantizePerTensorBackwardArgs(_DequantizeBackwardArgs):
    __doc__ = _DequantizeBackwardArgs.__doc__


class DequantizePerChannelBackwardArgs(_DequantizeBackwardArgs):
    __doc__ = _DequantizeBackwardArgs.__doc__


class DequantizePerTokenBackwardArgs(_DequantizeBackwardArgs):
    __doc__ = _DequantizeBackwardArgs.__doc__


class DequantizePerGroupBackwardArgs(_DequantizeBackwardArgs):
    __doc__ = _DequantizeBackwardArgs.__doc__
