"""The offline compiler reports what it should: widths, loops, registers, spills."""
import re

import pytest
import triton
import triton.language as tl

from tests.support import feature_kernels as kernels
from tritonq.codegen import compiler, sass


@triton.jit
def _many_live_values(x, out, N: tl.constexpr, BLOCK: tl.constexpr):
    """Keeps N blocks alive across a loop, so that few registers do not suffice."""
    i = tl.arange(0, BLOCK)
    values = ()
    for j in tl.static_range(N):
        values = values + (tl.load(x + j * BLOCK + i),)
    for _ in range(2):
        total = tl.zeros((BLOCK,), tl.float32)
        for j in tl.static_range(N):
            total += tl.exp(values[j]) * values[N - 1 - j]
        values = (total,) + values[:-1]
    for j in tl.static_range(N):
        tl.store(out + j * BLOCK + i, values[j])


def _copy(divisible=None, block=1024, arch=90):
    return compiler.compile_kernel(kernels.unmasked_copy, {"x": "*fp32", "out": "*fp32"}, {"BLOCK": block}, arch=arch, divisible=divisible)


@pytest.mark.parametrize("arch", [80, 89, 90, 100, 120])
def test_every_architecture_compiles(arch: int) -> None:
    report = _copy(arch=arch)
    assert report.arch == arch and f".target sm_{arch}" in report.ptx
    assert 0 < report.registers <= 255 and report.spills == 0
    assert report.histogram()["EXIT"] >= 1 and report.histogram()["LDG"] == 2


def test_widths_of_loads_and_stores() -> None:
    aligned = _copy()
    assert aligned.global_loads == [128, 128] and aligned.global_stores == [128, 128]
    assert _copy(divisible={"out"}).global_loads == [32] * 8
    assert _copy(divisible={"out"}).global_stores == [128, 128]
    bytes_report = compiler.compile_kernel(kernels.unmasked_copy, {"x": "*u8", "out": "*u8"}, {"BLOCK": 128}, divisible={"out"})
    assert bytes_report.global_loads == [8]


def test_the_main_loop_holds_the_matrix_instruction() -> None:
    signature = {"a": "*fp16", "b": "*fp16", "out": "*fp32", "K": "i32"}
    sizes = {"M": 64, "N": 32, "BK": 64}
    report = compiler.compile_kernel(kernels.pipelined_dot, signature, sizes, divisible={"K"}, num_warps=4, num_stages=3)
    inside, everywhere = report.histogram(in_loop=True), report.histogram()
    assert inside["HGMMA"] == 4 and inside["LDGSTS"] == 6
    assert 0 < sum(inside.values()) < sum(everywhere.values()) == len(report.instructions)
    assert any(opcode.startswith("HGMMA.64x32x16") for opcode in report.histogram(modifiers=True))
    assert set(report.global_loads) == {128}
    assert report.shared >= 3 * (64 + 32) * 64 * 2 and report.spills == 0


def test_spills_are_counted() -> None:
    signature = {"x": "*fp32", "out": "*fp32"}
    assert compiler.compile_kernel(_many_live_values, signature, {"N": 2, "BLOCK": 128}, num_warps=1).spills == 0
    # 12 blocks of 32 values per thread: more than the 255 registers that a thread may have
    assert compiler.compile_kernel(_many_live_values, signature, {"N": 12, "BLOCK": 1024}, num_warps=1).spills > 0


def test_code_for_amd() -> None:
    report = _copy(arch="gfx942")
    assert "global_load_dwordx4" in report.amdgcn and report.registers > 0 and report.spills == 0


def test_launch_options_reach_the_compiler() -> None:
    signature = dict.fromkeys(("x", "y", "z", "out"), "*fp32")
    fused = compiler.compile_kernel(kernels.multiply_add, signature, {"BLOCK": 128}, enable_fp_fusion=True)
    separate = compiler.compile_kernel(kernels.multiply_add, signature, {"BLOCK": 128}, enable_fp_fusion=False)
    assert fused.histogram()["FFMA"] > 0 and separate.histogram()["FFMA"] == 0


def test_a_listing_is_parsed() -> None:
    listing = """
.L_x_0:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.64.CONSTANT R2, desc[UR4][R2.64] ;
.L_x_2:
        /*0020*/                   HMMA.16816.F32 R4, R8, R2, R4 ;
        /*0030*/               @P1 BRA `(.L_x_2) ;
        /*0040*/               @P2 BRA `(.L_x_1) ;
        /*0050*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
        /*0060*/                   EXIT ;
.L_x_3:
        /*0070*/                   BRA `(.L_x_3);
        /*0080*/                   NOP;
"""
    instructions, loops = sass.parse_sass(listing)
    assert [i.kind for i in instructions] == ["MOV", "LDG", "HMMA", "BRA", "BRA", "STG", "EXIT"]
    assert [len(loop) for loop in loops] == [2, 4]
    assert instructions[1].width == 64 and instructions[1].predicate == "@!P0" and instructions[5].width == 16


def test_nothing_of_this_process_is_launched() -> None:
    with pytest.raises(RuntimeError, match=re.escape("0 active drivers")):
        kernels.unmasked_copy[(1,)](1, 2, BLOCK=128)


def test_the_shortest_path_is_that_of_whole_warps():
    """A branch without a predicate always leaves it, BRA.DIV only in a warp that has diverged."""
    code = """
        /*0000*/                   {branch} `(.L_x_1) ;
        /*0010*/                   FADD R0, R0, R0 ;
        /*0020*/                   FADD R0, R0, R0 ;
        /*0030*/                   EXIT ;
.L_x_1:
        /*0040*/                   EXIT ;
"""
    assert [sass.shortest_path(code.format(branch=branch)) for branch in ("BRA", "@P0 BRA", "BRA.DIV UR5,")] == [2, 2, 4]
