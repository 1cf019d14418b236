"""The fused matmul on layout ``ksplit``: its PTX, run by the simulator, keeps what it guarantees; what the compiler makes of it."""
import dataclasses

import pytest
import torch

import tritonq
from tests.support.poison import check_fence, fenced
from tests.support.schemes import same_bits
from tests.support.weights import expected, fence, weight, within
from tritonq import MatmulDesc, Scheme
from tritonq.codegen import examine
from tritonq.codegen.budgets import MATMUL_KSPLIT as BUDGETS
from tritonq.plans import ksplit_entry
from tritonq.plans.core import Target

HALF, BRAIN = torch.float16, torch.bfloat16


def check(scheme, m, n, k, dtype, simulator, exact=False, **config):
    """One product against float64: within the guarantee, or equal bit for bit where every sum is exact."""
    row = weight(scheme, n, k, dtype, seed=m + n + k, exact=exact)
    q = fence(row.relayout("ksplit"))
    generator = torch.Generator().manual_seed(1)
    x = fenced((torch.randint(-4, 5, (m, k), generator=generator) if exact else torch.randn(m, k, generator=generator)).to(dtype))
    plan = tritonq.select(MatmulDesc.of(x, q))
    assert plan.kernel.name == "matmul_ksplit", tritonq.explain(MatmulDesc.of(x, q))
    plan = dataclasses.replace(plan, config=plan.config | config)
    got = plan.run(x, q)
    assert simulator.launches == 1 and "mma.sync" in simulator.last.asm["ptx"]
    if exact:
        assert same_bits(got, expected(x, row).to(dtype))
    else:
        assert within(got, x, row, plan)
    for t in (x, q.packed, q.stored_scale):
        check_fence(t)
    return plan, x, q, got


SAMPLE = (("int4", HALF), ("uint4.g48", BRAIN), ("uint4.g64.fz", BRAIN), ("nf4.dq", BRAIN), ("mxfp4", BRAIN), ("nvfp4", HALF),
          ("int8.g7", HALF), ("uint8.g96", BRAIN), ("mxfp8", BRAIN), ("fp8_e5m2", HALF), ("int3.g16", BRAIN), ("uint3.g5.fz", HALF),
          ("int2", HALF), ("uint2.b3x40", BRAIN))  # fmt: skip


@pytest.mark.parametrize("simulator", [80, 90], indirect=True)
@pytest.mark.parametrize("scheme, dtype", SAMPLE, ids=str)
def test_every_kind_of_scheme(scheme, dtype, simulator):
    check(scheme, 3, 35, 300, dtype, simulator)


@pytest.mark.parametrize("lazy", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("scheme", ["int4", "uint8.g64", "int3.g32"])
def test_bit_for_bit_where_every_sum_is_exact(scheme, lazy, simulator):
    """More blocks than pipeline stages; asynchronous copies as late as their waits allow."""
    simulator.lazy = lazy
    check(scheme, 17, 33, 1300, HALF, simulator, exact=True, SPLIT_K=1)


@pytest.mark.parametrize("rows", [8, 16])
def test_wgmma_with_x_by_columns(rows, simulator):
    """Four warps: the operand in shared memory stands as in x; eight rows of it are not swizzled."""
    row = weight("nf4", 70, 520, BRAIN)
    q, x = row.relayout("ksplit"), torch.randn(520, 9).to(BRAIN).T
    plan = tritonq.select(MatmulDesc.of(x, q))
    config = plan.config | {"BLOCK_M": rows, "BLOCK_N": 64, "num_warps": 4, "STAGES": 1}
    assert ksplit_entry.config_ok(dataclasses.replace(plan.desc, target=Target(backend="triton", device="cuda", arch=90)), config)
    plan = dataclasses.replace(plan, config=config)
    assert within(plan.run(x, q), x, row, plan) and "wgmma" in simulator.last.asm["ptx"]


def test_split_k_is_the_same_whatever_arrives_last(simulator):
    plan, x, q, first = check("uint4", 3, 70, 1300, BRAIN, simulator, SPLIT_K=4)
    shuffled = torch.Generator().manual_seed(3)
    for order in (lambda count: range(count)[::-1], lambda count: torch.randperm(count, generator=shuffled).tolist()):
        simulator.order = order
        assert same_bits(plan.run(x, q), first)


def row_of(scheme: str, dtype: str, m: int, arch: int | str):
    dtype = getattr(torch, dtype)
    target = Target(backend="triton", device="cuda", arch=arch)
    desc = MatmulDesc(m=m, n=128, k=4096, dtype=dtype, scheme=Scheme.parse(scheme), target=target, source_dtype=dtype, layout="ksplit")
    (row,) = examine(desc)
    return row


@pytest.mark.parametrize("scheme, dtype, m", BUDGETS, ids=str)
def test_the_main_loop(scheme, dtype, m):
    row = row_of(scheme, dtype, m, 90)
    assert row.kernel == "matmul_ksplit" and row.budget == BUDGETS[scheme, dtype, m] and not row.violations()
    assert row.loop["LDGSTS"] and row.per_weight > row.budget - 1.5, "weights and x are copied ahead"


OTHERS = (("uint4.g128", "float16", 1), ("int4.g32", "bfloat16", 16), ("nf4.g64", "bfloat16", 64), ("int3.g7", "float16", 16))


@pytest.mark.parametrize("arch", [80, 100, 120, "gfx942"])
@pytest.mark.parametrize("scheme, dtype, m", OTHERS, ids=str)
def test_other_architectures(scheme, dtype, m, arch):
    row = row_of(scheme, dtype, m, arch)
    assert not row.violations() and ("mfma" in row.report.amdgcn if arch == "gfx942" else row.matrix)


@pytest.mark.parametrize("target, possible", [
    (Target(backend="triton", device="cuda", arch=75), False), (Target(backend="triton", device="cuda", arch="gfx942"), True),
    (Target(backend="interpreter"), True), (Target(backend="triton", device="cuda", arch=100), True),
])  # fmt: skip
def test_targets(target, possible):
    desc = MatmulDesc(m=1, n=64, k=128, dtype=HALF, scheme=Scheme.parse("int4"), target=target, source_dtype=HALF, layout="ksplit")
    status = ksplit_entry.can_implement(desc)
    assert bool(status) is possible and (possible or "sm_80 or later" in status.reason)
    assert ksplit_entry.config(desc)["BLOCK_M"] == (16 if target.arch == "gfx942" else 8)
