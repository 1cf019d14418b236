"""What the simulator refuses, and that it sees faults planted in a program or in itself."""
import contextlib
import re

import numpy as np
import pytest
import torch

from tests.support import feature_kernels as kernels
from tests.support import ptx_sim
from tests.support import simulator as tool
from tests.support.feature_checks import CHECKS, same
from tests.support.poison import check_fence, fenced, poisoned_empty
from tests.support.ptx import arithmetic, convert, machine, matrix, numbers, warp
from tritonq.codegen import compiler

_float_to_bf16 = numbers.float_to_bf16


def _cut(values: np.ndarray, toward_zero: bool = False) -> np.ndarray:
    return _float_to_bf16(values, True)


TOOL_FAULTS = {
    "bf16 cut instead of rounded": (numbers, "float_to_bf16", _cut, "add bfloat16"),
    "lanes numbered the wrong way": (warp, "LANES", np.arange(32)[::-1], "group sum float32"),
    "mma rows swapped": (matrix, "_GROUP", np.arange(32) // 4 ^ 1, "dot float16 M=16 warps=4"),
    "every swizzle ignored": (matrix, "_SWIZZLE_MASK", {1: 0, 2: 0, 3: 0}, "dot float16 M=64 transposed warps=4"),
    "fma rounds twice": (arithmetic.exact, "fma_unrounded", lambda x, y, z: (x * y).astype(x.dtype) + z, "fma float32"),
    "float64 fma rounds twice": (arithmetic.exact, "fma", lambda x, y, z: x * y + z, "fma float64"),
    "integers rounded, not cut": (convert, "_TO_INTEGER", dict.fromkeys(convert._TO_INTEGER, np.trunc), "round_asm"),
}


@pytest.mark.parametrize("fault", TOOL_FAULTS)
def test_a_fault_in_the_tool_is_seen(fault: str, simulator, monkeypatch) -> None:
    module, name, broken, check = TOOL_FAULTS[fault]
    assert same(*CHECKS[check].run("cpu"))
    monkeypatch.setattr(module, name, broken)
    with contextlib.suppress(ptx_sim.PtxError):
        assert not same(*CHECKS[check].run("cpu"))


def _run(kernel, arguments: dict, constexprs: dict, *, grid=(1,), arch: int = 90, edit=lambda ptx: ptx, lazy: bool = False, **options):
    """Compile with every pointer aligned, edit the PTX, run it."""
    pointers = {torch.float32: "*fp32", torch.float16: "*fp16", torch.uint8: "*u8"}
    signature = {name: pointers[value.dtype] if isinstance(value, torch.Tensor) else "i32" for name, value in arguments.items()}
    report = compiler.compile_kernel(kernel, signature, constexprs, arch=arch, **options)
    limits = {"num_warps": report.num_warps, "shared": report.shared, "max_steps": 200_000}
    return ptx_sim.launch(edit(report.ptx), grid, list(arguments.values()), **limits, lazy=lazy)


def test_load_out_of_bounds(simulator) -> None:
    with pytest.raises(ptx_sim.PtxError, match="global load out of bounds: block .1, 0, 0."):
        kernels.unmasked_copy[(2,)](torch.randn(250), torch.empty(256), BLOCK=128)


def test_store_out_of_bounds(simulator) -> None:
    out = fenced(torch.zeros(250))
    with pytest.raises(ptx_sim.PtxError, match="global store out of bounds"):
        kernels.unmasked_copy[(2,)](torch.randn(256), out, BLOCK=128)
    check_fence(out)


def test_atomic_out_of_bounds(simulator) -> None:
    with pytest.raises(ptx_sim.PtxError, match="atomic out of bounds"):
        kernels.atomic[(1,)](torch.randn(64), torch.zeros(7), OP="add", BLOCK=64)


def test_misaligned_vector_access() -> None:
    """Code compiled for aligned pointers, given one that is not: a GPU stops with a misaligned address."""
    source, out = torch.randn(1028), torch.empty(1024)
    _run(kernels.unmasked_copy, {"x": source[:1024], "out": out}, {"BLOCK": 1024})
    assert torch.equal(out, source[:1024])
    with pytest.raises(ptx_sim.PtxError, match="misaligned global access of 16 bytes"):
        _run(kernels.unmasked_copy, {"x": source[1:1025], "out": out}, {"BLOCK": 1024})


def test_the_launcher_notices_misaligned_pointers(simulator) -> None:
    source, out = torch.randn(1028), torch.empty(1024)
    kernels.unmasked_copy[(1,)](source[1:1025], out, BLOCK=1024)
    assert torch.equal(out, source[1:1025])
    assert "ld.global.v4" not in simulator.last.asm["ptx"]
    kernels.unmasked_copy[(1,)](source[:1024], out, BLOCK=1024)
    assert "ld.global.v4" in simulator.last.asm["ptx"] and simulator.compiles == 2


def test_inexact_division_is_not_ieee(simulator) -> None:
    """A kernel that divides with ``/`` differs from one that uses ``div_rn``."""
    x, y, out = torch.randn(1024), torch.randn(1024), torch.empty(1024)
    kernels.binary[(1,)](x, y, out, OP="divide", BLOCK=1024)
    assert re.search(r"div\.(full|approx)", simulator.last.asm["ptx"])
    assert not torch.equal(out, x / y) and torch.allclose(out, x / y, rtol=3e-7)
    kernels.binary[(1,)](torch.full((1024,), 3.0), torch.full((1024,), 0.5), out, OP="divide", BLOCK=1024)
    assert (out == 6.0).all()


def test_contraction_is_seen(simulator) -> None:
    x, y, z = torch.randn(3, 4096)
    out = torch.empty(4096)
    kernels.multiply_add[(1,)](x, y, z, out, BLOCK=4096, enable_fp_fusion=True)
    assert not torch.equal(out, x * y + z)
    kernels.multiply_add[(1,)](x, y, z, out, BLOCK=4096, enable_fp_fusion=False)
    assert torch.equal(out, x * y + z)


@pytest.mark.parametrize("simulator", [80, 90], indirect=True)
def test_the_intended_matrix_instruction_runs(simulator) -> None:
    assert same(*CHECKS["dot float16 M=64 transposed warps=4"].run("cpu"))
    wanted = "wgmma.mma_async" if simulator.arch == 90 else "mma.sync"
    assert wanted in simulator.last.asm["ptx"]


@pytest.mark.parametrize("simulator", [80, 90], indirect=True)
def test_a_pipeline_right_at_the_latest_moment(simulator) -> None:
    simulator.lazy = True
    assert same(*CHECKS["pipelined dot"].run("cpu"))
    assert "cp.async.wait_group" in simulator.last.asm["ptx"]


def _pipelined(edit, lazy: bool, arch: int) -> bool:
    x, w, out = torch.randint(-4, 5, (64, 256)).half(), torch.randint(-4, 5, (32, 256)).half(), poisoned_empty(64, 32)
    options = {"divisible": {"K"}, "num_stages": 3, "arch": arch, "lazy": lazy, "edit": edit}
    _run(kernels.pipelined_dot, {"a": x, "b": w, "out": out, "K": 256}, {"M": 64, "N": 32, "BK": 64}, **options)
    return torch.equal(out, x.float() @ w.float().T)


@pytest.mark.parametrize(("arch", "wait"), [(80, r"cp\.async\.wait_group\s+\d+;"), (90, r"wgmma\.wait_group\.sync\.aligned\s+1;")])
def test_a_missing_wait_shows_only_when_lazy(arch: int, wait: str) -> None:
    def without_waits(ptx: str) -> str:
        edited = re.sub(wait, "", ptx)
        assert edited != ptx
        return edited

    assert _pipelined(lambda ptx: ptx, lazy=True, arch=arch)
    assert _pipelined(without_waits, lazy=False, arch=arch)
    with contextlib.suppress(ptx_sim.PtxError):
        assert not _pipelined(without_waits, lazy=True, arch=arch)


def test_a_wrong_instruction_shows() -> None:
    x, out = torch.randn(1024), poisoned_empty(1024)
    arguments, sizes = {"x": x, "out": out, "n": 1000}, {"FILL": True, "MASK_STORE": True, "BLOCK": 1024}
    _run(kernels.masked_copy, arguments, sizes)
    assert torch.equal(out[:1000], x[:1000]) and torch.isnan(out[1000:]).all()
    _run(kernels.masked_copy, arguments, sizes, edit=lambda ptx: re.sub(r"setp\.lt\.s32", "setp.le.s32", ptx))
    assert not torch.isnan(out[1000])


def test_programs_run_in_any_order(simulator) -> None:
    for order in (None, lambda n: reversed(range(n)), lambda n: torch.randperm(n).tolist()):
        simulator.order = order
        assert same(*CHECKS["last program sums"].run("cpu"))


def test_unwritten_shared_memory_is_not_zero() -> None:
    """Drop the stores to shared memory of a reduction across warps."""
    x, out = torch.ones(16, 256), poisoned_empty(16, 4)
    arguments = {"x": x, "out": out}
    sizes = {"OP": "sum", "ROWS": 16, "COLS": 256, "GROUP": 64}
    _run(kernels.group_reduce, arguments, sizes)
    assert (out == 64).all()

    def without_stores(ptx: str) -> str:
        edited = re.sub(r"(@%p\d+ )?(st\.shared|stmatrix)[^;]*;", "", ptx)
        assert edited != ptx
        return edited

    _run(kernels.group_reduce, arguments, sizes, edit=without_stores)
    assert torch.isnan(out).any()


def test_endless_loop_stops() -> None:
    with pytest.raises(ptx_sim.PtxError, match="more than 200000 instructions"):
        _run(
            kernels.unmasked_copy,
            {"x": torch.randn(128), "out": torch.empty(128)},
            {"BLOCK": 128},
            edit=lambda ptx: ptx.replace("ret;", "$again: \n bra $again;"),
        )


@pytest.mark.parametrize(
    ("kind", "register", "compare", "value"),
    [("s8", "%rs", "s16", -2), ("s16", "%r", "s32", -2), ("u16", "%r", "u32", 65534), ("s32", "%rd", "s64", -2), ("u8", "%rs", "u16", 254)],
)
def test_a_load_fills_a_wider_register(kind: str, register: str, compare: str, value: int) -> None:
    lines = f"""mov.b32 %r9999, -2; st.shared.b32 [global_smem], %r9999; bar.sync 0; ld.shared.{kind} {register}9998, [global_smem];
                setp.ne.{compare} %p9999, {register}9998, {value}; @%p9999 trap; ret;"""
    arguments = {"x": torch.randn(128), "out": torch.empty(128)}
    _run(kernels.unmasked_copy, arguments, {"BLOCK": 128}, edit=lambda ptx: ptx.replace("ret;", lines))
    with pytest.raises(ptx_sim.PtxError, match="trap"):
        _run(kernels.unmasked_copy, arguments, {"BLOCK": 128}, edit=lambda ptx: ptx.replace("ret;", lines.replace("setp.ne", "setp.eq")))


UNMODELLED = [
    "cp.async.bulk.wait_group 0;",
    "trap;",
    "add.rz.f32 %r1, %r1, %r1;",
    "fancy.new.b32 %r1, %r1;",
    "bar.red.popc.u32 %r1, 0, %p1;",
    "add.s32x7 %r1, %r1, %r1;",
]


@pytest.mark.parametrize("line", UNMODELLED)
def test_what_is_not_modelled_is_refused(line: str) -> None:
    with pytest.raises(ptx_sim.PtxError, match=re.escape(line.rstrip(";"))):
        _run(
            kernels.unmasked_copy,
            {"x": torch.randn(128), "out": torch.empty(128)},
            {"BLOCK": 128},
            edit=lambda ptx: ptx.replace("ret;", line + "\n ret;"),
        )


def test_shared_memory_has_bounds() -> None:
    line = "st.shared.b32 [global_smem+65536], %r1;"
    with pytest.raises(ptx_sim.PtxError, match="shared memory access out of bounds"):
        _run(
            kernels.unmasked_copy,
            {"x": torch.randn(128), "out": torch.empty(128)},
            {"BLOCK": 128},
            edit=lambda ptx: ptx.replace("ret;", line + "\n ret;"),
        )


def test_specialisations_are_compiled_once(simulator) -> None:
    x, out = torch.randn(640), torch.empty(640)
    for n in (600, 601, 1, 608):
        kernels.masked_copy[(20,)](x, out, n, FILL=False, MASK_STORE=True, BLOCK=32)  # no other test has this block
    # 600 and 601 share one; 1 is a constant; 608 is a multiple of 16
    assert (simulator.compiles, simulator.launches) == (3, 4)


def test_empty_grid_and_empty_tensor(simulator) -> None:
    out = torch.full((4,), 2.0)
    kernels.unmasked_copy[(0,)](torch.empty(0), out, BLOCK=128)
    assert (out == 2.0).all()


def test_wrong_arguments_are_named(simulator) -> None:
    with pytest.raises(TypeError, match="argument x of unmasked_copy: a kernel takes no str"):
        kernels.unmasked_copy[(1,)]("text", torch.empty(128), BLOCK=128)


def test_uninstall_gives_launches_back() -> None:
    real = tool.JITFunction.run
    tool.install(80)
    assert tool.JITFunction.run is not real
    tool.uninstall()
    assert tool.JITFunction.run is real


def test_nudged_results_are_one_ulp_away() -> None:
    values = torch.randn(1000).numpy()
    moved = numbers.nudge(values)
    assert (np.abs(moved.view(np.int32).astype(np.int64) - values.view(np.int32)) == 1).all()
    kept = np.array([0.0, -0.0, np.inf, np.nan, 1e-40], np.float32)
    assert np.array_equal(numbers.nudge(kept).view(np.uint32), kept.view(np.uint32))
    assert machine.SHARED_BASE % 1024 == 0  # wgmma swizzles address bits below 1024
