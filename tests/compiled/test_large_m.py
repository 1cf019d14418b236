"""Decoding apart from the product: PTX in the simulator (the vendor's products run on the CPU), and what the compiler makes of it."""
import dataclasses

import pytest
import torch

import tritonq
from tests.support import survey
from tests.support.poison import check_fence, fenced, poisoned_empty
from tests.support.schemes import same_bits
from tests.support.weights import bound, fence, weight
from tritonq import MatmulBackwardDesc, MatmulDesc, PlanPreference, Scheme, reference
from tritonq.errors import InvalidProblemError, WorkspaceTooSmallError
from tritonq.kernels.dequantize_range import dequantize_range
from tritonq.layouts import frag_codes

half, bf16 = torch.float16, torch.bfloat16
SAMPLE = [("int4.g32", half), ("uint4.g128", bf16), ("uint4.g24.s32.fz", half), ("nf4", bf16), ("nf4.dq", half), ("mxfp4", bf16),
          ("int4.channel", bf16), ("uint4.tensor.fz.se8m0", half), ("int4.g7.se4m3", half), ("uint3.g32", bf16),
          ("fp8_e4m3.g48", half), ("int2.g16", half), ("mxfp8", bf16), ("int8.channel", half), ("uint2.g96.fz", bf16),
          ("int3.tensor", half)]  # fmt: skip


def forced(desc, kernel, **config):
    plan = tritonq.select(desc, PlanPreference(prefer_kernel=kernel))
    return dataclasses.replace(plan, config=plan.config | config)


def within(got, want, plan, x, row):
    return bool(((got.double() - want).abs() <= bound(plan, x, row)).all())


@pytest.mark.parametrize("simulator, scheme, dtype", [*((90, *one) for one in SAMPLE), (80, "int4.g32", bf16)], indirect=["simulator"])
def test_dequantize_from_frag_gives_the_bits_of_the_reference(scheme, dtype, simulator):
    row = weight(scheme, 130, 200, dtype)
    q = fence(row.relayout("frag"))
    want = reference.dequantize(row, dtype)
    assert same_bits(q.dequantize(), want) and simulator.launches == 1
    assert same_bits(q.dequantize(torch.float32), reference.dequantize(row, torch.float32))
    room = poisoned_empty(2, 80, dtype=dtype)
    dequantize_range(q, room[:, 4:-4], 128, 128)
    assert same_bits(room[:, 4:-4].contiguous(), want[128:, 128:]) and bool(room[:, :4].isnan().all() and room[:, -4:].isnan().all())


def test_the_second_scale_of_nvfp4(simulator):
    row = reference.quantize(torch.randn(65, 48).half(), Scheme.parse("nvfp4"))
    assert same_bits(row.relayout("frag").dequantize(), reference.dequantize(row, half)) and simulator.launches == 1


@pytest.mark.parametrize("layout", ["row", "frag"])
@pytest.mark.parametrize("scheme, dtype", SAMPLE[::2])
def test_chunked_products_keep_their_guarantee(scheme, dtype, layout, simulator):
    row = weight(scheme, 200, 150, dtype)
    w, q = reference.dequantize(row, torch.float64), fence(row.relayout(layout))
    x, dy = fenced(torch.randn(6, 150).to(dtype)), fenced(torch.randn(6, 200).to(dtype))
    forward = forced(MatmulDesc.of(x, q), "dequantize_matmul", CHUNK_N=128)
    assert within(forward.run(x, q), x.double() @ w.T, forward, x, row) and simulator.launches == 2
    backward = forced(MatmulBackwardDesc.of(dy, q), "dequantize_matmul_dx", CHUNK_K=128)
    assert within(backward.run(dy, q), dy.double() @ w, backward, dy, row) and simulator.launches == 4


@pytest.mark.parametrize("simulator, layout, scheme, dtype, split", [
    (90, "frag", "int4.g32", half, 1), (90, "frag", "uint4.g24.s32.fz", torch.float32, 3), (90, "row", "nf4", bf16, 2),
    (80, "frag", "nf4", bf16, 2),
], indirect=["simulator"])  # fmt: skip
def test_matmul_dx(scheme, dtype, split, layout, simulator):
    row = weight(scheme, 150, 70, dtype)
    q, dy = fence(row.relayout(layout)), fenced(torch.randn(5, 150).to(dtype))
    plan = forced(MatmulBackwardDesc.of(dy, q), "matmul_dx", SPLIT_K=split)
    results = [plan.run(dy, q)]
    simulator.order = lambda count: range(count)[::-1]
    results.append(plan.run(dy, q))
    assert same_bits(*results), "the same whatever arrives last"
    assert within(results[0], dy.double() @ reference.dequantize(row, torch.float64), plan, dy, row)
    check_fence(dy)


def test_matmul_dx_of_float64(simulator):
    row = weight("int4.g32", 33, 20, torch.float32)
    dy = torch.randn(2, 33, dtype=torch.float64)
    plan = tritonq.select(MatmulBackwardDesc.of(dy, row))
    assert plan.kernel.name == "matmul_dx" and within(plan.run(dy, row), dy @ reference.dequantize(row, torch.float64), plan, dy, row)


