"""A sample of the grid of tests/support/shapes.py in compiled code, which the simulator runs, on sm_90 and sm_80 in turn."""
import pytest
import torch

import tritonq
from tests.support.poison import check_fence, fenced
from tests.support.shapes import activations
from tests.support.weights import fence, weight, within

HALF, BRAIN = torch.float16, torch.bfloat16
# (scheme, layout, dtype, M, N, K, kernel): short last groups, odd numbers of groups, K that no tile divides, ragged M and N
SAMPLE = (
    ("int4.g1024", "frag", HALF, 3, 7, 11008, "matmul_frag"), ("uint4.g128", "frag", BRAIN, 17, 7, 7392, "matmul_frag"),
    ("nf4.g64", "frag", HALF, 1, 258, 1344, "matmul_frag"), ("uint8.g96", "frag", BRAIN, 65, 1, 2048, "matmul_frag"),
    ("uint4.g1024", "ksplit", BRAIN, 2, 7, 11008, "matmul_ksplit"), ("int3.g96", "ksplit", HALF, 15, 7, 8256, "matmul_ksplit"),
    ("uint8.channel", "ksplit", BRAIN, 5, 1, 13696, "matmul_ksplit"), ("mxfp4", "ksplit", HALF, 63, 7, 1344, "matmul_ksplit"),
    ("int2.g128", "ksplit", BRAIN, 3, 258, 704, "matmul_ksplit"),
    ("fp8_e4m3.g128", "row", HALF, 5, 7, 1344, "matmul_tiles"), ("uint3.g96", "row", BRAIN, 63, 7, 1344, "dequantize_matmul"),
)  # fmt: skip


@pytest.mark.parametrize(
    "scheme, layout, dtype, m, n, k, kernel, simulator", [(*case, (90, 80)[i % 2]) for i, case in enumerate(SAMPLE)],
    ids=[f"{case[0]}-{case[1]}" for case in SAMPLE], indirect=["simulator"],
)  # fmt: skip
def test_sample(scheme, layout, dtype, m, n, k, kernel, simulator):
    row = weight(scheme, n, k, dtype, seed=m + n + k)
    x, q = fenced(activations(m, k, dtype)), fence(row.relayout(layout))
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    assert plan.kernel.name == kernel, tritonq.explain(plan.desc)
    assert within(plan.run(x, q), x, row, plan)
    for tensor in (x, q.packed, q.stored_scale):
        check_fence(tensor)
