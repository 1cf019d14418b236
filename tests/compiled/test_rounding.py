"""The same of the compiled quantize_rows: two numbers rounded at a time, magnitudes of two at a time, cells from other lanes."""
import pytest

from tests.kernels import test_rounding as rounding
from tests.kernels.test_rounding import BF16, F16, F32, equal_the_reference

SAMPLE = [("int4.g128", BF16, 90), ("int4.g128", F16, 80), ("int3.g128", F16, 90), ("int2.g128", BF16, 90), ("nf4.g128", BF16, 90),
          ("nf4.g128", F16, 90), ("fp4_bnb.g128", BF16, 90)]  # fmt: skip
FLOATS = [("fp8_e4m3.g256", BF16), ("fp8_e5m2.g256", F16), ("mxfp4", BF16), ("nvfp4", BF16), ("fp4_e2m1.g16", F16)]


@pytest.mark.parametrize("scheme, dtype, simulator", SAMPLE, ids=str, indirect=["simulator"])
def test_every_boundary_and_its_neighbours(scheme, dtype, simulator):
    equal_the_reference(rounding.near_boundaries(scheme, dtype, 1 if dtype == BF16 else 4), scheme, "cpu")
    assert simulator.launches == 1


@pytest.mark.parametrize("scheme, dtype", [("uint4.g256", BF16), ("uint3.g128", F16), ("uint4.g128.fz", BF16)], ids=str)
def test_every_boundary_beside_a_zero_point(scheme, dtype, simulator):
    equal_the_reference(rounding.near_affine_boundaries(scheme, dtype, 1 if dtype == BF16 else 16), scheme, "cpu")


@pytest.mark.parametrize("scheme, dtype", FLOATS, ids=str)
def test_every_boundary_of_small_floats(scheme, dtype, simulator):
    step = 64 if dtype == F16 else 2 if "fp8" in scheme else 1
    equal_the_reference(rounding.near_float_boundaries(scheme, dtype, step), scheme, "cpu")


@pytest.mark.parametrize("scheme, dtype", [("int4.g128", BF16), ("int4.g32", F16), ("uint4.g128", BF16), ("uint4.g128.fz", BF16)], ids=str)
def test_every_place_counts(scheme, dtype, simulator):
    equal_the_reference(rounding.one_in_every_place(dtype)[:: 1 if scheme.startswith("int") else 3], scheme, "cpu")


@pytest.mark.parametrize("scheme", ["uint4.g32", "uint4.g32.fz", "fp4_bnb.g32", "mxfp4"])
def test_ends_of_rows_hold_zeros(scheme, simulator):
    equal_the_reference(rounding.finite(4, 127), scheme, "cpu")


@pytest.mark.parametrize("shape", [(1, 16), (2, 16), (1, 48), (3, 1)], ids=str)
@pytest.mark.parametrize("scheme, dtype", [("nvfp4", BF16), ("fp8_e4m3.b1x16", F32), ("int3.token.se4m3", F16)], ids=str)
def test_fewer_numbers_than_a_conversion_takes(scheme, dtype, shape, simulator):
    equal_the_reference(rounding.finite(*shape).to(dtype), scheme, "cpu")
