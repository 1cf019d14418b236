"""Every rule of ``tritonq.codegen`` sees its fault, planted in a kernel, its PTX or the table, and passes code without it."""
import dataclasses
import os
import re
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl

from tests.compiled.test_codegen import _many_live_values
from tests.support import feature_kernels as kernels
from tritonq import DequantizeDesc, MatmulDesc, QuantizeDesc, Scheme
from tritonq._triton import LACKS_PROXY_FENCE
from tritonq.codegen import EXPECTED, Expected, Row, examine, occupancy, rules, violations
from tritonq.codegen import budgets as tables
from tritonq.codegen.compiler import Report, compile_kernel, parse_warnings, ptxas_warnings
from tritonq.codegen.table import COLUMNS, cells
from tritonq.errors import InvalidProblemError
from tritonq.plans.core import Target


def problem(scheme="int4.g128", m=1, dtype=torch.float16, arch=90, n=4096, k=4096, layout="frag"):
    target = Target(backend="triton", device="cuda", arch=arch)
    return MatmulDesc(m=m, n=n, k=k, dtype=dtype, source_dtype=dtype, scheme=Scheme.parse(scheme), target=target, layout=layout)


@pytest.fixture(scope="module")
def good() -> Row:
    (row,) = examine(problem())
    return row


def broken(row: Row) -> dict[str, str]:
    return {v.rule: v.value for v in violations(row)}


def with_kernel(row: Row, report: Report, **constants) -> Row:
    """The row as if its kernel had compiled to ``report``."""
    return dataclasses.replace(row, report=report, constants={**row.constants, **constants})


@triton.jit
def _narrow(w_ptr, x_ptr, out_ptr, steps, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr):
    """A product whose weights come one column at a time, so that a thread's elements are WIDTH apart in memory."""
    n, m, k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(steps):
        column = step * BLOCK_K + k
        w = tl.load(w_ptr + n[:, None] * 4096 + column[None, :] * WIDTH)
        acc = tl.dot((w & 15).to(tl.float16), tl.load(x_ptr + m[None, :] * 4096 + column[:, None]), acc)
    tl.store(out_ptr + m[None, :] * 4096 + n[:, None], acc)


def narrow(width: int) -> Report:
    signature = {"w_ptr": "*i32", "x_ptr": "*fp16", "out_ptr": "*fp32", "steps": "i32"}
    return compile_kernel(_narrow, signature, {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "WIDTH": width}, arch=80, num_warps=4)


def test_a_shipped_kernel_passes(good):
    assert good.kernel == "matmul_frag" and not good.violations() and cells(good)[-1] == "ok" and len(cells(good)) == len(COLUMNS)
    assert good.matrix == ["HMMA.16816.F32"] and good.weight_loads == [128] and good.waits >= 1 and good.programs >= 4
    assert 1.0 < good.per_weight <= good.budget == tables.MATMUL_FRAG["int4.g128", "float16", 1]
    summary = good.summary()
    assert summary["registers"] == good.report.registers and summary["tile"] == good.tile == "8x64x256 w2 s3 split 4"


def test_every_load_belongs_to_an_argument(good):
    loads = good.report.loads
    assert set(loads["w_ptr"]) == set(loads["x_ptr"]) == {128} and set(loads["scale_ptr"]) == {32}
    assert sum(map(len, loads.values())) == len(good.report.global_loads)


def test_spills(good):
    full = compile_kernel(_many_live_values, {"x": "*fp32", "out": "*fp32"}, {"N": 12, "BLOCK": 1024}, num_warps=1)
    assert re.fullmatch(r"\d+ bytes per thread", broken(with_kernel(good, full))["spills"])


def test_another_matrix_instruction(good):
    sizes = {"M": 64, "N": 32, "BK": 64}
    signature = {"a": "*fp16", "b": "*fp16", "out": "*fp32", "K": "i32"}
    wgmma = compile_kernel(kernels.pipelined_dot, signature, sizes, divisible={"K"}, num_warps=4, num_stages=3)
    assert "matrix instruction" not in broken(with_kernel(good, wgmma)), "four warps are to make wgmma"
    synchronous = dataclasses.replace(with_kernel(good, wgmma), expected=EXPECTED["matmul_ksplit"])
    assert broken(synchronous)["matrix instruction"].startswith("HGMMA.64x32x16.F32 instead of HMMA")
    copy = compile_kernel(kernels.unmasked_copy, {"x": "*fp32", "out": "*fp32"}, {"BLOCK": 128})
    assert broken(with_kernel(good, copy))["matrix instruction"] == "none instead of HGMMA"


