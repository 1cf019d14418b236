"""The fused matmul on layout ``ksplit`` through the kernels: every scheme, group, shape and epilogue inside its guarantee."""
import dataclasses
import os

import pytest
import torch

import tritonq
from tests.support import made_up
from tests.support.poison import check_fence, fenced
from tests.support.schemes import same_bits
from tests.support.weights import expected, fence, weight, within
from tritonq import MatmulDesc, reference
from tritonq.errors import InvalidProblemError, WorkspaceTooSmallError
from tritonq.formats import FORMATS
from tritonq.kernels import ksplit_codes

DTYPES = (torch.float16, torch.bfloat16)
FORMAT_NAMES = ("int4", "uint4", "uint4.fz", "nf4", "fp4_bnb", "fp4_e2m1", "int8", "uint8", "uint8.fz", "fp8_e4m3", "fp8_e5m2", "int3",
                "uint3", "uint3.fz", "int2", "uint2", "uint2.fz")  # fmt: skip
# smaller than a plane, equal, a block, larger, no power of two, no multiple of 16, one column, whole rows, several rows
GROUPS = ("g32", "g64", "g128", "g256", "g512", "g16", "g96", "g48", "g1000", "g7", "g1", "channel", "tensor", "b3x48", "b64x128")
SHAPES = ((1, 7, 40), (2, 1, 256), (3, 130, 300), (17, 7, 520), (65, 20, 257))


def check(scheme, m, n, k, dtype, exact=False, **config):
    """One product against float64: within the guarantee, or equal bit for bit where every sum is exact."""
    row = weight(scheme, n, k, dtype, seed=m + n + k, exact=exact)
    q = fence(row.relayout("ksplit"))
    generator = torch.Generator().manual_seed(1)
    x = fenced((torch.randint(-4, 5, (m, k), generator=generator) if exact else torch.randn(m, k, generator=generator)).to(dtype))
    plan = tritonq.select(MatmulDesc.of(x, q))
    assert plan.kernel.name == "matmul_ksplit", tritonq.explain(MatmulDesc.of(x, q))
    plan = dataclasses.replace(plan, config=plan.config | config)
    got = plan.run(x, q)
    if exact:
        want = expected(x, row).to(dtype)
        assert same_bits(got, want), f"{int((got != want).sum())} of {want.numel()} differ"
    else:
        assert got.dtype == dtype and within(got, x, row, plan)
    if plan.config["SPLIT_K"] > 1:
        assert same_bits(plan.run(x, q), got), "the same result again: counters are back at zero"
    for t in (x, q.packed, q.stored_scale):
        check_fence(t)


