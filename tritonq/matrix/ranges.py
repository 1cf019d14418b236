"""Floor 6. Ranges of data, and parameters from a range."""
from __future__ import annotations

import math

import torch

from ..dtypes import FLOAT_DTYPES
from ..errors import InvalidProblemError
from ..methods import QuantizationMethod, QuantizationParams, encoding_scheme
from ..plans.core import expect_dense, expect_type
from ..reference.parameters import scale_from_absmax, scale_from_range


def find_min_max(x: torch.Tensor) -> tuple[float, float]:
    """Least and greatest finite value of a float tensor of any shape; (0, 0) where there is none.

    Raises:
        InvalidProblemError: no dense tensor of a float dtype.

    Example:
        >>> find_min_max(torch.tensor([[1.0, -2.0], [torch.inf, torch.nan]]))
        (-2.0, 1.0)
    """
    x = expect_dense(x.detach().resolve_neg() if isinstance(x, torch.Tensor) else x, "x")
    if x.dtype not in FLOAT_DTYPES:
        raise InvalidProblemError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}; convert it with .float()")
    if not x.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(x)
    if not bool(low.isfinite() & high.isfinite()):  # NaN and Inf reach the ends, so finite ends mean finite values
        finite = x[x.isfinite()]
        if not finite.numel():
            return 0.0, 0.0
        low, high = torch.aminmax(finite)
    return low.item(), high.item()


def create_params_from_range(bits: int, min_val: float, max_val: float, symmetric: bool, rounding: str = "half_even") -> QuantizationParams:
    """SYMMETRIC or AFFINE parameters for values in ``min_val..max_val``, as quantizing float32 data of that range gives them.

    Args:
        bits: 2 to 8.
        min_val, max_val: finite, ``min_val <= max_val``. AFFINE extends the range to contain 0.
        symmetric: SYMMETRIC (scale = max(|min|, |max|) / (2**(bits-1) - 1)) instead of AFFINE.
        rounding: of the zero point, ``"half_even"`` or ``"half_away"``.

    Raises:
        InvalidProblemError: a range that is not finite or upside down, bits out of range.

    Example:
        >>> create_params_from_range(8, -1.0, 4.1, symmetric=False).zero_point
        50
    """
    for name, value in (("min_val", min_val), ("max_val", max_val)):
        if isinstance(expect_type(value, (int, float), name), float) and not math.isfinite(value):
            raise InvalidProblemError(f"{name} must be finite, got {value!r}")
        if abs(value) > torch.finfo(torch.float32).max:
            raise InvalidProblemError(f"{name} must be finite in float32, got {value!r}"[:200])
    if min_val > max_val:
        raise InvalidProblemError(f"min_val={min_val!r} is greater than max_val={max_val!r}; swap them")
    method = QuantizationMethod.SYMMETRIC if expect_type(symmetric, bool, "symmetric") else QuantizationMethod.AFFINE
    scheme = encoding_scheme(method, bits, rounding)
    low, high = torch.tensor([[min_val], [max_val]], dtype=torch.float32)
    if symmetric:
        scale, zero_point = scale_from_absmax(torch.maximum(-low, high), scheme, torch.float32), 0
    else:
        scale, zero_point = scale_from_range(low, high, scheme, torch.float32)
    return QuantizationParams(bits=bits, scale=scale.item(), zero_point=int(zero_point), min_val=low.item(), max_val=high.item(),
                              method=method, data_type=method.data_type(bits))  # fmt: skip