@pytest.mark.parametrize("layout", ["row", "frag"])
def test_adversarial_scales_and_cancellation(layout, simulator):
    """Scales over twelve powers of ten, rows that cancel, and weights in float16's subnormal numbers."""
    q = weight("int4.g32.s32", 64, 256, torch.float32)
    row = dataclasses.replace(q, stored_scale=(10.0 ** torch.linspace(-6, 6, 8)).repeat(64, 1))
    x = torch.randn(4, 256).bfloat16()
    x[:, 128:] = -x[:, :128]
    dy = torch.randn(4, 64).bfloat16()
    dy[:, 32:] = -dy[:, :32]
    there, w = row.relayout(layout), reference.dequantize(row, torch.float64)
    for desc, tensor, want in ((MatmulDesc.of(x, there), x, x.double() @ w.T), (MatmulBackwardDesc.of(dy, there), dy, dy.double() @ w)):
        for kernel in (k for k in ("dequantize_matmul", "dequantize_matmul_dx", "matmul_dx") if k.endswith("dx") == (tensor is dy)):
            plan = forced(desc, kernel)
            assert within(plan.run(tensor, there), want, plan, tensor, row)
    tiny = dataclasses.replace(q, stored_scale=torch.full_like(q.stored_scale, 3e-8))
    plan = forced(MatmulDesc.of(x.half(), tiny.relayout(layout)), "dequantize_matmul")
    want = x.half().double() @ reference.dequantize(tiny, torch.float64).T
    assert within(plan.run(x.half(), tiny.relayout(layout)), want, plan, x.half(), tiny)


@pytest.mark.parametrize("kernel, epilogue", [("dequantize_matmul", False), ("dequantize_matmul", True), ("dequantize_matmul_dx", False),
                                              ("matmul_dx", False)])  # fmt: skip
def test_workspace(kernel, epilogue, simulator):
    q = weight("int4", 128, 128, half).relayout("frag")
    x, bias = torch.randn(3, 128).half(), torch.randn(128) if epilogue else None
    desc = MatmulBackwardDesc.of(x, q) if kernel.endswith("dx") else MatmulDesc.of(x, q, bias)
    plan = forced(desc, kernel, **({"SPLIT_K": 2} if kernel == "matmul_dx" else {}))
    needed, more = plan.workspace_size(), {"bias": bias} if epilogue else {}
    want = plan.run(x, q, **more)
    garbage = torch.full((needed + 64,), 255, dtype=torch.uint8)
    assert same_bits(plan.run(x, q, workspace=garbage[:needed], **more), want)
    assert bool((garbage[needed:] == 255).all()) and not bool((garbage[:needed] == 255).all()), "used, and not beyond its end"
    with pytest.raises(WorkspaceTooSmallError):
        plan.run(x, q, workspace=garbage[: needed - 1], **more)
    with pytest.raises(InvalidProblemError, match="multiple of 16 bytes"):
        plan.run(x, q, workspace=garbage[1 : needed + 1], **more)


@pytest.mark.parametrize("scheme, budget", [("int4.g128", 12.0), ("uint4.g64", 12.0), ("nf4.g64", 9.6), ("nvfp4", 10.3),
                                            ("int8.channel", 10.5), ("fp8_e4m3.channel", 15.0), ("int2.g32", 10.0),
                                            ("int3.g64", 14.0)])  # fmt: skip
def test_decoding_reads_and_writes_16_bytes_at_a_time(scheme, budget):
    q = reference.quantize(torch.zeros(128, 4096, dtype=half), Scheme.parse(scheme)).relayout("frag")
    with survey.launches(90) as rows:
        dequantize_range(q, torch.empty(128, 4096, dtype=bf16))
    ((name, report, constants, _),) = rows
    assert name == "dequantize_range_tiles" and report.spills == 0 and set(report.global_stores) == {128}
    bits = frag_codes.planes(q.scheme.format)[0].bits
    assert report.global_loads.count(128) * 128 * 32 * report.num_warps >= constants["BLOCK_N"] * constants["BLOCK_K"] * bits
    assert survey.per_element(report, constants) <= budget, survey.per_element(report, constants)


@pytest.mark.parametrize("scheme, layout, dtype, m", [("int4.g128", "frag", bf16, 1), ("nf4.g64", "frag", half, 64),
                                                      ("int4.g128", "row", half, 64)])  # fmt: skip
def test_matmul_dx_uses_the_tensor_cores_and_spills_nothing(scheme, layout, dtype, m):
    q = reference.quantize(torch.zeros(4096, 256, dtype=dtype), Scheme.parse(scheme)).relayout(layout)
    dy = torch.zeros(m, 4096, dtype=dtype)
    with survey.launches(90) as rows:
        forced(MatmulBackwardDesc.of(dy, q), "matmul_dx").run(dy, q)
    ((name, report, *_),) = rows
    kinds = report.histogram(in_loop=True)
    assert name == "matmul_dx_tiles" and report.spills == 0 and (kinds["HMMA"] or kinds["HGMMA"])
