"""Products on a device: every family within its guarantee, the same bits every time, graphs, streams and workspaces."""
import dataclasses

import pytest
import torch

import tritonq
from tests.support.schemes import same_bits
from tritonq import MatmulBackwardDesc, MatmulDesc, PlanPreference

pytestmark = pytest.mark.gpu
FAMILIES = {  # kernel: (scheme, layout, rows of x)
    "matmul_frag": ("int4.g64", "frag", 3), "matmul_ksplit": ("nf4.g64", "ksplit", 3), "matmul_tiles": ("uint4.g64", "row", 3),
    "dequantize_matmul": ("int4.g64", "frag", 40), "matmul_dx": ("nf4.g64", "row", 3), "dequantize_matmul_dx": ("int4.g64", "frag", 40),
}  # fmt: skip
SCHEMES = ("int4.g128", "uint4.g64", "uint4.g128.fz", "nf4.g64", "fp4_bnb.g64", "mxfp4", "nvfp4", "int8", "uint8.g64", "fp8_e4m3", "mxfp8",
           "int3.g64", "uint2.g32", "int4.channel", "nf4.dq", "int4.g48")  # fmt: skip


def weight(scheme, n, k, dtype, layout, device):
    generator = torch.Generator().manual_seed(n + k)
    w = torch.randn(n, k, generator=generator) * torch.exp(torch.randn(n, 1, generator=generator))
    return tritonq.quantize(w.to(dtype).to(device), scheme).relayout(layout)


def exact(x, q):
    return x.double() @ q.relayout("row").dequantize(torch.float64).T


def within(got, want, plan, x, q):
    return bool(((got.double() - want).abs() <= plan.precision_guarantee().bound(x, q)).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_one_of_each_family(family, device):
    """Small and ragged: what compute-sanitizer looks at."""
    scheme, layout, m = FAMILIES[family]
    q = weight(scheme, 70, 200, torch.bfloat16, layout, device)
    back = family.endswith("dx")
    x = torch.randn(m, 70 if back else 200, device=device).bfloat16()
    desc = (MatmulBackwardDesc if back else MatmulDesc).of(x, q)
    plan = tritonq.select(desc, PlanPreference(prefer_kernel=family))
    want = x.double() @ q.relayout("row").dequantize(torch.float64) if back else exact(x, q)
    assert within(plan.run(x, q), want, plan, x, q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["row", "frag", "ksplit"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_keep_their_guarantee(scheme, layout, dtype, device):
    n, k = 1000, 2048 + 96
    row = weight(scheme, n, k, dtype, "row", device)
    if tritonq.layouts.LAYOUTS[layout].refuses(row.scheme, dtype):
        pytest.skip(f"layout {layout} does not hold {scheme}")
    q = row.relayout(layout)
    for m in (1, 5, 16, 33, 200):
        x = torch.randn(m, k, device=device).to(dtype)
        plan = tritonq.select(MatmulDesc.of(x, q))
        assert within(plan.run(x, q), exact(x, q), plan, x, q), plan.sku()


@pytest.mark.parametrize("scheme", ["int4.g128", "nf4.g64"])
def test_large_products_on_the_fast_path(scheme, device):
    q = weight(scheme, 14336, 4096, torch.bfloat16, "frag", device)
    for m in (1, 16, 64, 1024):
        x = torch.randn(m, 4096, device=device).bfloat16()
        plan = tritonq.select(MatmulDesc.of(x, q))
        assert within(plan.run(x, q), exact(x, q), plan, x, q), plan.sku()


@pytest.mark.parametrize("layout", ["frag", "ksplit"])
def test_a_hundred_runs_of_split_k_give_the_same_bits(layout, device):
    """And beside other work on another stream, which has counters and partial sums of its own."""
    q = weight("int4.g64", 512, 4096, torch.bfloat16, layout, device)
    x, other = (torch.randn(3, 4096, device=device).bfloat16() for _ in range(2))
    plan = tritonq.select(MatmulDesc.of(x, q))
    plan = dataclasses.replace(plan, config=plan.config | {"SPLIT_K": 4})
    first, second, stream = plan.run(x, q), plan.run(other, q), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(100):
        with torch.cuda.stream(stream):
            beside = plan.run(other, q)
        again = plan.run(x, q)
        torch.cuda.synchronize()
        assert same_bits(again, first) and same_bits(beside, second)


@pytest.mark.parametrize("given", [False, True], ids=["own workspace", "workspace given"])
def test_a_captured_product_reads_what_x_holds_when_it_is_replayed(given, device):
    q = weight("nf4.g64", 512, 4096, torch.bfloat16, "frag", device)
    x = torch.randn(2, 4096, device=device).bfloat16()
    plan = tritonq.select(MatmulDesc.of(x, q))
    workspace = torch.empty(plan.workspace_size(), dtype=torch.uint8, device=device) if given else None
    plan.prepare(x, q)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = plan.run(x, q, workspace=workspace)
    for _ in range(3):
        x.copy_(torch.randn(2, 4096))
        graph.replay()
        torch.cuda.synchronize()
        assert within(out, exact(x, q), plan, x, q)
