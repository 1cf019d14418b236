"""Every kind of scheme on the grid of tests/support/shapes.py: each product is within its plan's guarantee."""
import dataclasses

import pytest
import torch

import tritonq
from tests.support.shapes import FULL, KINDS, activations, grid
from tests.support.weights import weight, within
from tritonq.plans.select import Plan

DTYPES = (torch.bfloat16, torch.float16)


def power_of_two(value: int, most: int) -> int:
    """The least one that is not below ``value``, ``most`` at most."""
    return min(1 << (value - 1).bit_length(), most)


def with_large_tiles(plan: Plan) -> Plan:
    """In the interpreter a tile costs about the same whatever its size."""
    desc, config = plan.desc, dict(plan.config)
    if desc.target.backend != "interpreter" or desc.m == 0:
        return plan
    if plan.kernel.name == "matmul_tiles":
        block_n = power_of_two(desc.n, 256)
        config |= {"BLOCK_M": power_of_two(desc.m, 32), "BLOCK_N": block_n, "BLOCK_K": power_of_two(desc.k, max(2**18 // block_n, 1))}
    elif plan.kernel.name == "matmul_ksplit":  # scales are padded to 64 rows
        whole = next(size for size in (1024, 512, 256, 128, 64) if -(-desc.n // 64) * 64 % size == 0)
        config |= {"BLOCK_M": power_of_two(desc.m, 1024), "BLOCK_N": power_of_two(desc.n, whole)}
    return dataclasses.replace(plan, config=config)


def check(scheme: str, layout: str, m: int, n: int, k: int, dtype: torch.dtype, device: str) -> None:
    row = weight(scheme, n, k, dtype, seed=m + n + k).to(device)
    x = activations(m, k, dtype).to(device)
    q = row.relayout(layout)
    plan = with_large_tiles(tritonq.select(tritonq.MatmulDesc.of(x, q)))
    assert layout == "row" or plan.kernel.name == "matmul_ksplit", tritonq.explain(plan.desc)
    got = plan.run(x, q)
    assert got.shape == (m, n) and got.dtype == dtype
    assert within(got, x, row, plan), f"{scheme} {plan.kernel.name} {m} x {n} x {k}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape(kind, device):
    """Two thirds in layout row, one in ksplit, whose blocks of 256 columns cost the interpreter too much in long rows."""
    for i, (scheme, m, n, k) in enumerate(grid(kind)):
        layout = "ksplit" if (KINDS.index(kind) + i) % 3 == 0 and (k < 2**14 or FULL) else "row"
        check(scheme, layout, m, n, k, DTYPES[i % 2], device)


@pytest.mark.parametrize("scheme, k", [("uint8.g1024", 59136), ("int4.g128", 27392)])
def test_long_rows_in_ksplit(scheme, k, device):
    check(scheme, "ksplit", 1, 1, k, torch.bfloat16, device)
