"""The fused matmul on layout ``frag``: its PTX, run by the simulator, keeps what it guarantees."""
import dataclasses

import pytest
import torch

import tritonq
from tests.support.poison import check_fence, fenced
from tests.support.schemes import same_bits
from tests.support.shapes import FULL
from tests.support.weights import expected, fence, weight, within
from tritonq import MatmulDesc, Scheme, reference
from tritonq.codegen.ptx import unfenced
from tritonq.errors import InvalidProblemError, WorkspaceTooSmallError
from tritonq.formats.packing import pack_row
from tritonq.kernels import frag_launch as kernels
from tritonq.kernels import split_k
from tritonq.layouts.byte_planes import byte_planes
from tritonq.plans import frag_entry
from tritonq.plans.core import Target

DTYPES = (torch.float16, torch.bfloat16)


@pytest.fixture
def known(simulator, monkeypatch):
    """The simulator, whose architecture plans know, as they know that of a GPU."""
    of = Target.of
    monkeypatch.setattr(Target, "of", lambda device=None: dataclasses.replace(of(device), arch=simulator.arch))
    return simulator


def check(scheme, m, n, k, dtype, simulator, exact=False, instruction="mma.sync", **config):
    """One product against float64: within the guarantee, or equal bit for bit where every sum is exact."""
    row = weight(scheme, n, k, dtype, seed=m + n + k, exact=exact)
    q = fence(row.relayout("frag"))
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-4, 5, (m, k), generator=generator).to(dtype) if exact else torch.randn(m, k, generator=generator).to(dtype)
    x = fenced(x)
    plan = tritonq.select(MatmulDesc.of(x, q))
    assert plan.kernel.name == "matmul_frag", tritonq.explain(MatmulDesc.of(x, q))
    plan = dataclasses.replace(plan, config=plan.config | config)
    runs = 2 if plan.config["SPLIT_K"] > 1 else 1
    results = [plan.run(x, q) for _ in range(runs)]
    assert simulator.launches == runs and instruction in simulator.last.asm["ptx"]
    assert all(same_bits(results[0], again) for again in results), "the same result again: counters are back at zero"
    if exact:
        want = expected(x, row).to(dtype)
        assert same_bits(results[0], want), f"{int((results[0] != want).sum())} differ"
    else:
        assert within(results[0], x, row, plan)
    assert not split_k.scratch(torch.device("cpu"), None, None, 0, 1).tensors[1].any()
    for t in (x, q.packed, q.stored_scale):
        check_fence(t)


GROUPS = ("g32", "g64", "g128", "g256", "channel")
FORMATS = ("int4", "uint4", "uint4.fz", "nf4", "fp4_bnb", "fp4_e2m1")
SAMPLE = [
    pytest.param(f"{fmt}.{group}", dtype, id=f"{fmt}.{group}-{str(dtype).removeprefix('torch.')}")
    for i, fmt in enumerate(FORMATS) for j, group in enumerate(GROUPS) for d, dtype in enumerate(DTYPES) if (i + j + d) % 2 == 0
]  # fmt: skip


@pytest.mark.parametrize("scheme, dtype", SAMPLE)
def test_every_format_and_group(scheme, dtype, simulator):
    check(scheme, 3, 72, 520, dtype, simulator)


# Every other width, and group sizes that are no powers of two, in turn.
OTHER_FORMATS = ("int8", "uint8", "uint8.fz", "fp8_e4m3", "fp8_e5m2", "int2", "uint2", "uint2.fz", "int3", "uint3", "uint3.fz", "int4",
                 "uint4", "nf4")  # fmt: skip
OTHER_GROUPS = ("g16", "g48", "g32", "g96", "g128", "g160", "g64", "channel", "g208")
OTHERS = [(f"{fmt}.{OTHER_GROUPS[2 * i % len(OTHER_GROUPS)]}", DTYPES[i % 2]) for i, fmt in enumerate(OTHER_FORMATS)]
OTHERS += [("mxfp8", torch.bfloat16), ("nvfp4", torch.float16), ("int8.g48", torch.bfloat16), ("fp8_e4m3.channel", torch.float16)]


