"""Floor 5. Three verbs: quantize, dequantize, matmul. Each makes a descriptor, selects a plan and runs it."""
from __future__ import annotations

from dataclasses import replace

import torch

from .act_order import column_order
from .errors import InvalidProblemError
from .plans.bound import find
from .plans.core import expect_type
from .plans.descriptors import DequantizeDesc, MatmulBackwardDesc, MatmulDesc, QuantizeDesc
from .plans.select import Plan, select
from .qtensor import QTensor
from .reference.matrix import ACTIVATIONS
from .scheme import FLOAT_DTYPES, Scheme


def quantize(x: torch.Tensor, scheme: str | Scheme, *, layout: str = "row", g_idx: torch.Tensor | None = None) -> QTensor:
    """Quantize a matrix under a scheme and pack its codes.

    Args:
        x: ``[N, K]`` float16, bfloat16, float32 or float64; any strides, any N and K, also 0. Not modified.
        scheme: a :class:`Scheme` or its text, such as ``"nf4.g64"``; see docs/formats.md.
        layout: ``"row"``, or a kernel's own such as ``"frag"``: what ``quantize(x, scheme).relayout(layout)`` gives, in one launch where
            ``explain(QuantizeDesc.of(x, scheme, layout))`` says so.
        g_idx: act-order: integers ``[K]``, the group of each column, where the columns of a group do not lie side by side.

    Returns:
        QTensor of shape (N, K) in ``layout``.

    Raises:
        InvalidProblemError: not a matrix, not a float dtype, an unknown scheme or layout, a layout that cannot hold the scheme, a
            ``g_idx`` that does not fit.

    Precision:
        Codes, scales and zero points are bit-identical on every backend (IEEE division by the scale as stored; float64 input is
        computed in float64). NaN is coded as zero, +-Inf as the end of the code range, and neither enters a scale. A group without
        range (all zero) decodes to zeros.

    Example:
        >>> import torch, tritonq
        >>> tritonq.quantize(torch.randn(64, 256), "nf4.g64").bits_per_weight
        4.5
    """
    desc = QuantizeDesc.of(x, scheme, layout)
    order = None if g_idx is None else column_order(g_idx, desc.k, desc.scheme.group_size)
    if order is None:
        return select(desc).run(x.detach())
    order = order.to(x.device)
    return replace(select(desc).run(x.detach().index_select(1, order)), column_order=order)


def dequantize(q: QTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Decode a quantized matrix.

    Args:
        q: the QTensor.
        dtype: float16, bfloat16, float32 or float64; None is the dtype that was quantized.

    Returns:
        ``[N, K]`` of ``dtype``: ``scale * (code - zero_point)``, or ``zero_point + scale * code`` for float zero schemes, in
        float32 (float64 where ``dtype`` is) with two roundings, then cast once. Bit-identical on every backend.

    Raises:
        InvalidProblemError: ``q`` is not a QTensor, ``dtype`` is no float dtype.

    Example:
        >>> import torch, tritonq
        >>> tritonq.dequantize(tritonq.quantize(torch.tensor([[7.0, -3.0]]), "int4")).tolist()
        [[7.0, -3.0]]
    """
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise InvalidProblemError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype!r}")
    return select(DequantizeDesc.of(q, dtype)).run(q)


def matmul(x: torch.Tensor, q: QTensor, bias: torch.Tensor | None = None, activation: str | None = None,
           residual: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    """``activation(x @ w_hat.T + bias) + residual`` straight from the packed weight.

    Args:
        x: ``[..., K]`` float16, bfloat16, float32 or float64, any strides, also empty.
        q: weight ``[N, K]`` on the same device.
        bias: ``[N]``.
        activation: ``"relu"``, ``"silu"``, ``"gelu"`` (the erf form) or ``"swiglu"``: silu(gate) * up of a weight whose first N / 2 rows
            are the gate's and whose others are up's (``gate_up_proj``).
        residual: ``[..., N]`` (``[..., N / 2]`` for swiglu).

    Returns:
        ``[..., N]`` (``[..., N / 2]`` for swiglu) in x's dtype, computed in float32 (float64 for float64 x) and cast once.

    Raises:
        InvalidProblemError: shapes, devices or dtypes that do not match, an unknown activation.

    Precision:
        ``select(MatmulDesc.of(x, q)).precision_guarantee().bound(x, q)`` bounds the error elementwise.

    Gradients flow to x, bias and residual. The forward keeps nothing but the packed weight, with an activation x and bias too; see
    docs/matmul.md.

    Example:
        >>> import torch, tritonq
        >>> q = tritonq.quantize(torch.eye(4), "int8")
        >>> tritonq.matmul(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), q).tolist()
        [[1.0, 2.0, 3.0, 4.0]]
    """
    if activation is not None:
        expect_type(activation, str, "activation")
    product = find(activation, _choose, x, q, bias, residual)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)
                                    or (residual is not None and residual.requires_grad)):  # fmt: skip
        return _Matmul.apply(product.plan, x, q, bias, residual)
    return product.run(x, q, bias, residual)


def _choose(activation: str | None, x, q, bias, residual) -> Plan:
    return select(MatmulDesc.of(x, q, bias, activation, residual))


class _Matmul(torch.autograd.Function):
    """The fused forward. dx needs dy and the packed weight alone; x is kept only where an activation's argument must be computed again."""

    @staticmethod
    def forward(ctx, plan: Plan, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(*((x, bias) if plan.desc.activation is not None else (None, None)))
        ctx.plan, ctx.q = plan, q
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.residual_dtype = None if residual is None else residual.dtype
        return plan.run(x, q, bias=bias, residual=residual)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor):
        x, bias = ctx.saved_tensors
        desc, q, needs = ctx.plan.desc, ctx.q, ctx.needs_input_grad
        d_residual = grad.to(ctx.residual_dtype) if needs[4] else None
        d_sum = grad
        if desc.activation is not None and (needs[1] or needs[3]):
            with torch.enable_grad():
                limit = torch.finfo(x.dtype)  # what the forward had in float32 may be beyond x's dtype, where a derivative would be NaN
                before = matmul(x.detach(), q, None if bias is None else bias.detach()).clamp(limit.min, limit.max)
                before = before.to(q.scheme.decode_dtype(x.dtype)).requires_grad_()
                (d_sum,) = torch.autograd.grad(ACTIVATIONS[desc.activation](before), before, grad.to(before.dtype))
        d_bias = d_sum.reshape(-1, desc.n).sum(0, dtype=q.scheme.decode_dtype(grad.dtype)).to(ctx.bias_dtype) if needs[3] else None
        d_x = None
        if needs[1]:
            dy = d_sum.to(grad.dtype)
            d_x = select(MatmulBackwardDesc.of(dy, q)).run(dy, q)
        return None, d_x, None, d_bias, d_residual
