"""Every seed plan: the Triton kernels give the bits of the torch reference."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from tests.support import seed_cases
from tests.support.seed_cases import CODES, FLOATS, assert_same_bits
from tritonq import plans as P
from tritonq.kernels import affine as affine_kernels
from tritonq.kernels import dynamic_range as range_kernels
from tritonq.kernels import linear as linear_kernels
from tritonq.kernels.numerics import round_half_even
from tritonq.reference import affine as reference


def on(args, device: str):
    """The args with every tensor on ``device``."""
    return replace(args, **{k: v.to(device) for k, v in vars(args).items() if isinstance(v, torch.Tensor)})


def compare(cases, device, monkeypatch) -> None:
    for name, plan, args in cases:
        monkeypatch.setenv("TRITONQ_BACKEND", "reference")
        want = plan.run(None, None, args)
        monkeypatch.delenv("TRITONQ_BACKEND")
        got = plan.run(None, None, on(args, device))
        got = tuple(t.cpu() for t in got) if isinstance(got, tuple) else got.cpu()
        assert_same_bits(got, want, name)


@pytest.mark.parametrize("code_dtype", CODES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_affine_plans_equal_the_reference(dtype, code_dtype, device, monkeypatch):
    compare(seed_cases.affine(dtype, code_dtype), device, monkeypatch)


@pytest.mark.parametrize("code_dtype", CODES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dynamic_range_equals_the_reference(dtype, code_dtype, device, monkeypatch):
    compare(seed_cases.dynamic_range(dtype, code_dtype), device, monkeypatch)


@pytest.mark.parametrize("dtype", FLOATS)
def test_linear_plans_equal_the_reference(dtype, device, monkeypatch):
    compare(seed_cases.linear(dtype), device, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nf4_dequantize_equals_the_reference(dtype, device, monkeypatch):
    compare(seed_cases.nf4(dtype, matmul=False), device, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nf4_matmul_keeps_its_guarantee(dtype, device):
    for name, plan, args in seed_cases.nf4(dtype, matmul=True):
        w_desc = P.Nf4DequantizeDescriptor(n=plan.desc.n, k=plan.desc.k, block_size=plan.desc.block_size)
        w = P.Nf4DequantizePlan.select(None, w_desc).run(None, None, P.Nf4DequantizeArgs(weight=args.weight, absmax=args.absmax)).double()
        x, promise = args.activation.double(), plan.precision_guarantee()
        exact = x @ w.T
        bound = promise.relative * (x.abs() @ w.abs().T) + promise.output_eps * exact.abs() + promise.output_tiny
        error = (plan.run(None, None, on(args, device)).cpu().double() - exact).abs()
        assert (error <= bound).all(), name
        assert error.max() > 0, "an error of exactly zero would mean that nothing was rounded, and that the bound was never tried"


@triton.jit
def _round_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, round_half_even(tl.load(x_ptr + at)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_half_even_at_every_magnitude(dtype, device):
    """Ties and their neighbours below every power of two, and whatever has no fraction."""
    powers = 2.0 ** torch.arange(-3, 60, dtype=torch.float64)
    ties = (torch.stack((powers, powers + 1, powers - 1)) + 0.5).flatten().to(dtype)
    infinity = torch.tensor(torch.inf, dtype=dtype)
    x = torch.cat((ties, ties.nextafter(infinity), ties.nextafter(-infinity), powers.to(dtype), infinity.view(1)))
    x = torch.cat((x, -x, torch.zeros(2048 - 2 * x.numel(), dtype=dtype))).to(device)
    got = torch.empty_like(x)
    _round_kernel[(1,)](x, got, BLOCK=2048, enable_fp_fusion=False)
    assert torch.equal(got, x.round())


def test_groups_along_a_middle_axis(device):
    x, scale = seed_cases.values((3, 10, 7), torch.float32), seed_cases.scales((3, 3), torch.float32)
    zero_point = seed_cases.zero_points((3, 3))
    options = {"q_min": -128, "q_max": 127, "group_size": 4}
    want, got = torch.empty(3, 10, 7, dtype=torch.int8), torch.empty(3, 10, 7, dtype=torch.int8, device=device)
    reference.quantize(x, scale, zero_point, **options, out=want)
    affine_kernels.quantize(x.to(device), scale.to(device), zero_point.to(device), **options, out=got)
    assert_same_bits(got.cpu(), want, "middle axis")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_zero_points_are_added_without_loss(dtype, device):
    """Quotients that just meet zero points near the ends of int32, where float32 holds every 128th or 256th integer."""
    zero_points = [2**31 - 1, -(2**31), 2**31 - 128, -(2**31) + 1, 2**24 + 1, -(2**24) - 3, 65536, -65537]
    near = torch.arange(-300, 301, dtype=torch.float64)
    x = torch.stack([near - z for z in zero_points]).to(dtype)
    desc = P.QuantizePerTokenDescriptor(n=8, d=601, q_min=-128, q_max=127, input_dtype=dtype)
    args = {"scale": torch.ones(8, dtype=dtype), "zero_point": torch.tensor(zero_points, dtype=torch.int32)}
    args = {k: v.to(device) for k, v in args.items()}
    got = P.QuantizePerTokenPlan.select(None, desc).run(None, None, P.QuantizePerTokenArgs(input=x.to(device), **args)).cpu()
    want = [[min(max(int(v) + z, -128), 127) for v in row] for row, z in zip(x.tolist(), zero_points)]
    assert got.tolist() == want
    assert len({c for row in want for c in row}) > 3


def test_transposed_and_channels_last_inputs_are_read_in_place(device, monkeypatch):
    x = seed_cases.values((70, 33), torch.float32).to(device).T
    tokens = P.QuantizePerTokenDescriptor(n=33, d=70, q_min=-128, q_max=127)
    whole = P.QuantizePerTensorDescriptor(numel=33 * 70, q_min=-128, q_max=127)
    image = seed_cases.values((2, 5, 6, 7), torch.float32).to(device).to(memory_format=torch.channels_last)
    channels = P.QuantizePerChannelDescriptor(shape=(2, 5, 6, 7), axis=1, q_min=-128, q_max=127)

    def of(n):
        return {"scale": seed_cases.scales((n,), torch.float32).to(device), "zero_point": torch.zeros(n, dtype=torch.int32, device=device)}

    for desc, plan, record, data, common in (
        (tokens, P.QuantizePerTokenPlan, P.QuantizePerTokenArgs, x, of(33)),
        (whole, P.QuantizePerTensorPlan, P.QuantizePerTensorArgs, x, {"scale": 0.7, "zero_point": 1}),
        (channels, P.QuantizePerChannelPlan, P.QuantizePerChannelArgs, image, of(5)),
    ):
        assert not data.is_contiguous()
        bound = plan.select(None, desc)
        want = bound.run(None, None, record(input=data.contiguous(), **common))
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "contiguous", None)  # a copy would call it
            got = bound.run(None, None, record(input=data, **common))
        assert got.is_contiguous() and torch.equal(got, want)


def test_rows_more_than_two_to_the_31_elements_apart(device):
    far = 2**31 + 64
    codes = torch.zeros(far + 128, dtype=torch.int8, device=device).as_strided((2, 8), (far, 1))  # untouched pages cost no memory
    codes[0], codes[1] = 3, 5
    desc = P.DequantizePerTokenDescriptor(n=2, d=8)
    args = P.DequantizePerTokenArgs(
        input=codes, scale=torch.tensor([1.0, 2.0], device=device), zero_point=torch.zeros(2, dtype=torch.int32, device=device)
    )
    got = P.DequantizePerTokenPlan.select(None, desc).run(None, None, args)
    assert got.tolist() == [[3.0] * 8, [10.0] * 8]


def test_empty_problems_launch_nothing(device, monkeypatch):
    for module, name in (
        (affine_kernels, "affine_kernel"), (range_kernels, "quantize_rows_kernel"), (range_kernels, "partial_range_kernel"),
        (linear_kernels, "w8a8_linear"), (linear_kernels, "nf4_row_pair_dequantize"), (linear_kernels, "nf4_row_pair_matmul"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, None)
    empty = torch.empty(0, 8, device=device)
    desc = P.QuantizePerTensorDescriptor(numel=0, q_min=0, q_max=1)
    args = P.QuantizePerTensorArgs(input=empty, scale=1.0, zero_point=0)
    assert P.QuantizePerTensorPlan.select(None, desc).run(None, None, args).shape == (0, 8)
    for scope, scale_shape in ((P.DynamicRangeScope.token(), (0,)), (P.DynamicRangeScope.tensor(), ())):
        desc = P.DynamicRangeQuantizeDescriptor(n=0, d=8, q_min=0, q_max=255, mode="asymmetric", scope=scope, output_dtype=torch.uint8)
        codes, scale, zero_point = P.DynamicRangeQuantizePlan.select(None, desc).run(None, None, P.DynamicRangeQuantizeArgs(input=empty))
        assert codes.shape == (0, 8) and scale.shape == zero_point.shape == scale_shape
        assert (scale == 1).all() and (zero_point == 0).all()
    weight = torch.empty(4, 0, dtype=torch.int8, device=device)
    args = P.QuantizedLinearArgs(activation=torch.empty(3, 0, device=device), weight_q=weight, weight_scale=torch.ones(4, device=device))
    plan = P.QuantizedLinearPlan.select(None, P.QuantizedLinearDescriptor(m=3, c_out=4, k=0))
    assert plan.run(None, None, args).tolist() == [[0.0] * 4] * 3
    nf4 = {"weight": torch.empty(2, 0, dtype=torch.uint8, device=device), "absmax": torch.empty(4, 0, device=device)}
    plan = P.Nf4MatmulPlan.select(None, P.Nf4MatmulDescriptor(m=2, n=4, k=0))
    args = P.Nf4MatmulArgs(**nf4, activation=torch.empty(2, 0, device=device))
    assert plan.run(None, None, args).tolist() == [[0.0] * 4] * 2


def test_given_outputs_and_workspace_are_written(device):
    x = torch.randn(9, 40, device=device)
    desc = P.DynamicRangeQuantizeDescriptor(n=9, d=40, q_min=-127, q_max=127, scope=P.DynamicRangeScope.tensor())
    plan = P.DynamicRangeQuantizePlan.select(None, desc)
    assert plan.workspace_size() == 2 * 9 * 4
    workspace = torch.full((plan.workspace_size(),), 255, dtype=torch.uint8, device=device)
    out, scale = torch.empty(9, 40, dtype=torch.int8, device=device), torch.empty(1, device=device)
    codes, s, _ = plan.run(None, workspace, P.DynamicRangeQuantizeArgs(input=x, output=out, scale_out=scale))
    assert codes is out and s is scale and scale.item() == (x.abs().max() / 127).item()
    assert workspace.view(torch.float32)[0] == x.min(), "partial ranges were meant to lie in the given workspace"


def test_whole_tensor_ranges_join_many_chunks(device):
    flat = torch.linspace(-3, 3, 150_000, device=device)  # three chunks of one row; the extremes lie in the first and the last
    strided = torch.randn(64, 20, device=device).T  # one chunk per row
    for x in (flat.view(3, 50_000), strided):
        desc = P.DynamicRangeQuantizeDescriptor(
            n=x.shape[0], d=x.shape[1], q_min=-128, q_max=127, mode="asymmetric", scope=P.DynamicRangeScope.tensor()
        )
        codes, scale, _ = P.DynamicRangeQuantizePlan.select(None, desc).run(None, None, P.DynamicRangeQuantizeArgs(input=x))
        assert scale.item() == ((x.max() - x.min()) / 255).item()
        assert (codes.min().item(), codes.max().item()) == (-128, 127)
