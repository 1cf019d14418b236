"""The dequantize kernels compiled: every code, every path, bit for bit the reference."""
import pytest
import torch

from tests.support.decoding import FORMAT_CASES, GEOMETRIES, check
from tests.support.schemes import DTYPES, every_code


@pytest.mark.parametrize("scheme, shape, dtype", FORMAT_CASES[::2], ids=str)
def test_every_code_of_a_format(scheme, shape, dtype, simulator):
    check(every_code(scheme, shape, dtype), dtype)


@pytest.mark.parametrize("simulator", [80, 90], indirect=True)
@pytest.mark.parametrize("scheme, shape, kernel", GEOMETRIES, ids=str)
def test_every_path(scheme, shape, kernel, simulator):
    out = DTYPES[GEOMETRIES.index((scheme, shape, kernel)) % len(DTYPES)]
    check(every_code(scheme, shape, torch.float16), out)


@pytest.mark.parametrize("scheme", ["int3.g1", "int4.column", "int8.g7", "uint4.g5", "int4.g32", "nf4.g1", "fp8_e4m3.g3"])
def test_scales_beyond_the_range_of_the_result(scheme, simulator):
    check(every_code(scheme, (16, 127), torch.bfloat16), torch.float16)
