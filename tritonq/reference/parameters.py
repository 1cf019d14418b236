"""Floor 2. From the range of a group to its scale and zero point: the one statement of these rules in torch."""
from __future__ import annotations

import torch

from ..formats.dynamic_map import DYNAMIC_MAP
from ..formats.integer import encode_integer_ref
from ..formats.numerics import round_up_to_power_of_two_ref
from ..scheme import DQ_BLOCK, Scheme


def scale_from_absmax(absmax: torch.Tensor, scheme: Scheme, dtype: torch.dtype, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
    """absmax (float32 or float64, any shape) -> the scale as stored. 0 means a group without range."""
    storage = scheme.scale_format(dtype)
    if scheme.recipe == "mx":
        exponent = (absmax.double().view(torch.int64) >> 52) - (1023 - 127) - scheme.max_exponent
        return exponent.clamp_(0, 254).to(torch.uint8).view(storage.dtype)
    scale = absmax / scheme.divisor
    if tensor_scale is not None:
        scale = scale / tensor_scale
    return storage.encode_ref(_finish(scale, absmax, scheme))


def scale_from_range(low: torch.Tensor, high: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest finite value of each group -> (scale, zero point) as stored. low > high means that there is none."""
    if scheme.float_zero:
        empty = low > high
        low, high = low.masked_fill(empty, 0), high.masked_fill(empty, 0)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
    extent = high - low
    storage = scheme.scale_format(dtype)
    scale = storage.encode_ref(_finish(extent / scheme.divisor, extent, scheme))
    if scheme.float_zero:
        return scale, scheme.zero_format(dtype).encode_ref(low + 0.0)  # no -0.0: which zero is the least depends on the order
    ratio = -low / storage.decode_ref(scale).to(low.dtype)
    zero_point = encode_integer_ref(ratio, 0, *scheme.code_range, "away" in scheme.options)
    return scale, zero_point.to(torch.uint8)


def _finish(scale: torch.Tensor, extent: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Guard underflow, give groups without range their scale, round up to a power of two where asked."""
    scale = torch.where((scale == 0) & (extent > 0), torch.finfo(scale.dtype).smallest_normal * torch.finfo(scale.dtype).eps, scale)
    scale = torch.where(extent == 0, scheme.format.empty_scale, scale)
    if scheme.rounds_up:
        scale = torch.where(scale > 0, round_up_to_power_of_two_ref(scale), scale)
    return scale


TENSOR_SCALE_MAX = torch.finfo(torch.float32).max / 512


def tensor_scale(absmax: torch.Tensor) -> torch.Tensor:
    """The float32 scale of a whole nvfp4 tensor, absmax / (448 * 6), so that the largest block scale is e4m3's largest value; 1 for 0.

    Clamped between the smallest float32 and the value that 448 times stays finite.
    """
    scale = (absmax / (448.0 * 6.0)).clamp(2.0**-149, TENSOR_SCALE_MAX).to(torch.float32)
    return torch.where(absmax > 0, scale, 1.0)


def double_quantize(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float32 scales of any shape -> (uint8 codes of that shape, float32 absmax per 256 of them, float32 offset).

    The offset is the mean, summed in float64 so that it does not depend on the order of the sum.
    """
    offset = scale.double().mean().float() if scale.numel() else torch.zeros((), dtype=torch.float32, device=scale.device)
    centred = torch.nn.functional.pad((scale - offset).flatten(), (0, -scale.numel() % DQ_BLOCK)).view(-1, DQ_BLOCK)
    absmax = centred.abs().amax(1)
    table = torch.tensor(DYNAMIC_MAP, dtype=torch.float32, device=scale.device)
    bounds = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(centred / torch.where(absmax > 0, absmax, 1.0)[:, None], bounds)
    return codes.flatten()[: scale.numel()].view(scale.shape).to(torch.uint8), absmax, offset
