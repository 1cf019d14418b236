"""Floor 6. Matrices and vectors to codes and back."""
from __future__ import annotations

from dataclasses import replace

import torch

from .. import ops
from ..errors import InvalidProblemError
from ..formats.integer import encode_integer_ref
from ..methods import QuantizationMethod, QuantizationParams, check_pair, encoding_scheme, method_scheme, stored_fields
from ..plans.core import expect_type
from ..qtensor import QTensor
from .ranges import find_min_max

_METHOD = QuantizationMethod


def quantize_matrix(
    x: torch.Tensor, bits: int, method: QuantizationMethod, rounding: str = "half_even"
) -> tuple[QTensor, QuantizationParams]:
    """Quantize a matrix with one scale (per-channel methods: one per column).

    Args:
        x: ``[N, K]`` float16, bfloat16, float32 or float64; any strides, also empty.
        bits: 2 to 8; ignored by INT4, UINT4, FLOAT16 and BFLOAT16.
        method: see :mod:`tritonq.methods`.
        rounding: ties of codes and zero points, ``"half_even"`` or ``"half_away"``.

    Returns:
        The QTensor, and the parameters as Python numbers (reads them back from a GPU). NaN is coded as zero, +-Inf as the end of
        the code range, and neither enters the range; a range without extent has scale 1. An empty matrix has scale 1.

    Raises:
        InvalidProblemError: not a float matrix, bits that the method does not have, no QuantizationMethod, an unknown rounding.

    Example:
        >>> q, params = quantize_matrix(torch.tensor([[0.0, 255.0]]), 8, QuantizationMethod.POWER_OF_TWO)
        >>> params.scale, q.codes().tolist()
        (1.0, [[0, 255]])
    """
    q = encode(x, bits, method, rounding)
    bits = method.code_bits(bits)
    low, high = find_min_max(x)
    fields = {"zero_point": 0, "min_val": low, "max_val": high, **stored_fields(q, method)}
    if method.per_channel and fields["channel_zero_points"]:
        zero_points = fields["channel_zero_points"]
        fields["zero_point"] = _rounded(sum(zero_points) / len(zero_points), rounding)
    if method is _METHOD.UINT4:
        # As the quotient of two float32 values, rounded to float32 first: what a caller computing it from the fields gets.
        low, scale = torch.tensor([fields["min_val"], fields["scale"]], dtype=torch.float32)
        fields["zero_point"] = _rounded((-low / scale).item(), rounding)
    return q, QuantizationParams(bits=bits, method=method, data_type=method.data_type(bits), **fields)


def quantize_matrix_per_channel(
    x: torch.Tensor, bits: int, method: QuantizationMethod, rounding: str = "half_even"
) -> tuple[QTensor, QuantizationParams]:
    """:func:`quantize_matrix` for PER_CHANNEL_SYMMETRIC and PER_CHANNEL_AFFINE alone; a channel is a column of ``[N, K]``.

    Example:
        >>> q, params = quantize_matrix_per_channel(torch.tensor([[1.0, 10.0]]), 8, QuantizationMethod.PER_CHANNEL_SYMMETRIC)
        >>> len(params.channel_scales)
        2
    """
    method_scheme(method, bits, rounding)
    if not method.per_channel:
        raise InvalidProblemError(f"quantize_matrix_per_channel takes the PER_CHANNEL methods, got {method.name}; use quantize_matrix")
    return quantize_matrix(x, bits, method, rounding)


def quantize_vector(
    x: torch.Tensor, bits: int, method: QuantizationMethod, rounding: str = "half_even"
) -> tuple[QTensor, QuantizationParams]:
    """:func:`quantize_matrix` of a vector ``[n]``: the QTensor is ``[1, n]``. Per-channel methods are refused.

    Example:
        >>> q, params = quantize_vector(torch.tensor([7.0, -3.0, 0.0]), 4, QuantizationMethod.INT4)
        >>> q.codes().tolist()
        [[7, -3, 0]]
    """
    if expect_type(x, torch.Tensor, "x").dim() != 1:
        raise InvalidProblemError(f"x must be a vector [n], got shape {tuple(x.shape)}; use quantize_matrix")
    method_scheme(method, bits, rounding)
    refuse_per_channel(method)
    return quantize_matrix(x[None], bits, method, rounding)


def dequantize_matrix(q: QTensor, params: QuantizationParams, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The decoded matrix ``[N, K]``, in the dtype that was quantized unless ``dtype`` says otherwise.

    Raises:
        InvalidProblemError: ``params`` were not made with ``q``.

    Example:
        >>> q, params = quantize_matrix(torch.tensor([[1.0, 3.0]]), 4, QuantizationMethod.UINT4)
        >>> dequantize_matrix(q, params).tolist()
        [[1.0, 3.0]]
    """
    check_pair(q, params)
    return ops.dequantize(q, dtype)


def dequantize_vector(q: QTensor, params: QuantizationParams, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The decoded vector ``[n]`` of a ``[1, n]`` QTensor; see :func:`dequantize_matrix`, also for what it raises."""
    check_vector(q)
    return dequantize_matrix(q, params, dtype).squeeze(0)


def encode(x: torch.Tensor, bits: int, method: QuantizationMethod, rounding: str) -> QTensor:
    """The QTensor of :func:`quantize_matrix`, without reading anything back."""
    scheme = method_scheme(method, bits, rounding)
    q = ops.quantize(x, encoding_scheme(method, bits, rounding))
    return q if q.scheme == scheme else replace(q, scheme=scheme)


def refuse_per_channel(method: QuantizationMethod) -> None:
    """Refuse a method that has one scale per column, for a vector."""
    if method.per_channel:
        whole = method.name.removeprefix("PER_CHANNEL_")
        raise InvalidProblemError(f"{method.name} has one scale per column, which for a vector is one per element; use {whole}")


def check_vector(q: QTensor, name: str = "q") -> None:
    """Refuse a QTensor that is no vector."""
    if expect_type(q, QTensor, name).shape[0] != 1:
        raise InvalidProblemError(f"{name} must be a vector, a QTensor of shape (1, n), got shape {q.shape}; quantize_vector makes one")


def _rounded(value: float, rounding: str) -> int:
    return int(encode_integer_ref(torch.tensor(value, dtype=torch.float64), 0, -(2**31), 2**31 - 1, rounding == "half_away"))
