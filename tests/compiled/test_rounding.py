"""The same of the compiled quantize_rows: two numbers rounded at a time, magnitudes of two at a time, cells from other lanes."""
import pytest

from tests.kernels.test_rounding import BF16, F16, equal_the_reference, near_boundaries, one_in_every_place

SAMPLE = [("int4.g128", BF16, 90), ("int4.g128", F16, 80), ("int3.g128", F16, 90), ("int2.g128", BF16, 90), ("nf4.g128", BF16, 90),
          ("nf4.g128", F16, 90)]  # fmt: skip


@pytest.mark.parametrize("scheme, dtype, simulator", SAMPLE, ids=str, indirect=["simulator"])
def test_every_boundary_and_its_neighbours(scheme, dtype, simulator):
    equal_the_reference(near_boundaries(scheme, dtype, 1 if dtype == BF16 else 4), scheme, "cpu")
    assert simulator.launches == 1


@pytest.mark.parametrize("scheme, dtype", [("int4.g128", BF16), ("int4.g32", F16)], ids=str)
def test_every_place_counts(scheme, dtype, simulator):
    equal_the_reference(one_in_every_place(dtype), scheme, "cpu")