@pytest.mark.parametrize("scheme, dtype", OTHERS, ids=str)
def test_every_width_and_uneven_groups(scheme, dtype, simulator):
    """The last group is short, and columns are padded beyond it."""
    check(scheme, 3, 72, 520, dtype, simulator)


IDENTITY = [(fmt, dtype) for fmt in ("uint2", "uint3", "uint4", "uint8", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1") for dtype in DTYPES]
IDENTITY += [("int2", DTYPES[0]), ("int3", DTYPES[1]), ("int4", DTYPES[0]), ("int8", DTYPES[1])]
IDENTITY = [(89, *case) for case in IDENTITY] + [(80, fmt, dtype) for fmt in ("fp8_e4m3", "fp8_e5m2") for dtype in DTYPES]
IDENTITY += [(90, "fp8_e4m3", dtype) for dtype in DTYPES]  # wgmma


@pytest.mark.parametrize("simulator, fmt, dtype", IDENTITY, indirect=["simulator"], ids=str)
def test_every_code_decodes_exactly(fmt, dtype, known):
    """x is the identity and scales are 1: the result is level less zero point, for every code in many places of a word. A code that is
    NaN or Inf makes its row NaN. Only sm_89 and later convert e4m3 to float16 by an instruction for it."""
    row = weight(f"{fmt}.g32", 64, 64, torch.float16, exact=True)
    codes = torch.arange(64 * 64).view(64, 64) % (1 << row.scheme.format.bits)
    codes = codes + torch.arange(64)[:, None] & (1 << row.scheme.format.bits) - 1
    finite, odd = row.scheme.format.levels.isfinite(), (~row.scheme.format.levels.isfinite()).nonzero().flatten()
    codes = torch.where(finite[codes], codes, codes & 1).to(torch.uint8)
    codes[range(len(odd)), range(9, 9 + len(odd))] = odd.to(torch.uint8)
    row = dataclasses.replace(row, packed=pack_row(codes, row.scheme.format.bits), stored_scale=torch.ones_like(row.stored_scale))
    plan = tritonq.select(MatmulDesc.of(torch.eye(64, dtype=dtype), row.relayout("frag")))
    got = plan.run(torch.eye(64, dtype=dtype), row.relayout("frag"))
    assert ("cvt.rn.f16x2.e4m3x2" in known.last.asm["ptx"]) is (fmt == "fp8_e4m3" and dtype == torch.float16 and known.arch >= 89)
    want = reference.dequantize(row, torch.float64).T.clone()
    assert len(set(codes.flatten().tolist())) == 1 << row.scheme.format.bits and plan.kernel.name == "matmul_frag"
    want[:, range(len(odd))] = torch.nan
    assert torch.equal(got[:, len(odd) :].double(), want[:, len(odd) :]) and bool(got[:, : len(odd)].isnan().all())


@pytest.mark.parametrize("simulator", [80, 90], indirect=True)
@pytest.mark.parametrize("fmt, dtype", [("nf4", DTYPES[0]), ("nf4", DTYPES[1]), ("fp4_bnb", DTYPES[0])], ids=str)
def test_every_level_of_a_code_book_is_the_one_of_the_byte_planes(fmt, dtype, simulator):
    """As above, each level times the factor of the dtype, rounded once, over the factor: in every nibble of a word."""
    row = weight(f"{fmt}.g32", 64, 64, torch.float16, exact=True)
    codes = (torch.arange(64 * 64).view(64, 64) + torch.arange(64)[:, None] * 3 & 15).to(torch.uint8)
    row = dataclasses.replace(row, packed=pack_row(codes, 4), stored_scale=torch.ones_like(row.stored_scale))
    q, x = row.relayout("frag"), torch.eye(64, dtype=dtype)
    got = tritonq.select(MatmulDesc.of(x, q)).run(x, q)
    factor = byte_planes(row.scheme.format, dtype).factor
    levels = (row.scheme.format.levels.double() * factor).to(dtype).double() / factor
    assert simulator.launches == 1 and torch.equal(got, levels.float()[codes.int()].T.to(dtype))


@pytest.mark.parametrize("simulator", [80], indirect=True)
@pytest.mark.parametrize("scheme, dtype", [*SAMPLE[::4], *OTHERS[1::4]], ids=str)
def test_sm_80(scheme, dtype, simulator):
    check(scheme, 5, 65, 384, dtype, simulator, SPLIT_K=2)


EXACT = ("int4.g32", "int4.channel", "uint4.g64", "uint4.g32", "uint4.g128.fz", "fp4_e2m1.g64", "int8.g48", "uint8.g128",
         "uint3.g64", "int2.channel")  # fmt: skip


EXACT_SAMPLE = [(scheme, arch) for i, scheme in enumerate(EXACT) for arch in ((90, 80) if FULL else (90 - 10 * (i % 2),))]  # in turn


@pytest.mark.parametrize("lazy", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("scheme, simulator", EXACT_SAMPLE, indirect=["simulator"])
def test_bit_for_bit_where_every_sum_is_exact(scheme, lazy, simulator):
    """Small integers times powers of two, more steps than pipeline stages; asynchronous copies as late as their waits allow."""
    simulator.lazy = lazy
    check(scheme, 2, 64, 1300, DTYPES[len(scheme) % 2], simulator, exact=True)


SCALES = ("int4.tensor", "int4.b64x128", "int4.dq", "int4.s32", "int4.sbf16", "int4.se8m0", "int4.g64.se4m3", "uint4.tensor",
          "uint4.g64.s32.fz", "uint4.channel.fz.se8m0", "uint4.dq", "nf4.dq", "nf4.s16", "fp4_bnb.tensor", "mxfp4",
          "int4.g512")  # fmt: skip


@pytest.mark.parametrize("scheme", SCALES)
def test_every_kind_of_scale(scheme, simulator):
    check(scheme, 9, 70, 600, DTYPES[len(scheme) % 2], simulator)


RAGGED = ((1, 1, 1), (1, 64, 128), (8, 65, 129), (16, 128, 256), (17, 63, 33), (33, 130, 200), (64, 64, 256), (70, 5, 300), (4, 200, 0),
          (5, 64, 31))  # fmt: skip


RAGGED_SCHEMES = ("int4.g32", "uint4.g64", "nf4.g64", "uint4.g128.fz", "uint8.g48", "int3.g32")
# Each shape with two of the schemes, each scheme with three or four of the shapes.
RAGGED_SAMPLE = [(*shape, scheme) for i, shape in enumerate(RAGGED) for j, scheme in enumerate(RAGGED_SCHEMES) if FULL or (i + j) % 3 == 0]


@pytest.mark.parametrize("m, n, k, scheme", RAGGED_SAMPLE, ids=str)
def test_ragged_shapes(m, n, k, scheme, simulator):
    check(scheme, m, n, k, DTYPES[(m + n) % 2], simulator)


# What a tuner may try beyond what the heuristic picks; four warps make wgmma on sm_90.
TRIED = [("int4.g64", 9, {"BLOCK_N": 128}), ("uint4.g32", 3, {"BLOCK_N": 128, "SPLIT_K": 2}), ("nf4.g64", 20, {"BLOCK_M": 64, "STAGES": 4}),
         ("int4.g128", 1, {"STAGES": 1, "BLOCK_K": 128}), ("int4.g64", 5, {"num_warps": 4, "STAGES": 1}),
         ("nf4.g64", 17, {"num_warps": 4, "STAGES": 1, "BLOCK_N": 128}), ("uint4.g64", 8, {"num_warps": 4, "STAGES": 3})]  # fmt: skip


@pytest.mark.parametrize("scheme, m, config", TRIED, ids=str)
def test_configs_that_a_tuner_may_try(scheme, m, config, simulator):
    """130 rows of W: the last tile is mostly beyond the end."""
    target = Target(backend="triton", device="cuda", arch=90)
    desc = MatmulDesc(m=m, n=130, k=520, dtype=torch.float16, scheme=Scheme.parse(scheme), target=target, source_dtype=torch.float16,
                      layout="frag")  # fmt: skip
    whole = frag_entry.config(desc) | config
    assert frag_entry.config_ok(desc, whole)
    four = config.get("num_warps") == 4  # of 8 rows of x Triton 3.6 makes mma.sync all the same
    instruction = "mma.sync" if not four else "wgmma.mma_async" if m > 8 else "mma"
    check(scheme, m, 130, 520, torch.float16, simulator, instruction=instruction, **config)


WIDE = [("int4.g128", 70, 200, 300), ("uint4.g64", 64, 128, 512), ("nf4.g64", 65, 130, 520), ("int4.g32", 40, 130, 520),
        ("uint4.g128.fz", 65, 256, 384), ("int8", 33, 72, 384), ("int3.g128", 70, 130, 600), ("mxfp4", 64, 100, 256),
        ("fp8_e4m3", 40, 130, 256), ("int4.channel", 66, 65, 1300)]  # fmt: skip


@pytest.mark.parametrize("scheme, m, n, k", WIDE, ids=str)
def test_many_rows_on_hopper(scheme, m, n, k, known):
    """wgmma with W from registers; what cp.async brought is fenced on every Triton."""
    config = kernels.config(m, n, k, Scheme.parse(scheme), 132, 90)
    check(scheme, m, n, k, DTYPES[n % 4 == 0], known, instruction="wgmma.mma_async", **config)
    assert not known.unfenced and not unfenced(known.last.asm["ptx"])


# Tiles of 128 rows of W: what large matrices get. mma.sync; from 17 rows of x on Hopper wgmma.
TALL = [("int4.g128", 90, 16, 8), ("uint4.g32", 90, 9, 4), ("nf4.g64", 90, 13, 4), ("uint4.g128.fz", 90, 16, 2), ("int3.g128", 90, 10, 2),
        ("mxfp4", 90, 16, 1), ("fp8_e4m3", 89, 12, 2), ("nvfp4", 80, 16, 2), ("int2.g64", 80, 11, 4), ("int4.g128", 80, 32, 8),
        ("int8", 80, 20, 2), ("uint4.channel", 89, 40, 1), ("nf4.g64", 90, 32, 2), ("int4.g32", 90, 17, 2),
        ("uint3.g128", 90, 30, 2), ("nvfp4", 90, 24, 1), ("mxfp8", 90, 31, 4)]  # fmt: skip


@pytest.mark.parametrize("scheme, simulator, m, split", TALL, indirect=["simulator"], ids=str)
def test_tiles_of_128_rows_of_w(scheme, m, split, known):
    """190 rows of W, as though they were many for the device: the last tile is half beyond the end.

    Split sums come in batches that registers hold.
    """
    n, k = 190, 1300 if split == 8 or scheme.startswith("int3") else 660
    config = kernels.config(m, n, k, Scheme.parse(scheme), 0, known.arch) | {"SPLIT_K": split}
    assert config["BLOCK_N"] == 128
    known.order = lambda count: range(count)[::-1]
    check(scheme, m, n, k, DTYPES[m % 2], known, instruction="wgmma.mma_async" if config["num_warps"] > 2 else "mma.sync", **config)
    assert not known.unfenced and not unfenced(known.last.asm["ptx"])


def test_split_sums_come_in_batches():
    """As many as registers hold, and all at once where batches do not come out even."""
    tile = {"BLOCK_M": 16, "BLOCK_N": 128, "num_warps": 2}
    assert [split_k.sums_at_once(tile | {"SPLIT_K": split}) for split in (1, 2, 3, 4, 8, 16)] == [1, 2, 3, 4, 4, 4]
    assert split_k.sums_at_once({"BLOCK_M": 8, "BLOCK_N": 64, "num_warps": 2, "SPLIT_K": 16}) == 8
    assert split_k.sums_at_once({"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 2, "SPLIT_K": 8}) == 1
    assert split_k.sums_at_once({"BLOCK_M": 64, "BLOCK_N": 128, "num_warps": 8, "SPLIT_K": 4}) == 2, "leaves two programs side by side"


@pytest.mark.parametrize("split", [2, 3, 8])
@pytest.mark.parametrize("name", ["forward", "reversed", "shuffled"])
def test_split_k_in_any_order_of_arrival(name, split, simulator):
    """More splits than steps too (5 steps of 128): those programs add nothing."""
    orders = {
        "forward": range,
        "reversed": lambda count: range(count)[::-1],
        "shuffled": lambda count: torch.randperm(count, generator=torch.Generator().manual_seed(3)).tolist(),
    }
    simulator.order = orders[name]
    check("uint4.g32", 11, 130, 600, torch.float16, simulator, SPLIT_K=split, BLOCK_K=128)


def test_split_k_is_the_same_whatever_arrives_last(simulator):
    q = weight("nf4", 70, 1024, torch.bfloat16).relayout("frag")
    x = torch.randn(3, 1024, dtype=torch.bfloat16)
    plan = tritonq.select(MatmulDesc.of(x, q))
    assert plan.config["SPLIT_K"] > 1 and plan.precision_guarantee().deterministic
    results = []
    for order in (range, lambda count: range(count)[::-1]):
        simulator.order = order
        results.append(plan.run(x, q))
    assert same_bits(*results)


def test_workspace(simulator):
    q = weight("int4", 64, 2048, torch.float16).relayout("frag")
    x = torch.randn(3, 2048).half()
    plan = tritonq.select(MatmulDesc.of(x, q))
    needed = plan.workspace_size()
    assert needed == 4 * plan.config["SPLIT_K"] * 3 * 64 > 0
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
def test_epilogue_strided_operands_and_leading_dimensions(activation, split, simulator):
    row = weight("uint4.g64", 70, 384, torch.float16)
    q = row.relayout("frag")
    x = fenced(torch.randn(2, 384, 3).half()).transpose(1, 2)
    bias, residual = fenced(torch.randn(140))[::2], fenced(torch.randn(70, 2, 3).half()).permute(1, 2, 0)
    plan = tritonq.select(MatmulDesc.of(x, q, bias, activation, residual))
    plan = dataclasses.replace(plan, config=plan.config | {"SPLIT_K": split, "BLOCK_K": 128})
    got = plan.run(x, q, bias=bias, residual=residual)
    assert got.shape == (2, 3, 70) and plan.kernel.name == "matmul_frag"
    assert within(got, x, row, plan, bias, residual)


SWIGLU = [("uint4.g64", 90, 3, 128), ("int4.g32", 90, 20, 96), ("nf4.dq", 90, 8, 64), ("uint4.g128.fz", 90, 33, 32),
          ("uint3.g64", 90, 5, 96), ("fp8_e4m3.channel", 90, 2, 160), ("nvfp4", 90, 1, 64), ("int8.tensor", 80, 9, 96),
          ("nf4.g64", 80, 17, 64), ("nf4.g64", 90, 70, 96)]  # fmt: skip
SWIGLU_TALL = [("nf4.g64", 90, 16, 128), ("uint4.g64.fz", 90, 12, 64), ("int3.g128", 90, 30, 64), ("int4.g128", 80, 32, 128),
               ("mxfp4", 90, 25, 192), ("nf4.g64", 90, 40, 64), ("uint4.g128", 90, 65, 128)]  # fmt: skip


# Tall tiles with and without splits in turns.
SWIGLU_CASES = [(*case, split) for case in SWIGLU for split in (1, 3)] + [(*case, 1 + 2 * (i % 2)) for i, case in enumerate(SWIGLU_TALL)]


@pytest.mark.parametrize("scheme, simulator, m, features, split", SWIGLU_CASES, indirect=["simulator"])
def test_swiglu_pairs_gate_and_up(scheme, m, features, split, simulator):
    """Every row of W differs from the others, so that a partner from another row shows; tiles of 64 or 128 rows that hold gate and up."""
    dtype = DTYPES[features // 32 % 2]
    row = weight(scheme, 2 * features, 600, dtype)
    q, x = fence(row.relayout("frag")), fenced(torch.randn(m, 600).to(dtype))
    bias, residual = fenced(torch.randn(4 * features))[::2], fenced(torch.randn(features, m).to(dtype)).T
    plan = tritonq.select(MatmulDesc.of(x, q, bias, "swiglu", residual))
    assert plan.kernel.name == "matmul_frag"
    config = kernels.config(m, 2 * features, 600, row.scheme, 0, simulator.arch, gated=True)
    assert config["BLOCK_N"] == (128 if (scheme, simulator.arch, m, features) in SWIGLU_TALL else 64)
    plan = dataclasses.replace(plan, config=config | {"SPLIT_K": split})
    simulator.order = lambda count: range(count)[::-1]
    got = plan.run(x, q, bias=bias, residual=residual)
    instruction = "wgmma.mma_async" if m > 16 and simulator.arch == 90 else "mma.sync"
    assert got.shape == (m, features) and simulator.launches == 1 and instruction in simulator.last.asm["ptx"]
    assert within(got, x, row, plan, bias, residual)
    check_fence(x)


ACT_ORDER = [("uint4.g32", 90, 1), ("int4.g128", 90, 8), ("uint3.g32", 90, 5), ("uint8.g64.fz", 90, 3), ("int4.channel", 80, 7),
             ("nf4.g64", 90, 2), ("int4.g32", 90, 17)]  # fmt: skip


@pytest.mark.parametrize("scheme, simulator, m", ACT_ORDER, indirect=["simulator"])
def test_act_order(scheme, m, simulator, monkeypatch):
    """Up to eight rows of x are gathered by the kernel (not for code books), more by a launch ahead of it; neither reads beyond K."""
    k = 400
    dtype = DTYPES[m % 2]
    order = torch.randperm(k, generator=torch.Generator().manual_seed(m)).int()
    row = dataclasses.replace(weight(scheme, 70, k, dtype), column_order=order)
    q, x = fence(row.relayout("frag")), fenced(torch.randn(k, m).to(dtype)).T
    plan = tritonq.select(MatmulDesc.of(x, q))
    inside = m <= 8 and scheme != "nf4.g64"
    assert plan.kernel.name == "matmul_frag" and plan.kernel.act_order(plan.desc) is inside
    for split in (1, 2):
        with monkeypatch.context() as patch:
            if inside:
                patch.setattr(torch.Tensor, "index_select", None)
            got = dataclasses.replace(plan, config=plan.config | {"SPLIT_K": split}).run(x, q)
        assert simulator.launches == split and within(got, x, row, plan)


def test_swiglu_of_halves_that_are_no_multiple_of_32_rows_decodes_apart(simulator):
    row = weight("int4.g32", 80, 64, torch.float16)
    x, q = torch.randn(2, 64).half(), row.relayout("frag")
    text = tritonq.explain(MatmulDesc.of(x, q, activation="swiglu"))
    assert "pairs 32 rows of the gate with as many of up, and 40 of each are no multiple" in text
    assert tritonq.select(MatmulDesc.of(x, q, activation="swiglu")).kernel.name == "dequantize_matmul"
    gate, up = expected(x, row).chunk(2, -1)
    assert torch.allclose(tritonq.matmul(x, q, activation="swiglu").double(), torch.nn.functional.silu(gate) * up, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("start, stride", [(0, 256), (3, 207)])
def test_row_stride_beyond_k_and_misaligned_x(start, stride, simulator):
    """Columns beyond K are poison, and x starts at any element."""
    row = weight("nf4", 64, 200, torch.bfloat16)
    x = torch.full((5 * stride + start,), float("nan"), dtype=torch.bfloat16)[start:].as_strided((5, 200), (stride, 1), start)
    x.copy_(torch.randn(5, 200))
    got = tritonq.matmul(x, row.relayout("frag"))
    assert within(got, x, row, tritonq.select(MatmulDesc.of(x, row.relayout("frag"))))


def test_adversarial_scales_and_cancellation(simulator):
    """Scales over twelve powers of ten and groups that cancel: nothing overflows on the way, and the guarantee holds."""
    q = weight("int4.g64.s32", 64, 512, torch.float32)
    scale = 10.0 ** torch.linspace(-6, 6, 8).repeat(64, 1)
    row = dataclasses.replace(q, stored_scale=scale.float())
    x = torch.randn(4, 512).bfloat16()
    x[:, 256:] = -x[:, :256]
    plan = tritonq.select(MatmulDesc.of(x, row.relayout("frag")))
    got = plan.run(x, row.relayout("frag"))
    assert within(got, x, row, plan) and bool(got.isfinite().all())


def test_empty_products_launch_nothing(simulator):
    q = weight("int4", 64, 128, torch.float16).relayout("frag")
    assert tritonq.matmul(torch.randn(0, 128).half(), q).shape == (0, 64)
    none = weight("int4", 0, 128, torch.float16).relayout("frag")
    assert tritonq.matmul(torch.randn(3, 128).half(), none).shape == (3, 0) and simulator.launches == 0


def test_gradients_flow_through_the_layout(simulator):
    row = weight("int4.g32", 16, 64, torch.float16)
    x = torch.randn(2, 64, requires_grad=True, dtype=torch.float16)
    tritonq.matmul(x, row.relayout("frag")).sum().backward()
    assert torch.allclose(x.grad.double(), reference.dequantize(row, torch.float64).sum(0).expand(2, -1), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("scheme, k, dtype, reason, chosen", [
    ("int4", 96, torch.float32, "float16 or bfloat16", "matmul_tiles"),
    ("int4.g24", 96, torch.float16, "multiple of 16", "dequantize_matmul"),
    ("int8.g1000", 1100, torch.float16, "has 1000", "dequantize_matmul"),
])  # fmt: skip
def test_what_it_refuses_goes_to_kernels_that_decode_apart(scheme, k, dtype, reason, chosen, simulator):
    row = weight(scheme, 8, k, torch.float16)
    x, q = torch.randn(2, k, dtype=dtype), row.relayout("frag")
    text = tritonq.explain(MatmulDesc.of(x, q))
    assert reason in text and "q.relayout('row') does it once" in text and f"{chosen:<18} chosen" in text
    assert within(tritonq.matmul(x, q), x, row, tritonq.select(MatmulDesc.of(x, q)))


def test_row_weights_stay_with_the_portable_kernel(simulator):
    desc = MatmulDesc.of(torch.randn(2, 64).half(), weight("int4", 8, 64, torch.float16))
    assert tritonq.select(desc).kernel.name == "matmul_tiles" and "q.relayout('frag') once" in tritonq.explain(desc)


@pytest.mark.parametrize("target, reason", [
    (Target(backend="triton", device="cuda", arch=75), "from sm_80 on"), (Target(backend="triton", device="cuda", arch="gfx942"), "NVIDIA"),
    (Target(backend="interpreter"), "inline PTX"), (Target(backend="triton", device="cuda", arch=80), None),
    (Target(backend="triton", device="cuda", arch=120), None),
])  # fmt: skip
def test_targets(target, reason):
    half = torch.float16
    desc = MatmulDesc(m=1, n=64, k=128, dtype=half, scheme=Scheme.parse("int4"), target=target, source_dtype=half, layout="frag")
    status = frag_entry.can_implement(desc)
    assert bool(status) is (reason is None) and (reason is None or reason in status.reason)


def test_the_heuristic_fills_the_device_and_splits_little():
    def config(m, n, k):
        return kernels.config(m, n, k, Scheme.parse("int4"), 132, 90)

    for m, n, k in ((1, 4096, 4096), (16, 4096, 4096), (1, 28672, 8192), (64, 64, 65536), (8, 64, 128), (1, 2**20, 256)):
        got = config(m, n, k)
        steps = -(-k // got["BLOCK_K"])
        assert got["SPLIT_K"] <= 16 and (got["SPLIT_K"] == 1 or steps >= 4 * got["SPLIT_K"])
    assert config(1, 4096, 4096)["SPLIT_K"] == 4
    assert config(1, 28672, 8192)["SPLIT_K"] == 1
    # 128 rows of W where that leaves two and a half programs for each of the 132
    tall = {shape: config(16, *shape) for shape in ((28672, 8192), (8192, 8192), (4096, 14336), (6144, 4096))}
    assert {config["BLOCK_N"] for config in tall.values()} == {128}
    assert [config["SPLIT_K"] for config in tall.values()] == [2, 8, 16, 8]
    assert config(16, 4096, 4096)["BLOCK_N"] == 64, "not with four steps each"
    # with 64 rows of x two programs per multiprocessor, of 1024 columns or more
    assert [config(64, *shape)["SPLIT_K"] for shape in ((28672, 8192), (14336, 4096), (8192, 28672), (4096, 4096))] == [1, 2, 4, 4]
