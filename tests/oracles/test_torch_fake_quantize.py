"""8-bit codes against torch.fake_quantize_per_tensor_affine and torch.fake_quantize_per_channel_affine."""
import pytest
import torch

import tritonq


def assert_same_but_ties(ours: torch.Tensor, theirs: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> None:
    """torch multiplies by 1 / scale: one step apart where x / scale lies within a rounding of a tie, equal bits elsewhere."""
    differ = ours != theirs
    u = (x.double() / scale.double()).expand_as(x)[differ]
    assert differ.float().mean() < 1e-3 and ((u - u.round()).abs() > 0.4999).all()


@pytest.mark.parametrize("shift", [0.0, 0.7, -3.0])
@pytest.mark.parametrize("scheme, low, high", [("uint8", 0, 255), ("int8", -128, 127), ("uint4", 0, 15), ("int4", -8, 7)])
def test_per_tensor(scheme, low, high, shift):
    x = torch.randn(64, 100) + shift
    q = tritonq.quantize(x, f"{scheme}.tensor")
    zero = q.zero_point.int().view(1) if q.zero_point is not None else torch.zeros(1, dtype=torch.int32)
    theirs = torch.fake_quantize_per_tensor_affine(x, q.scale.view(1), zero, low, high)
    assert_same_but_ties(q.dequantize(), theirs, x, q.scale)


@pytest.mark.parametrize("axis, geometry", [(0, "channel"), (1, "column")])
@pytest.mark.parametrize("scheme, low, high", [("uint8", 0, 255), ("int8", -128, 127), ("uint2", 0, 3), ("int3", -4, 3)])
def test_per_channel(scheme, low, high, axis, geometry):
    x = torch.randn(64, 100) + 0.4
    q = tritonq.quantize(x, f"{scheme}.{geometry}")
    zero = q.zero_point.int().flatten() if q.zero_point is not None else torch.zeros(q.scale.numel(), dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(x, q.scale.flatten(), zero, axis, low, high)
    assert_same_but_ties(q.dequantize(), theirs, x, q.scale)