def test_narrow_weight_loads(good):
    assert broken(with_kernel(good, narrow(8)))["weight loads"] == "w_ptr is loaded 32 bits at a time"
    assert "weight loads" not in broken(with_kernel(good, narrow(1)))
    copy = compile_kernel(kernels.unmasked_copy, {"x": "*fp32", "out": "*fp32"}, {"BLOCK": 128})
    assert broken(with_kernel(good, copy))["weight loads"] == "no load of w_ptr was found"


def test_detours_of_weights(good):
    # int32 to float16 is a conversion instruction, and the product's left operand comes through shared memory or shuffles
    assert re.search(r"\d+ I2F", broken(with_kernel(good, narrow(1)))["main loop"])


def test_wgmma_left_in_flight(good):
    waiting = re.sub(r"$", "\n  ttng.warp_group_dot_wait %acc {pendings = 0 : i32} : tensor<64x32xf32>", good.report.ttgir)
    assert "waits" not in broken(with_kernel(good, dataclasses.replace(good.report, ttgir=waiting)))
    waiting = waiting.replace("pendings = 0", "pendings = 1")
    assert broken(with_kernel(good, dataclasses.replace(good.report, ttgir=waiting)))["waits"] == "warp_group_dot_wait leaves 1 in flight"


def test_wgmma_in_flight_is_read_from_real_code():
    signature = {"a": "*fp16", "b": "*fp16", "out": "*fp32", "K": "i32"}
    report = compile_kernel(kernels.pipelined_dot, signature, {"M": 64, "N": 32, "BK": 64}, divisible={"K"}, num_warps=4, num_stages=3)
    assert report.wgmma_in_flight and report.wgmma_in_flight == [
        int(n) for n in re.findall(r"pendings = (\d+)", report.ttgir)
    ] and report.warnings == []  # fmt: skip
    # Without the waits the loop touches accumulators of products that still run, which ptxas has to serialise.
    serial = re.sub(r"wgmma\.wait_group\.sync\.aligned \d+;", "", report.ptx)
    assert serial != report.ptx and any(w.startswith("C75") for w in ptxas_warnings(serial, 90))


def test_wgmma_without_a_proxy_fence(good):
    signature = {"a": "*fp16", "b": "*fp16", "out": "*fp32", "K": "i32"}
    report = compile_kernel(kernels.pipelined_dot, signature, {"M": 64, "N": 32, "BK": 64}, divisible={"K"}, num_warps=4, num_stages=3)
    assert "cp.async.wait" in report.ptx and ("proxy fence" in broken(with_kernel(good, report))) is LACKS_PROXY_FENCE
    bare = re.sub(r"fence\.proxy\.async\S*", "", report.ptx)
    fenced = bare.replace("wgmma.fence", "fence.proxy.async.shared::cta;\n wgmma.fence")
    assert "proxy fence" not in broken(with_kernel(good, dataclasses.replace(report, ptx=fenced)))
    assert broken(with_kernel(good, dataclasses.replace(report, ptx=bare)))["proxy fence"].startswith("wgmma reads what cp.async wrote")


_SCATTERED = """
#linear = #ttg.linear<{register = [], lane = [[0, 0, 1], [0, 0, 2], [1, 0, 0], [2, 0, 0], [0, 0, 4]], warp = [[0, 1, 0]], block = []}>
    %a = "tt.reduce"(%x) <{axis = AXIS : i32}> ({
    ^bb0(%l: i32, %r: i32):
      tt.reduce.return %l : i32
    }) : (tensor<SHAPExi32, ENCODING>) -> tensor<4x2xi32>
"""


@pytest.mark.parametrize("axis, shape, encoding, lanes", [
    (2, "4x2x8", "#linear", "bits [0, 1, 4]"), (0, "4x2x8", "#linear", None), (1, "4x2x8", "#linear", None), (1, "4x8", "#blocked", None),
    (1, "4x8", "#ttg.slice<{dim = 1, parent = #linear}>", "bits [0, 1, 4]"), (0, "2x8", "#ttg.slice<{dim = 0, parent = #linear}>", None),
    (0, "8", "#ttg.slice<{dim = 0, parent = #ttg.slice<{dim = 1, parent = #linear}>}>", "bits [0, 1, 4]"),
])  # fmt: skip
def test_reductions_over_lanes_that_are_no_neighbours(axis, shape, encoding, lanes, good, monkeypatch):
    ttgir = _SCATTERED.replace("AXIS", str(axis)).replace("SHAPE", shape).replace("ENCODING", encoding)
    row = with_kernel(good, dataclasses.replace(good.report, ttgir=ttgir))
    monkeypatch.setattr(rules, "SCATTERED_REDUCTIONS_FAIL", True)
    assert lanes is None and "reductions" not in broken(row) or lanes in broken(row)["reductions"]
    monkeypatch.setattr(rules, "SCATTERED_REDUCTIONS_FAIL", False)
    assert "reductions" not in broken(row)


