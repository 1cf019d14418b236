"""Floor 6. Products of two quantized operands, right for every pair of methods.

Every value is ``scale * c + offset`` with an integer ``c = code - zero_point`` (the offset is ``min_val`` for float zero methods,
else 0), so that::

    sum(a * b) = sA sB sum(cA cB) + sA oB sum(cA) + sB oA sum(cB) + k oA oB

The sums run in float64, which holds them exactly in any order: they are integers below 2**53 for every k up to 10**11.
Per-column scales are multiplied into ``c`` (exact: 24 + 9 bits), and cast values are their own ``c``.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import ops
from ..errors import InvalidProblemError
from ..methods import QuantizationParams, check_pair
from ..qtensor import QTensor
from .quantize import check_vector


@dataclass(frozen=True)
class _Terms:
    """A decoded operand, taken apart: values are ``scale * steps + offset``."""

    steps: torch.Tensor  # float64 [rows, columns]
    scale: torch.Tensor | float  # float64 scalar
    offset: torch.Tensor | None  # float64 scalar

    def transposed(self) -> _Terms:
        return _Terms(self.steps.T, self.scale, self.offset)


def _terms(q: QTensor) -> _Terms:
    if not q.scheme.has_scale or not q.scale.numel():
        return _Terms(ops.dequantize(q, torch.float64), 1.0, None)
    q = q.relayout("row")
    steps, scale = q.codes().double(), q.scale.double()
    if q.scheme.float_zero:
        return _Terms(steps, scale.squeeze(), q.zero_point.double().squeeze())
    if q.zero_point is not None:
        steps = steps - q.zero_point.double()
    if q.scheme.granularity.kind == "column":
        return _Terms(steps * scale, 1.0, None)
    return _Terms(steps, scale.squeeze(), None)


def _product(a: _Terms, b: _Terms) -> torch.Tensor:
    """float64 ``[rows of a, columns of b]``."""
    y = (a.steps @ b.steps) * (a.scale * b.scale)
    if b.offset is not None:
        y = y + a.steps.sum(1, keepdim=True) * (a.scale * b.offset)
    if a.offset is not None:
        y = y + b.steps.sum(0, keepdim=True) * (b.scale * a.offset)
    if a.offset is not None and b.offset is not None:
        y = y + a.steps.shape[1] * (a.offset * b.offset)
    return y


def _checked(qa: QTensor, pa: QuantizationParams, qb: QTensor, pb: QuantizationParams, rows_of_b: int, shapes: str) -> torch.dtype:
    """The dtype of the result, after all that is wrong with the operands was refused."""
    if qa.shape[1] != rows_of_b:
        raise InvalidProblemError(f"{shapes} do not multiply: {qa.shape[1]} and {rows_of_b} must be equal")
    if qa.device != qb.device:
        raise InvalidProblemError(f"a is on {qa.device}, b on {qb.device}; move one with .to()")
    check_pair(qa, pa, "a")
    check_pair(qb, pb, "b")
    return torch.float64 if torch.float64 in (qa.dtype, qb.dtype) else torch.float32


def _expect_qtensors(qa: QTensor, qb: QTensor) -> None:
    for name, q in (("a", qa), ("b", qb)):
        if not isinstance(q, QTensor):
            raise InvalidProblemError(f"{name} must be a QTensor, got {type(q).__name__}; quantize_matrix and quantize_vector make one")


def quantized_matmul(qa: QTensor, pa: QuantizationParams, qb: QTensor, pb: QuantizationParams) -> torch.Tensor:
    """``a_hat @ b_hat`` of two quantized matrices.

    Args:
        qa, pa: ``[M, K]`` with its parameters.
        qb, pb: ``[K, N]`` with its parameters; any pair of methods and widths.

    Returns:
        ``[M, N]`` float32, float64 where either operand came from float64.

    Raises:
        InvalidProblemError: shapes that do not multiply, parameters that were not made with their QTensor, different devices.

    Precision:
        Computed in float64 from exact integer sums, rounded once to the result's dtype.

    Example:
        >>> from tritonq.matrix import quantize_matrix
        >>> from tritonq.methods import QuantizationMethod
        >>> a, pa = quantize_matrix(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 8, QuantizationMethod.UNIFORM)
        >>> b, pb = quantize_matrix(torch.tensor([[5.0, 6.0], [7.0, 8.0]]), 8, QuantizationMethod.POWER_OF_TWO)
        >>> quantized_matmul(a, pa, b, pb).round().tolist()
        [[19.0, 22.0], [43.0, 50.0]]
    """
    _expect_qtensors(qa, qb)
    dtype = _checked(qa, pa, qb, pb, qb.shape[0], f"matrices of shapes {qa.shape} and {qb.shape}")
    return _product(_terms(qa), _terms(qb)).to(dtype)


def quantized_matvec(qa: QTensor, pa: QuantizationParams, qx: QTensor, px: QuantizationParams) -> torch.Tensor:
    """``a_hat @ x_hat`` ``[M]`` of a quantized matrix ``[M, K]`` and a quantized vector of K elements; see :func:`quantized_matmul`.

    Raises:
        InvalidProblemError: as there, and where ``qx`` is no vector.

    Example:
        >>> from tritonq.matrix import quantize_matrix, quantize_vector
        >>> from tritonq.methods import QuantizationMethod
        >>> a, pa = quantize_matrix(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 8, QuantizationMethod.AFFINE)
        >>> x, px = quantize_vector(torch.tensor([5.0, 6.0]), 8, QuantizationMethod.FLOAT16)
        >>> quantized_matvec(a, pa, x, px).round().tolist()
        [17.0, 39.0]
    """
    _expect_qtensors(qa, qx)
    check_vector(qx, "x")
    dtype = _checked(qa, pa, qx, px, qx.shape[1], f"a matrix of shape {qa.shape} and a vector of {qx.shape[1]}")
    return _product(_terms(qa), _terms(qx).transposed()).squeeze(1).to(dtype)


def quantized_dot(qa: QTensor, pa: QuantizationParams, qb: QTensor, pb: QuantizationParams) -> torch.Tensor:
    """The dot product of two quantized vectors, a 0-d tensor; see :func:`quantized_matmul`.

    Raises:
        InvalidProblemError: as there, and where one is no vector.

    Example:
        >>> from tritonq.matrix import quantize_vector
        >>> from tritonq.methods import QuantizationMethod
        >>> a, pa = quantize_vector(torch.tensor([1.0, 2.0]), 8, QuantizationMethod.UINT4)
        >>> b, pb = quantize_vector(torch.tensor([3.0, 4.0]), 8, QuantizationMethod.UINT4)
        >>> round(quantized_dot(a, pa, b, pb).item())
        11
    """
    _expect_qtensors(qa, qb)
    check_vector(qa, "a")
    check_vector(qb, "b")
    dtype = _checked(qa, pa, qb, pb, qb.shape[1], f"vectors of {qa.shape[1]} and {qb.shape[1]} elements")
    return _product(_terms(qa), _terms(qb).transposed()).reshape(()).to(dtype)
