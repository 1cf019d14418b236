"""What the compiler makes of ``matmul_frag``: every configuration that the heuristic chooses, without a GPU."""
import dataclasses

import pytest
import torch

from tests.support import survey
from tritonq import MatmulDesc, Scheme, reference, select
from tritonq.codegen import examine
from tritonq.codegen.budgets import MATMUL_FRAG, MATMUL_FRAG_ALU, MATMUL_FRAG_FEW, MATMUL_FRAG_GATED, of_release
from tritonq.codegen.examine import examine_config
from tritonq.codegen.occupancy import programs_per_multiprocessor
from tritonq.formats import FORMATS
from tritonq.formats.numerics import decode_minifloat_ref
from tritonq.kernels import frag_launch as kernels
from tritonq.kernels.fragment_asm import unpacker
from tritonq.plans.core import Target

N, K = 128, 4096


def compiled(scheme: str, dtype: torch.dtype, m: int, arch: int = 90, *, multiprocessors: int = 1):
    """One multiprocessor has enough programs with N rows to take the tiles of large matrices; 132 have not."""
    q = reference.quantize(torch.zeros(N, K, dtype=dtype), Scheme.parse(scheme)).relayout("frag")
    config = kernels.config(m, N, K, q.scheme, multiprocessors, arch)
    with survey.launches(arch) as rows:
        x = torch.zeros(m, K, dtype=dtype)
        kernels.bind(x, q, None, None, None, config, (m, N), arch=arch).run(x, q, None, None)
    ((name, report, *_),) = rows
    assert name == "matmul_frag"
    return report, config


@pytest.mark.parametrize("table, scheme, dtype, m", [(table, *row) for table in (MATMUL_FRAG, MATMUL_FRAG_FEW) for row in table],
                         ids=lambda v: ("few" if v is MATMUL_FRAG_FEW else "many") if isinstance(v, dict) else str(v))  # fmt: skip
def test_the_main_loop(table, scheme, dtype, m):
    few = table is MATMUL_FRAG_FEW
    wgmma = kernels.config(m, N, K, Scheme.parse(scheme), 1, 90)["num_warps"] > 2  # with split-K, which its many sums make the harder
    report, config = compiled(scheme, getattr(torch, dtype), m, multiprocessors=132 if few or wgmma else 1)
    assert wgmma or config["BLOCK_N"] == (64 if few or m <= 8 else 128)
    loop, kinds = report.main_loop, report.histogram(in_loop=True)
    weights = config["BLOCK_N"] * config["BLOCK_K"] // (32 * report.num_warps)
    assert report.spills == 0
    assert set(kinds) & {"HMMA", "HGMMA"} == {"HGMMA" if wgmma else "HMMA"} and not report.unfenced
    detours = [i.opcode for i in loop if i.kind.startswith(("STS", "SHFL", "I2F", "F2F", "STL", "LDL"))]
    assert set(detours) <= {"F2FP.F16.E4M3.UNPACK_B"}, "weights go from the load to the tensor core"
    copies = [i.width for i in loop if i.kind == "LDGSTS"]
    assert copies.count(128) >= weights // 32 and set(copies) <= {32, 64, 128}, "weights and x by 16 bytes, scales by 4 or 8"
    assert kinds["LDG"] == 0, "everything in the loop is copied ahead"
    assert len(loop) / weights <= table[scheme, dtype, m], f"{len(loop) / weights:.3f} instructions per weight"
    alu = 2 * report.busy_in_loop["alu"] / weights  # instructions: 64 lanes
    assert alu <= MATMUL_FRAG_ALU.get((scheme, dtype, m), len(loop) / weights), f"{alu:.3f} of them on the integer pipe"
    programs = programs_per_multiprocessor(90, registers=report.registers, shared=report.shared, num_warps=report.num_warps)
    assert programs >= (4 if m <= 16 else 2 if m <= 32 else 1)


def test_one_binary_serves_every_number_of_rows_of_a_tile():
    """Also one row, and a multiple of 16, for which Triton would make others: decoding compiles once, and costs what the budgets say."""
    for one, other in ((1, 5), (13, 16)):
        (first, tile), (second, same) = (compiled("int8.g128", torch.bfloat16, m) for m in (one, other))
        assert tile == same and first.ptx == second.ptx


@pytest.mark.parametrize("scheme, dtype, m", [
    ("int4.g128", "float16", 1), ("int4.g128", "bfloat16", 32), ("nf4.g64", "bfloat16", 16), ("nf4.g64", "bfloat16", 32),
    ("int8.channel", "float16", 1), ("int3.g128", "float16", 32), ("uint4.g128.fz", "float16", 32), ("int4.g128", "bfloat16", 64),
])  # fmt: skip
def test_swiglu(scheme, dtype, m):
    dtype, target = getattr(torch, dtype), Target(backend="triton", device="cuda", arch=90)
    desc = MatmulDesc(m=m, n=4096, k=K, dtype=dtype, scheme=Scheme.parse(scheme), target=target, source_dtype=dtype, layout="frag",
                      activation="swiglu")  # fmt: skip
    (row,) = examine(desc)
    assert row.kernel == "matmul_frag" and row.constants["GATED"] and not row.violations(), row.violations()
    plan = select(desc)
    (plain,) = examine_config(desc.plain(), plan.kernel, plan.config)  # the same tile, of neighbouring rows
    assert row.per_weight <= plain.per_weight + of_release(MATMUL_FRAG_GATED) and row.tile == plain.tile
    assert row.tile == examine(desc.plain())[0].tile


@pytest.mark.parametrize("scheme, m, inside", [("int4.g128", 1, True), ("uint4.g128", 8, True), ("int8.channel", 8, True),
                                               ("int4.g128", 9, False), ("nf4.g64", 1, False)])  # fmt: skip
def test_act_order(scheme, m, inside):
    target = Target(backend="triton", device="cuda", arch=90)
    desc = MatmulDesc(m=m, n=4096, k=K, dtype=torch.float16, scheme=Scheme.parse(scheme), target=target, source_dtype=torch.float16,
                      layout="frag", act_order=True)  # fmt: skip
    (row,) = examine(desc)
    assert row.kernel == "matmul_frag" and row.gathers is inside and not row.violations(), row.violations()


@pytest.mark.parametrize("arch", [80, 89, 120])
@pytest.mark.parametrize("scheme, dtype", [("int4.g128", torch.bfloat16), ("nf4.g64", torch.float16)], ids=str)
def test_other_architectures(scheme, dtype, arch):
    report, _ = compiled(scheme, dtype, 8, arch)
    kinds = report.histogram(in_loop=True)
    assert report.spills == 0 and kinds["HMMA"] and not kinds["SHFL"] and not kinds["STS"]


def test_names_tell_the_scheme():
    report, _ = compiled("nf4.g64", torch.float16, 1)
    assert ".entry matmul_frag_nf4_g64(" in report.ptx


def test_only_codes_of_the_instruction_are_converted_by_it():
    """An e4m3 whose last code is 480 instead of NaN goes the portable way, as does every e4m3 where the architecture is not known."""
    known = FORMATS["fp8_e4m3"]
    other = dataclasses.replace(known, decode_ref=lambda code: decode_minifloat_ref(code, 4, 3, 0x7F))
    asked = [(known, 90), (known, 89), (known, 80), (known, None), (other, 90)]
    assert ["cvt" in unpacker(fmt, torch.float16, False, arch).asm[0] for fmt, arch in asked] == [True, True, False, False, False]
    assert other.levels[0x7F] == 480