def test_warnings_of_ptxas(good):
    log = """ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ...
ptxas info    : 0 bytes gmem
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ...
"""
    found = parse_warnings(log)
    assert found == ["C7510: Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..."]
    assert parse_warnings("ptxas info : Used 75 registers, C7 C751") == []
    row = dataclasses.replace(good, report=dataclasses.replace(good.report))
    row.report.__dict__["warnings"] = found
    assert broken(row) == {"ptxas warnings": found[0]}


def test_a_budget_exceeded(good, monkeypatch):
    monkeypatch.setitem(tables.MATMUL_FRAG, ("int4.g128", "float16", 1), 1.5)
    assert broken(good) == {"budget": f"{good.per_weight:.3f} instructions per weight, at most 1.5"}


def test_budgets_belong_to_a_tile(good, monkeypatch):
    for change in ({"BLOCK_K": 128}, {"EVEN_K": False}):
        ragged = dataclasses.replace(good, constants={**good.constants, **change})
        assert ragged.budget is None and not broken(ragged)
    monkeypatch.setitem(tables.MATMUL_FRAG, ("int4.g128", "float16", 7), 1.6)
    assert good.budget == 1.6  # the same tile of x: the least counts


def test_occupancy(good):
    row = dataclasses.replace(good, expected=dataclasses.replace(good.expected, programs={8: 33}))
    assert broken(row) == {"occupancy": f"{good.programs} programs per multiprocessor, at least 33"}


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "programs"),
    [(90, 128, 20480, 2, 8), (90, 255, 0, 4, 2),
     (90, 24, 0, 2, 32), (89, 24, 0, 4, 12), (80, 32, 54 << 10, 4, 2), ("gfx942", 1, 1, 1, None)],
)
def test_programs_per_multiprocessor(arch, registers, shared, warps, programs):
    found = occupancy.programs_per_multiprocessor(arch, registers=registers, shared=shared, num_warps=warps)
    assert found == programs


def test_a_kernel_without_a_line_is_named(monkeypatch):
    monkeypatch.delitem(EXPECTED, "matmul_tiles")
    (row,) = examine(problem(layout="row"))
    assert broken(row) == {"listed": "the kernel has no line in tritonq/codegen/rules.py"}


def test_portable_kernels_are_held_to_what_holds_everywhere():
    (row,) = examine(problem("int8", layout="row", arch=100))
    assert row.kernel == "matmul_tiles" and row.expected == Expected(per="loop") and not row.violations() and row.budget is None


def test_code_for_amd_has_no_machine_rules():
    """In a child process, because LLVM may abort."""
    code = "from tests.compiled.test_codegen_rules import *; (r,) = examine(problem('nf4', layout='row', arch='gfx942'))\n"
    code += "assert r.kernel == 'matmul_tiles' and r.registers and not r.violations() and r.per_weight is None and r.programs is None"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_other_operations(monkeypatch):
    target = Target(backend="triton", device="cuda", arch=90)
    common = {"n": 4096, "k": 14336, "dtype": torch.bfloat16, "scheme": Scheme.parse("int4.g128"), "target": target}
    (quantize,) = examine(QuantizeDesc(**common))
    assert quantize.kernel == "quantize_rows" and quantize.budget in tables.QUANTIZE_ROWS["int4.g128"]
    assert 3 < quantize.per_weight < 20, "its arithmetic alone takes 3: docs/kernels.md"
    (dequantize,) = examine(DequantizeDesc(**common, source_dtype=torch.bfloat16))
    assert dequantize.kernel == "dequantize_rows" and dequantize.budget == tables.DEQUANTIZE_ROWS["int4.g128"] and dequantize.per_weight > 4
    assert {row["rule"] for row in quantize.summary()["violations"]} <= {"budget"}  # whose figures are the newest Triton's


@pytest.mark.parametrize("change", [{"target": Target(backend="reference")}, {"m": 0}], ids=str)
def test_problems_without_code_are_refused(change):
    with pytest.raises(InvalidProblemError, match="code is generated for a GPU|launches no kernel"):
        examine(dataclasses.replace(problem(), **change))


def test_rules_are_named_once():
    assert not set(rules.GENERAL) & set(rules.MACHINE_CODE)
    assert set(EXPECTED) >= {"matmul_frag", "matmul_tiles", "quantize_rows", "quantize_area", "dequantize_tiles", "range_partials"}
