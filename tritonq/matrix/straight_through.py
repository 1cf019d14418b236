"""Floor 6. Fake quantization of matrices and vectors, with the straight-through gradient."""
from __future__ import annotations

import torch

from .. import ops
from ..backend import reshaped
from ..dtypes import compute_dtype
from ..errors import InvalidProblemError
from ..formats.numerics import narrow_ref, round_half_away_ref
from ..methods import QuantizationMethod
from ..plans.core import expect_type
from ..qtensor import QTensor
from .quantize import encode, refuse_per_channel


def fake_quantize(x: torch.Tensor, bits: int, method: QuantizationMethod, rounding: str = "half_even") -> torch.Tensor:
    """Quantize and decode: what quantization makes of ``x``, in its shape and dtype.

    Args:
        x: ``[N, K]`` or ``[n]``, float16, bfloat16, float32 or float64.
        bits, method, rounding: as in :func:`~tritonq.matrix.quantize_matrix`.

    The gradient is the straight-through estimator: 1 where the rounded, unclamped code lies inside the code range (both ends
    included), else 0; :func:`gradient_mask` gives it. Scale and zero point count as constants.

    Example:
        >>> x = torch.tensor([7.0, -2.6, torch.inf], requires_grad=True)
        >>> y = fake_quantize(x, 4, QuantizationMethod.INT4)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([7.0, -3.0, 7.0], [1.0, 1.0, 0.0])
    """
    if expect_type(x, torch.Tensor, "x").dim() not in (1, 2):
        raise InvalidProblemError(f"x must be a vector [n] or a matrix [N, K], got shape {tuple(x.shape)}; reshape it first")
    if x.dim() == 1 and isinstance(method, QuantizationMethod):
        refuse_per_channel(method)
    return _StraightThrough.apply(x, bits, method, rounding)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bits, method, rounding):
        matrix = x if x.dim() == 2 else x[None]
        q = encode(matrix, bits, method, rounding)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gradient_mask(matrix, q, *method.code_range(bits)).view(x.shape))
        return reshaped(ops.dequantize(q, x.dtype), x.shape)

    @staticmethod
    def backward(ctx, gradient):
        (mask,) = ctx.saved_tensors
        return torch.where(mask, gradient, 0), None, None, None


def gradient_mask(x: torch.Tensor, q: QTensor, q_min: int | None = None, q_max: int | None = None) -> torch.Tensor:
    """bool ``[N, K]``: where the code of ``x`` under the scales of ``q``, rounded and not clamped, lies in ``q_min..q_max``.

    Args:
        x: ``[N, K]``, the matrix that ``q`` came from. NaN counts as zero.
        q: a QTensor of :func:`~tritonq.matrix.quantize_matrix`: one scale per matrix or per column, or a plain cast
            (True where the cast does not overflow).
        q_min, q_max: the range, both ends included; by default the scheme's.

    Example:
        >>> from tritonq.matrix import quantize_vector
        >>> q, _ = quantize_vector(torch.tensor([1.0, -1.0]), 8, QuantizationMethod.SYMMETRIC)
        >>> gradient_mask(torch.tensor([[1.0, 2.0]]), q).tolist()
        [[True, False]]
    """
    scheme, q = q.scheme, q.relayout("row")
    values = x.detach().to(compute_dtype(x.dtype))
    values = torch.where(values.isnan(), 0, values)
    if not scheme.has_scale:
        return narrow_ref(values).to({"fp16": torch.float16, "bf16": torch.bfloat16}[scheme.format.name]).isfinite()
    scale = q.scale.to(values.dtype)
    zero = 0 if q.zero_point is None else q.zero_point.to(values.dtype)
    quotient = (values - zero if scheme.float_zero else values) / scale
    code = round_half_away_ref(quotient) if "away" in scheme.options else quotient.round()
    if not scheme.float_zero:
        code = code + zero
    low, high = scheme.code_range
    return (code >= (low if q_min is None else q_min)) & (code <= (high if q_max is None else q_max))
