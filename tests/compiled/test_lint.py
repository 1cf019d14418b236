"""What the schemes launch, compiled for every architecture: no spills, wide memory accesses, exact arithmetic, instruction budgets."""
import re
import subprocess
import sys

import pytest
import torch
import triton

import tritonq
from tests.support import survey
from tests.support.report import NUMBERS, PATH, measured, page, written
from tritonq.codegen.budgets import DEQUANTIZE_ROWS, QUANTIZE_FRAG, QUANTIZE_ROWS, of_release
from tritonq.formats import FORMATS
from tritonq.scheme import PRESETS, Scheme

DEFAULTS = [*FORMATS, *(name for name in PRESETS if name == name.lower())]
MAIN = ("int4", "nf4", "mxfp4", "fp8_e4m3")
OTHERS = (80, 89, 100, 120)
# sm_90 sees everything, the other architectures the main schemes and the rest in turns.
CASES = [(scheme, 90, torch.bfloat16) for scheme in DEFAULTS]
CASES += [(scheme, 90, torch.float32) for scheme in DEFAULTS[::2]]
CASES += [(scheme, arch, torch.bfloat16) for j, arch in enumerate(OTHERS) for scheme in dict.fromkeys((*MAIN[j % 2 :: 2], *DEFAULTS[j::6]))]
# What is not IEEE: approximations, and sums and products without a rounding mode, which ptxas may contract to one rounding.
INEXACT = re.compile(r"\b(div\.full|div\.approx|rcp\.approx|ex2\.approx|(add|sub|mul)(\.ftz)?\.f(16|32|64))\b.*")
newest = pytest.mark.skipif(not triton.__version__.startswith(NUMBERS), reason=f"the figures are those of Triton {NUMBERS}")


def launched(scheme, arch, dtype, shape=(4096, 14336)):
    """(name, report, constants, grid) of quantize, dequantize and matmul."""
    with survey.launches(arch) as rows:
        q = tritonq.quantize(torch.empty(shape, dtype=dtype), scheme)
        q.dequantize()
        tritonq.matmul(torch.empty(16, shape[1], dtype=dtype), q)
    return rows


@pytest.mark.parametrize("scheme, arch, dtype", CASES, ids=str)
def test_kernels_of_a_scheme(scheme, arch, dtype):
    for name, report, constants, _ in launched(scheme, arch, dtype):
        assert report.spills == 0, (name, report.spills)
        if name != "range_partials":
            assert re.search(r"\.entry (\w+)", report.ptx)[1] == f"{name.split('_')[0]}_{str(Scheme.parse(scheme)).replace('.', '_')}"
        if name == "quantize_rows":
            # x comes in 16 bytes at a time (narrower loads are those of tables and partials).
            wide = [width for width in report.global_loads if width == 128]
            assert len(wide) * 16 * 32 * report.num_warps >= survey.elements(constants) * dtype.itemsize, report.global_loads
        if not name.startswith("matmul"):
            assert not (found := INEXACT.search(report.ptx)), (name, found[0])


@pytest.mark.parametrize("scheme", QUANTIZE_ROWS)
def test_instruction_budget(scheme):
    row = measured(scheme)[0]
    assert row.instructions <= of_release(QUANTIZE_ROWS[scheme])
    assert set(row.stores) <= {128, 32, 16, 8} and 128 in row.stores and row.spills == 0


@pytest.mark.parametrize("scheme", QUANTIZE_FRAG)
def test_instruction_budget_of_quantize_frag(scheme):
    row = written(scheme)
    assert row.kernel == "quantize_frag" and row.budget is not None and not row.violations()
    assert 128 in row.report.global_loads and 128 in row.report.global_stores


def test_code_for_amd():
    """The paths have no inline assembly. In a child process, because LLVM may abort."""
    code = """
import torch, tritonq
from tests.support import survey
for scheme in ("int4", "nf4", "mxfp4", "uint4.fz"):
    with survey.launches("gfx942") as rows:
        tritonq.quantize(torch.empty(64, 1024, dtype=torch.bfloat16), scheme).dequantize()
    for name, report, *_ in rows:
        assert report.spills == 0 and "global_load_dwordx4" in report.amdgcn or name != "quantize_rows", name
    print(scheme, len(rows))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 4


@newest
@pytest.mark.parametrize("scheme", DEQUANTIZE_ROWS)
def test_instruction_budget_of_dequantize(scheme):
    row = measured(scheme)[-1]
    assert row.kernel == "dequantize_rows" and row.instructions <= DEQUANTIZE_ROWS[scheme]
    assert set(row.stores) == {128} and row.spills == 0 and row.shared == 0


@newest
def test_the_page_of_figures_is_current():
    assert PATH.read_text() == page()
