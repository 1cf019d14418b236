"""Triton's compiled code for the same features, its PTX run by the simulator for sm_80 and sm_90."""
import pytest

from tests.support.feature_checks import CHECKS, same


@pytest.mark.parametrize("simulator", [80, 90], indirect=True)
@pytest.mark.parametrize("name", CHECKS)
def test_feature(name: str, simulator) -> None:
    if simulator.arch < CHECKS[name].min_arch:
        pytest.skip(f"the feature needs sm_{CHECKS[name].min_arch}")
    got, expected = CHECKS[name].run("cpu")
    assert simulator.launches > 0
    assert same(got, expected)