def cases():
    """Each format meets every third group, each group every third format; TRITONQ_TEST_FULL=1 runs the whole product."""
    for i, fmt in enumerate(FORMAT_NAMES):
        for j, group in enumerate(GROUPS):
            if (i + j) % 3 == 0 or os.environ.get("TRITONQ_TEST_FULL") == "1":
                shape = {"g7": (2, 3, 70), "g1": (2, 3, 70), "g1000": (2, 3, 2300)}.get(group, SHAPES[(i + j) % len(SHAPES)])
                name, *option = fmt.split(".")
                yield pytest.param(".".join([name, group, *option]), *shape, DTYPES[(i + j // 5) % 2], id=f"{fmt}.{group}")


@pytest.mark.parametrize("scheme, m, n, k, dtype", list(cases()))
def test_every_format_and_group(scheme, m, n, k, dtype):
    check(scheme, m, n, k, dtype)


EXACT = [f"{fmt}.{group}" for fmt in ("int4", "uint4", "int8", "uint8", "int3", "uint3", "int2", "uint2", "fp4_e2m1") for group in
         ("g16", "g64", "g96", "g5", "channel")]  # fmt: skip


@pytest.mark.parametrize("scheme", EXACT)
def test_bit_for_bit_where_every_sum_is_exact(scheme):
    check(scheme, 2, 9, 270, DTYPES[len(scheme) % 2], exact=True)


SCALES = ("mxfp4", "mxfp8", "nvfp4", "int4.dq", "uint8.dq", "nf4.dq", "int4.s32", "int4.s16", "int4.sbf16", "int4.se8m0", "uint4.se4m3",
          "uint4.fz.se8m0", "uint3.fz.s16", "fp8_e4m3.sbf16", "int8.g64.full", "int4.narrow")  # fmt: skip


@pytest.mark.parametrize("scheme", SCALES)
def test_every_kind_of_scale(scheme):
    check(scheme, 3, 70, 300, DTYPES[len(scheme) % 2])


@pytest.mark.parametrize("split", [2, 3, 8])
@pytest.mark.parametrize("scheme", ["uint4.g48", "int3", "uint2.g60.fz"])
def test_split_k(scheme, split):
    """More splits than blocks too (3 blocks): those programs add nothing."""
    check(scheme, 3, 5, 520, torch.float16, SPLIT_K=split)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.bits <= 8])
def test_one_hot_rows_print_every_code(name, dtype):
    """Every code in every plane, Inf and NaN among them: level (or code less zero point), rounded once to the dtype."""
    fmt = FORMATS[name]
    row = weight(f"{name}.channel", 16, 256, torch.float32)
    codes = (torch.arange(256)[None] + 16 * torch.arange(16)[:, None]) % 2**fmt.bits
    packed = tritonq.formats.packing.pack_row(codes.to(torch.uint8), fmt.bits)
    row = dataclasses.replace(row, packed=packed, stored_scale=torch.ones_like(row.stored_scale))
    levels = fmt.levels[codes]
    if fmt.affine:
        levels = levels - row.zero_point.float()
    if not bool(levels.isfinite().all()):
        levels = torch.where(levels.isfinite().all(1, keepdim=True), levels, torch.nan)  # 0 * Inf: the row's sum is NaN
    got = tritonq.matmul(torch.eye(256, dtype=dtype), row.relayout("ksplit"))
    assert torch.equal(got.nan_to_num(nan=7e4), levels.T.to(dtype).nan_to_num(nan=7e4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_are_exact_up_to_one_beyond_the_codes(bits, dtype):
    row = weight(f"uint{bits}.g32", 5, 64, torch.float16, exact=True)
    row = dataclasses.replace(row, zero_point=torch.full_like(row.zero_point, min(2**bits, 255)))
    got = tritonq.matmul(torch.eye(64, dtype=dtype), row.relayout("ksplit"))
    assert torch.equal(got.double(), reference.dequantize(row, torch.float64).T)


def test_act_order():
    """The plan gathers the columns of x."""
    g_idx = torch.tensor([0, 1, 2]).repeat(48)
    q = tritonq.quantize(torch.randn(9, 144), "uint4.g48", g_idx=g_idx)
    x = torch.randn(3, 144).half()
    plan = tritonq.select(MatmulDesc.of(x, q.relayout("ksplit")))
    assert plan.kernel.name == "matmul_ksplit" and within(plan.run(x, q.relayout("ksplit")), x, q, plan)


@pytest.mark.parametrize("group", [6, 16])
def test_infinity_stays_in_its_group(group):
    """A code or an x that is Inf gives Inf, and no NaN by way of zeros that stand for other groups."""
    row = weight(f"fp8_e5m2.g{group}", 4, 48, torch.float16)
    codes = row.codes()
    codes[2, 20] = 124
    row = dataclasses.replace(row, packed=codes.to(torch.uint8))
    x = torch.rand(3, 48).half() + 0.5
    got = tritonq.matmul(x, row.relayout("ksplit"))
    assert bool((got[:, 2] == torch.inf).all()) and bool(got[:, [0, 1, 3]].isfinite().all())
    x[1, 21] = torch.inf
    row = weight(f"uint4.g{group}", 4, 48, torch.float16)
    got, want = tritonq.matmul(x, row.relayout("ksplit")), expected(x, row)
    assert torch.equal(got.isinf(), want.isinf()) and bool(got[1].isinf().any())


def test_made_up_format():
    with made_up.registered() as sq4:
        for scheme in ("sq4", "sq4.g96", "sq4.g32.dq", "sq4.g7"):
            check(scheme, 3, 5, 200, torch.bfloat16)
        assert ksplit_codes.codec(sq4, torch.float16).unpack is ksplit_codes.unpack_level


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_formats_of_any_levels_are_looked_up(bits):
    """What is neither integer nor small float."""
    fp8 = FORMATS["fp8_e4m3"]
    odd = dataclasses.replace(fp8, name=f"odd{bits}", bits=bits, decode_ref=lambda code: 0.75 * code.float() - 1.0)
    FORMATS[odd.name] = odd
    try:
        check(f"odd{bits}.g32", 3, 20, 300, torch.float16)
        assert ksplit_codes.codec(odd, torch.float16).unpack is ksplit_codes.unpack_level
    finally:
        del FORMATS[odd.name]


def test_levels_that_do_not_fit_the_dtype_are_refused():
    fp8 = FORMATS["fp8_e5m2"]
    FORMATS["huge"] = dataclasses.replace(fp8, name="huge", decode_ref=lambda code: fp8.decode_ref(code) * 2.0)
    try:
        q = weight("huge.channel", 4, 32, torch.float32).relayout("ksplit")
        assert "cannot hold those of huge" in tritonq.explain(MatmulDesc.of(torch.randn(1, 32).half(), q))
        assert "matmul_ksplit      chosen" in tritonq.explain(MatmulDesc.of(torch.randn(1, 32).bfloat16(), q))
    finally:
        del FORMATS["huge"]


def test_workspace():
    row = weight("int4", 70, 1100, torch.float16)
    q, x = row.relayout("ksplit"), torch.randn(3, 1100).half()
    plan = tritonq.select(MatmulDesc.of(x, q))
    needed = plan.workspace_size()
    assert needed == 4 * plan.config["SPLIT_K"] * 3 * 70 > 4 * 3 * 70 and plan.precision_guarantee().deterministic
    want = plan.run(x, q)
    garbage = torch.full((needed + 64,), 255, dtype=torch.uint8)
    assert same_bits(plan.run(x, q, workspace=garbage[:needed]), want)
    assert bool((garbage[needed:] == 255).all()) and not bool((garbage[:needed] == 255).all()), "used, and not beyond its end"
    with pytest.raises(WorkspaceTooSmallError):
        plan.run(x, q, workspace=garbage[: needed - 1])
    with pytest.raises(InvalidProblemError, match="multiple of 16 bytes"):
        plan.run(x, q, workspace=garbage[1 : needed + 1])


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("split", [1, 2])
def test_epilogue_strided_operands_and_leading_dimensions(activation, split):
    row = weight("uint4.g64", 70, 384, torch.float16)
    q = row.relayout("ksplit")
    x = fenced(torch.randn(2, 384, 3).half()).transpose(1, 2)
    bias, residual = fenced(torch.randn(140))[::2], fenced(torch.randn(70, 2, 3).half()).permute(1, 2, 0)
    plan = tritonq.select(MatmulDesc.of(x, q, bias, activation, residual))
    plan = dataclasses.replace(plan, config=plan.config | {"SPLIT_K": split})
    got = plan.run(x, q, bias=bias, residual=residual)
    want = expected(x, row, bias, activation, residual)
    assert got.shape == (2, 3, 70) and plan.kernel.name == "matmul_ksplit"
    assert torch.allclose(got.float(), want.float(), rtol=2e-3, atol=4e-3 * float(want.abs().max()))


@pytest.mark.parametrize("start, stride", [(0, 512), (3, 307)])
def test_row_stride_beyond_k_and_misaligned_x(start, stride):
    """Columns beyond K are poison, and x starts at any element."""
    row = weight("uint3.g48", 64, 300, torch.bfloat16)
    x = torch.full((5 * stride + start,), float("nan"), dtype=torch.bfloat16)[start:].as_strided((5, 300), (stride, 1), start)
    x.copy_(torch.randn(5, 300))
    q = row.relayout("ksplit")
    assert within(tritonq.matmul(x, q), x, row, tritonq.select(MatmulDesc.of(x, q)))


@pytest.mark.parametrize("scheme", ["int4.g64.s32", "uint8.g7.s32", "int3.g16.s32"])
def test_adversarial_scales_and_cancellation(scheme):
    """Scales over twelve powers of ten and groups that cancel: nothing overflows on the way, and the guarantee holds."""
    row = weight(scheme, 64, 512, torch.float32)
    groups = row.stored_scale.shape[1]
    row = dataclasses.replace(row, stored_scale=(10.0 ** torch.linspace(-6, 6, groups)).repeat(64, 1).float())
    x = torch.randn(4, 512).bfloat16()
    x[:, 256:] = -x[:, :256]
    q = row.relayout("ksplit")
    plan = tritonq.select(MatmulDesc.of(x, q))
    got = plan.run(x, q)
    assert within(got, x, row, plan) and bool(got.isfinite().all())


def test_empty_products():
    q = weight("int4", 64, 128, torch.float16).relayout("ksplit")
    assert tritonq.matmul(torch.randn(0, 128).half(), q).shape == (0, 64)
    assert tritonq.matmul(torch.randn(3, 128).half(), weight("int4", 0, 128, torch.float16).relayout("ksplit")).shape == (3, 0)
    bias = torch.tensor([1.0, -2.0])
    got = tritonq.matmul(torch.empty(3, 0).half(), weight("int4", 2, 0, torch.float16).relayout("ksplit"), bias=bias, activation="relu")
    assert torch.equal(got, torch.tensor([1.0, 0.0]).half().expand(3, 2))


def test_infinite_and_nan_activations_stay_in_their_rows():
    q = weight("int4.g7", 5, 40, torch.float16).relayout("ksplit")
    x = torch.ones(3, 40).half()
    x[1, 20] = float("nan")
    got = tritonq.matmul(x, q)
    assert bool(got[[0, 2]].isfinite().all()) and bool(got[1].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wide_activations_go_to_the_portable_kernel(dtype):
    row = weight("int3.g48", 8, 96, torch.float16)
    x, q = torch.randn(2, 96, dtype=dtype), row.relayout("ksplit")
    text = tritonq.explain(MatmulDesc.of(x, q))
    assert "float16 or bfloat16" in text and "q.relayout('row') does it once" in text and "matmul_tiles       chosen" in text
    assert same_bits(tritonq.matmul(x, q), tritonq.matmul(x, row))


def test_swiglu_goes_to_the_portable_kernel():
    row = weight("int4.g48", 8, 96, torch.float16)
    x, q = torch.randn(2, 96).half(), row.relayout("ksplit")
    assert "no epilogue 'swiglu'" in tritonq.explain(MatmulDesc.of(x, q, activation="swiglu"))
    assert same_bits(tritonq.matmul(x, q, activation="swiglu"), tritonq.matmul(x, row, activation="swiglu"))


@pytest.mark.parametrize("scheme", ["nf4", "uint4.g32", "int8"])
def test_grouped_product_reads_each_expert_of_a_stack(scheme):
    """Views of one stack, whose scales begin anywhere, and rows of one x."""
    n, k = 21, 136
    stack = tritonq.QStack.of(weight(scheme, 3 * n, k, torch.float16, seed=1), 3)
    x = torch.randn(9, k, dtype=torch.float16)
    ends = torch.tensor([4, 4, 8], dtype=torch.int32)
    y = tritonq.grouped_matmul(x, stack.relayout("ksplit"), ends)
    assert bool((y[8:] == 0).all())
    for rows, q, got in zip(x[:8].split([4, 0, 4]), stack, y[:8].split([4, 0, 4]), strict=True):
        plan = tritonq.select(MatmulDesc.of(rows, q.relayout("ksplit")))
        assert plan.kernel.name == "matmul_ksplit" or not len(rows)
        assert not len(rows) or within(got, rows, q, plan)
