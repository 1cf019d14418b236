"""Floor 4. Facts about one call: shapes, dtypes, scheme, target. A descriptor holds no tensor and is hashable."""
from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch

from ..dtypes import FLOAT_DTYPES, dtype_name
from ..errors import InvalidProblemError
from ..qtensor import QTensor
from ..scheme import Scheme
from .core import Target, expect_dense, expect_type


@dataclass(frozen=True, kw_only=True)
class QuantizeDesc:
    """Quantize ``[n, k]`` of ``dtype`` under ``scheme`` into ``layout``."""

    n: int
    k: int
    dtype: torch.dtype
    scheme: Scheme
    target: Target
    layout: str = "row"

    op = "quantize"

    @classmethod
    def of(cls, x: torch.Tensor, scheme: Scheme | str, layout: str = "row") -> QuantizeDesc:
        """The descriptor of ``tritonq.quantize(x, scheme, layout=)``; refuses anything but a matrix."""
        expect_dense(x, "x")
        if x.dim() != 2:
            raise InvalidProblemError(f"x must be a matrix [N, K], got shape {tuple(x.shape)}; reshape it first")
        return cls(n=x.shape[0], k=x.shape[1], dtype=x.dtype, scheme=Scheme.parse(scheme), target=Target.of(x.device),
                   layout=expect_type(layout, str, "layout"))  # fmt: skip

    def __str__(self) -> str:
        tail = f", {self.layout}" if self.layout != "row" else ""
        return f"quantize(n={self.n}, k={self.k}, {self.scheme}, {dtype_name(self.dtype)}, {self.target}{tail})"


@dataclass(frozen=True, kw_only=True)
class DequantizeDesc:
    """Decode an ``[n, k]`` matrix of ``scheme`` into ``dtype``. ``source_dtype`` is the dtype that was quantized."""

    n: int
    k: int
    dtype: torch.dtype
    scheme: Scheme
    target: Target
    source_dtype: torch.dtype
    layout: str = "row"
    act_order: bool = False

    op = "dequantize"

    @classmethod
    def of(cls, q: QTensor, dtype: torch.dtype | None = None) -> DequantizeDesc:
        """The descriptor of ``tritonq.dequantize(q, dtype)``."""
        expect_type(q, QTensor, "q")
        return cls(n=q.shape[0], k=q.shape[1], dtype=dtype or q.dtype, scheme=q.scheme, target=Target.of(q.device),
                   source_dtype=q.dtype, layout=q.layout, act_order=q.column_order is not None)  # fmt: skip

    def __str__(self) -> str:
        tail = ", act_order" * self.act_order
        return f"dequantize(n={self.n}, k={self.k}, {self.scheme}, {dtype_name(self.dtype)}, {self.target}{tail})"


