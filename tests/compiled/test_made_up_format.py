"""The made-up format compiled: its PTX gives the reference's bits, and the compiler's report is clean on every architecture."""
import pytest
import torch

import tritonq
from tests.compiled import test_every_scheme
from tests.support import survey
from tests.support.made_up import SCHEMES, registered
from tests.support.schemes import DTYPES
from tests.support.shapes import FULL

# Each scheme with two dtypes, each dtype with half of the schemes.
CASES = [(scheme, dtype) for i, scheme in enumerate(SCHEMES) for j, dtype in enumerate(DTYPES) if FULL or (i + j) % 2 == 0]


@pytest.fixture(autouse=True)
def sq4():
    with registered() as fmt:
        yield fmt


@pytest.mark.parametrize("scheme, dtype", CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_sm_90(scheme, dtype, simulator):
    test_every_scheme.check(scheme, dtype)


@pytest.mark.parametrize("simulator", [80], indirect=True)
def test_sm_80(simulator):
    test_every_scheme.check("sq4", torch.float16)


@pytest.mark.parametrize("arch", [80, 89, 90, 100, 120])
def test_the_compiler_neither_spills_nor_splits_loads(arch):
    with survey.launches(arch) as rows:
        q = tritonq.quantize(torch.empty(64, 4096, dtype=torch.bfloat16), "sq4.g64")
        tritonq.dequantize(q)
        tritonq.matmul(torch.empty(16, 4096, dtype=torch.bfloat16), q)
    names = [name for name, *_ in rows]
    assert names == ["quantize_rows", "dequantize_rows", "matmul_tiles"]
    for name, report, constants, _ in rows:
        assert report.spills == 0 and f".target sm_{arch}" in report.ptx, name
        assert constants["NAME"] == "sq4_g64"
    with survey.launches(arch) as built_in:
        tritonq.quantize(torch.empty(64, 4096, dtype=torch.bfloat16), "nf4.g64")
    made_up, nf4 = rows[0][1], built_in[0][1]
    assert made_up.global_loads.count(128) == nf4.global_loads.count(128) > 0
    assert survey.executed(made_up) <= 2 * survey.executed(nf4)  # a search without the table takes three times as many
