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
