"""Floor 5. Three verbs: quantize, dequantize, matmul. Each makes a descriptor, selects a plan and runs it."""
from __future__ import annotations

from dataclasses import replace

import torch

from .act_order import column_order
from .dtypes import FLOAT_DTYPES
from .errors import InvalidProblemError
from .plans.bound import find, is_watched
from .plans.core import expect_dense, expect_type
from .plans.descriptors import DequantizeDesc, QuantizeDesc
from .plans.select import select
from .qstack import QStack
from .qtensor import QTensor, expected_flat
from .scheme import Scheme
from .torch_ops import choose_product

_is_compiling = torch.compiler.is_compiling


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
    x = x.resolve_neg() if isinstance(x, torch.Tensor) else x
    desc = QuantizeDesc.of(x, scheme, layout)
    order = None if g_idx is None else column_order(g_idx, desc.k, desc.scheme.group_size)
    if order is None:
        return _quantize(x.detach(), desc)
    order = order.to(x.device)
    return replace(_quantize(x.detach().index_select(1, order), desc), column_order=order)


def _quantize(x: torch.Tensor, desc: QuantizeDesc) -> QTensor:
    if not is_watched():
        return select(desc).run(x)
    tensors, form = torch.ops.tritonq.quantize(x, str(desc.scheme), desc.layout), (desc.scheme, (desc.n, desc.k), desc.dtype)
    names = expected_flat(*form, desc.layout)
    return QTensor(*form, layout=desc.layout, **dict(zip(names, tensors, strict=True)))


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
    expect_type(q, QTensor, "q")
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise InvalidProblemError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype!r}")
    if _is_compiling() or is_watched():
        return torch.ops.tritonq.dequantize(*q.operands, dtype)
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
        ``select(MatmulDesc.of(x, q)).precision_guarantee().bound(x, q, bias, activation, residual)`` bounds the error elementwise.

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
    if not _is_compiling():
        product = find(activation, choose_product, x, q, bias, residual)
        if product is not None and not (
                (x.requires_grad or (bias is not None and bias.requires_grad) or (residual is not None and residual.requires_grad))
                and torch.is_grad_enabled()):  # fmt: skip
            return product.run(x, q, bias, residual)
    return torch.ops.tritonq.matmul(x, *q.operands, bias, activation, residual)


def grouped_matmul(x: torch.Tensor, experts: QStack, ends: torch.Tensor, activation: str | None = None) -> torch.Tensor:
    """Rows of each expert times that expert's weight: ``activation(x[rows of e] @ w_hat[e].T)``.

    Args:
        x: ``[T, K]``, rows sorted by expert.
        experts: weights ``[E, N, K]``.
        ends: int32 ``[E]`` on the same device, rising: expert e has the rows ``ends[e - 1]`` to ``ends[e]``; it may have none. (The
            ``offs`` of ``torch._grouped_mm``.)
        activation: as for :func:`matmul`.

    Returns:
        ``[T, N]`` (``[T, N / 2]`` for swiglu) in x's dtype; rows beyond ``ends[-1]`` are zero, which is how rows are left out.

    One product per expert that has rows, of the same kernels and precision as :func:`matmul`. ``ends`` is read on the host: a GPU is
    waited for, and a CUDA graph cannot hold it. Gradients flow to x.

    Raises:
        InvalidProblemError: shapes, dtypes or ends that do not fit.

    Example:
        >>> import torch, tritonq
        >>> experts = tritonq.QStack.of(tritonq.quantize(torch.cat([torch.eye(4), 2 * torch.eye(4)]), "int8"), 2)
        >>> tritonq.grouped_matmul(torch.ones(3, 4), experts, torch.tensor([1, 3], dtype=torch.int32))[:, 0].tolist()
        [1.0, 2.0, 2.0]
    """
    if activation is not None:
        expect_type(activation, str, "activation")
    expect_type(experts, QStack, "experts")
    if not _is_compiling():
        expect_dense(x, "x"), expect_dense(ends, "ends")
    return torch.ops.tritonq.grouped_matmul(x, *experts.operands, ends, activation)
