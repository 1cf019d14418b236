"""Floor 5. ``torch.ops.tritonq.fake_quantize``: what quantization makes of a weight, with straight-through gradients."""
from __future__ import annotations

import torch

from .errors import InvalidProblemError, UnsupportedError
from .plans.descriptors import DequantizeDesc, QuantizeDesc
from .plans.select import select
from .qtensor import QTensor
from .reference.fake_quantize import fake_quantize_backward, stored_scale
from .reference.matrix import quantize_scaled
from .scheme import Scheme
from .torch_ops import define, differentiable

_LEARNED = ("fp64", "fp32", "fp16", "bf16")


def quantize_for_training(x: torch.Tensor, scheme: str | Scheme, scale: torch.Tensor | None = None,
                          zero_point: torch.Tensor | None = None) -> QTensor:  # fmt: skip
    """``x`` quantized as :func:`fake_quantize` does it: under its own scales, or under ``scale`` as it is stored."""
    desc = QuantizeDesc.of(x, scheme)
    if scale is None:
        return select(desc).run(x.detach())
    if reason := refuses_learned_scale(desc.scheme, x.dtype):
        raise UnsupportedError(reason)
    want = desc.scheme.scale_shape(desc.n, desc.k)
    if tuple(scale.shape) != want or not scale.is_floating_point():
        raise InvalidProblemError(f"the scale of {desc.scheme} for {list(x.shape)} must be a float {list(want)}, got {scale.dtype} "
                                  f"{list(scale.shape)}")  # fmt: skip
    if (zero_point is not None) != desc.scheme.format.affine:
        raise InvalidProblemError(f"{desc.scheme} has {'a' if desc.scheme.format.affine else 'no'} zero point for each group")
    return quantize_scaled(x.detach(), desc.scheme, stored_scale(scale, desc.scheme, x.dtype), zero_point)


def refuses_learned_scale(scheme: Scheme, dtype: torch.dtype) -> str | None:
    """Why the scales of ``scheme`` cannot be learned, or None."""
    if not scheme.has_scale:
        return f"{scheme} has no scale"
    stored = scheme.scale_format(dtype).name
    if "dq" in scheme.options or scheme.recipe == "nv" or scheme.rounds_up or stored not in _LEARNED:
        return f"{scheme} stores its scales in few steps, between which they cannot be learned; take float scales, as in int4.g128"
    return None


def fake_quantize(x: torch.Tensor, scheme: str | Scheme, scale: torch.Tensor | None = None,
                  zero_point: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    """Quantize and decode, differentiable: ``dequantize(quantize(x, scheme))`` bit for bit, in the shape and dtype of x.

    Args:
        x: ``[N, K]`` float16, bfloat16, float32 or float64.
        scheme: any.
        scale: float, one per group, if scales are not to be taken from x: then x and scale have gradients, see
            :func:`tritonq.reference.fake_quantize.fake_quantize_backward`. Values below 2**-126 count as that.
        zero_point: of affine schemes with a ``scale``; as a QTensor stores it.

    Without ``scale`` the gradient of x is that of the result (rounding counts as the identity; a group's own scale reaches all of it).

    Raises:
        UnsupportedError: a ``scale`` for a scheme that stores scales as powers of two, in 8 bits or in two levels.
        InvalidProblemError: shapes or dtypes that do not fit.

    Example:
        >>> import torch
        >>> x = torch.tensor([[7.0, -2.6]], requires_grad=True)
        >>> y = fake_quantize(x, "int4.g2")
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([[7.0, -3.0]], [[1.0, 1.0]])
    """
    return torch.ops.tritonq.fake_quantize(x, str(Scheme.parse(scheme)), scale, zero_point)


def _run(x, scheme, scale=None, zero_point=None):
    q = quantize_for_training(x, scheme, scale, zero_point)
    return select(DequantizeDesc.of(q, x.dtype)).run(q)


def _keep(ctx, inputs, output):
    x, ctx.scheme, scale, zero_point = inputs
    ctx.save_for_backward(*((None, None, None) if scale is None else (x, scale, zero_point)))


def _backward(ctx, grad):
    x, scale, zero_point = ctx.saved_tensors
    if scale is None:
        return grad, None, None, None
    d_x, d_scale = torch.ops.tritonq.fake_quantize_backward(grad, x, scale, zero_point, ctx.scheme)
    return d_x, None, d_scale, None


define("fake_quantize(Tensor x, str scheme, Tensor? scale=None, Tensor? zero_point=None) -> Tensor",
       _run, lambda x, scheme, scale=None, zero_point=None: x.new_empty(x.shape))  # fmt: skip
define("fake_quantize_backward(Tensor grad, Tensor x, Tensor scale, Tensor? zero_point, str scheme) -> (Tensor, Tensor)",
       lambda grad, x, scale, zero_point, scheme: fake_quantize_backward(grad, x, scale, zero_point, Scheme.parse(scheme)),
       lambda grad, x, scale, zero_point, scheme: (x.new_empty(x.shape), scale.new_empty(scale.shape)))  # fmt: skip
differentiable("fake_quantize", _keep, _backward)