@dataclass(frozen=True, kw_only=True)
class MatmulDesc:
    """``activation(x[m, k] @ w_hat[n, k].T + bias) + residual`` with x and the result of ``dtype``.

    The result is ``[m, n]``, or ``[m, n / 2]`` for the activation ``swiglu``, whose weight holds the gate's rows and then as many of up.
    """

    m: int
    n: int
    k: int
    dtype: torch.dtype
    scheme: Scheme
    target: Target
    source_dtype: torch.dtype
    layout: str = "row"
    act_order: bool = False
    bias: bool = False
    activation: str | None = None
    residual: bool = False

    op = "matmul"

    @classmethod
    def of(cls, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None = None, activation: str | None = None,
           residual: torch.Tensor | None = None) -> MatmulDesc:  # fmt: skip
        """The descriptor of ``tritonq.matmul(x, q, ...)``; refuses shapes and devices that do not match."""
        expect_dense(x, "x")
        expect_type(q, QTensor, "q")
        n, k = q.shape
        if x.dim() < 1 or x.shape[-1] != k:
            raise InvalidProblemError(f"x has shape {tuple(x.shape)}; its last dimension must be K={k} of the weight [N, K] = {q.shape}")
        if x.device != q.device:
            raise InvalidProblemError(f"x is on {x.device}, the weight on {q.device}; move one with .to()")
        for name, tensor, shape in (("bias", bias, (n,)), ("residual", residual, (*x.shape[:-1], features(n, activation)))):
            if tensor is None:
                continue
            expect_dense(tensor, name)
            if tuple(tensor.shape) != shape:
                raise InvalidProblemError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
            if tensor.dtype not in FLOAT_DTYPES or tensor.device != x.device:
                rule = "float16, bfloat16, float32 or float64"
                raise InvalidProblemError(f"{name} must be a tensor of {rule} on {x.device}, got {tensor.dtype} on {tensor.device}")
        return cls(m=prod(x.shape[:-1]), n=n, k=k, dtype=x.dtype, scheme=q.scheme, target=Target.of(x.device), source_dtype=q.dtype,
                   layout=q.layout, act_order=q.column_order is not None, bias=bias is not None, activation=activation,
                   residual=residual is not None)  # fmt: skip

    @property
    def features(self) -> int:
        """Columns of the result."""
        return features(self.n, self.activation)

    @property
    def epilogue(self) -> str | None:
        parts = ["bias"] * self.bias + [self.activation] * (self.activation is not None) + ["residual"] * self.residual
        return "+".join(parts) or None

    def plain(self) -> MatmulDesc:
        """The same product without an epilogue."""
        return replace(self, bias=False, activation=None, residual=False)

    def __str__(self) -> str:
        tail = (f", {self.layout}" if self.layout != "row" else "") + ", act_order" * self.act_order
        tail += (f", {self.epilogue}" if self.epilogue else "")
        return f"matmul(m={self.m}, n={self.n}, k={self.k}, {self.scheme}, {dtype_name(self.dtype)}, {self.target}{tail})"


@dataclass(frozen=True, kw_only=True)
class MatmulBackwardDesc:
    """``dy[m, n] @ w_hat[n, k]`` with dy and the result of ``dtype``: the gradient of a matmul's x."""

    m: int
    n: int
    k: int
    dtype: torch.dtype
    scheme: Scheme
    target: Target
    source_dtype: torch.dtype
    layout: str = "row"
    act_order: bool = False

    op = "matmul_backward"

    @classmethod
    def of(cls, dy: torch.Tensor, q: QTensor) -> MatmulBackwardDesc:
        """The descriptor of the gradient ``[..., K]`` for ``dy`` ``[..., N]``; refuses shapes and devices that do not match."""
        expect_dense(dy, "dy")
        expect_type(q, QTensor, "q")
        n, k = q.shape
        if dy.dim() < 1 or dy.shape[-1] != n:
            raise InvalidProblemError(f"dy has shape {tuple(dy.shape)}; its last dimension must be N={n} of the weight [N, K] = {q.shape}")
        if dy.device != q.device:
            raise InvalidProblemError(f"dy is on {dy.device}, the weight on {q.device}; move one with .to()")
        return cls(m=prod(dy.shape[:-1]), n=n, k=k, dtype=dy.dtype, scheme=q.scheme, target=Target.of(dy.device), source_dtype=q.dtype,
                   layout=q.layout, act_order=q.column_order is not None)  # fmt: skip

    def __str__(self) -> str:
        tail = (f", {self.layout}" if self.layout != "row" else "") + ", act_order" * self.act_order
        return f"matmul_backward(m={self.m}, n={self.n}, k={self.k}, {self.scheme}, {dtype_name(self.dtype)}, {self.target}{tail})"


def features(n: int, activation: str | None) -> int:
    """Columns of the result of a product with ``n`` rows of weight."""
    return n // 2 if activation == "swiglu" else n


Desc = QuantizeDesc | DequantizeDesc | MatmulDesc | MatmulBackwardDesc
_KINDS = {kind.op: kind for kind in (QuantizeDesc, DequantizeDesc, MatmulDesc, MatmulBackwardDesc)}


def describe(op: str, *, n: int, k: int, m: int | None, dtype: torch.dtype, scheme: Scheme, target: Target, layout: str) -> Desc:
    """The plain problem of operation ``op`` in one dtype, that of the weight that was quantized too; ``m``: of products, else None."""
    more = ({} if op == "quantize" else {"source_dtype": dtype}) | ({} if m is None else {"m": m})
    return _KINDS[op](n=n, k=k, dtype=dtype, scheme=scheme, target=target, layout=layout, **more)
