"""Triton itself, as this library uses it: each feature against torch, in the repaired interpreter or on the GPU."""
import pytest
import torch

from tests.support.feature_checks import CHECKS, same


def _lacks(check) -> bool:
    if not torch.cuda.is_available():
        return False
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor < check.min_arch


@pytest.mark.parametrize("name", CHECKS)
def test_feature(name: str, device: str) -> None:
    if _lacks(CHECKS[name]):
        pytest.skip(f"this GPU is older than sm_{CHECKS[name].min_arch}")
    got, expected = CHECKS[name].run(device)
    assert same(got, expected)
