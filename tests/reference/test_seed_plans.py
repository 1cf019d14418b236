"""The seed plans on CPU tensors: the seed's worked vectors, an oracle in Python integers, torch.fake_quantize, and edge cases."""
from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import seed_cases
from tests.support.seed_cases import CODES, FLOATS, RANGES
from tritonq import plans as P
from tritonq.errors import InvalidProblemError
from tritonq.reference import affine, dynamic_range

VECTORS = {
    v["id"].removeprefix("baracuda."): v
    for v in json.loads((Path(__file__).parents[1] / "data" / "seed_vectors.json").read_text())["vectors"]
    if v["system"].startswith("baracuda-kernels")
}
# Packings and block layouts, which are no plan of this family.
ELSEWHERE = {"gptq_to_marlin", "s4.pack", "awq.pack_order", "gptq.pack_order", "gguf.q4_0", "gguf.q8_0"}
PLANS = {name.removesuffix("Plan") for name in P.__all__ if name.endswith("Plan")}


def numbers(values, dtype=torch.float32) -> torch.Tensor:
    """A vector's numbers, where NaN and the infinities are strings."""
    return torch.tensor(np.vectorize(float)(values), dtype=torch.float64).to(dtype)


def run(kind: str, desc, **args):
    return getattr(P, f"{kind}Plan").select(None, desc).run(None, None, getattr(P, f"{kind}Args")(**args))


def per_tensor(v: dict, dtype=torch.float32, code_dtype=torch.int8) -> torch.Tensor:
    p, x = {"scale": 1.0, "zero_point": 0, "q_min": -128, "q_max": 127, **v["params"]}, v["inputs"]
    x = numbers(x["x"] if dtype != torch.float64 else x["x_f64"], dtype)
    desc = P.QuantizePerTensorDescriptor(numel=x.numel(), q_min=p["q_min"], q_max=p["q_max"], input_dtype=dtype, output_dtype=code_dtype)
    return run("QuantizePerTensor", desc, input=x, scale=p["scale"], zero_point=p["zero_point"])


def shaped(v: dict, shape, scale_shape) -> dict:
    """x or q, d_output, scale and zero_point of a vector, as args."""
    given, args = v["inputs"], {}
    if "x" in given:
        args["input"] = numbers(given["x"]).view(shape)
    if "q" in given:
        args["input"] = torch.tensor(given["q"], dtype=torch.int8).view(shape)
    if "d_output" in given:
        args["d_output"] = numbers(given["d_output"]).view(shape)
    if "zero_point" in given:
        args["zero_point"] = torch.tensor(given["zero_point"], dtype=torch.int32).view(scale_shape)
    return {**args, "scale": numbers(given["scale"]).view(scale_shape)}


# ---- the seed's worked vectors


def test_no_vector_is_forgotten():
    source = Path(__file__).read_text()
    assert [name for name in VECTORS if name not in ELSEWHERE and f'"{name}"' not in source] == []
    assert {*VECTORS, "gptq.pack_order"} >= ELSEWHERE and len(VECTORS) > 25


@pytest.mark.parametrize("name", ["per_tensor.s8", "tie_zero_point.z0", "overflow_and_nonfinite", "per_tensor.u8"])
def test_vector_per_tensor(name):
    v, code_dtype = VECTORS[name], torch.uint8 if name.endswith("u8") else torch.int8
    codes = per_tensor(v, code_dtype=code_dtype)
    upstream = v["expected_upstream"]
    assert codes.tolist() == v.get("expected_recommended", upstream).get("q")
    if "y" in upstream:
        desc = P.DequantizePerTensorDescriptor(numel=codes.numel(), input_dtype=code_dtype)
        y = run("DequantizePerTensor", desc, input=codes, scale=v["params"]["scale"], zero_point=v["params"]["zero_point"])
        assert y.tolist() == numbers(upstream["y"]).tolist()


def test_vector_of_float64_and_float16_input():
    v = VECTORS["f64_precision"]
    assert per_tensor(v, torch.float64).tolist() == v["expected_recommended"]["q"]
    v = VECTORS["f16_input"]
    codes = per_tensor(v, torch.float16)
    assert codes.tolist() == v["expected_upstream"]["q"]
    desc = P.DequantizePerTensorDescriptor(numel=5, output_dtype=torch.float16)
    y = run("DequantizePerTensor", desc, input=codes, scale=v["params"]["scale"], zero_point=0)
    assert y.view(torch.uint16).tolist() == v["expected_upstream"]["y_f16_bits"]


def test_vector_dequantize_per_tensor():
    v = VECTORS["dequantize_per_tensor"]
    codes = torch.tensor(v["inputs"]["q"], dtype=torch.int8)
    y = run("DequantizePerTensor", P.DequantizePerTensorDescriptor(numel=5), input=codes, **v["params"])
    assert y.tolist() == v["expected_upstream"]["y"]


def test_vector_per_tensor_backward_and_its_inclusive_mask():
    v = VECTORS["per_tensor_backward"]
    x, dy = numbers(v["inputs"]["x"]), numbers(v["inputs"]["d_output"])
    desc = P.QuantizePerTensorBackwardDescriptor(numel=4, q_min=-128, q_max=127)
    got = run("QuantizePerTensorBackward", desc, input=x, d_output=dy, scale=0.1, zero_point=0)
    assert got.tolist() == (dy / numbers(0.1)).tolist()[:2] + [0.0, 0.0]
    torch.testing.assert_close(got, numbers(v["expected_upstream"]["d_input"]))

    v = VECTORS["ste_mask.boundary"]
    x, dy, mask = numbers(v["inputs"]["x"]), numbers(v["inputs"]["d_output"]), v["expected_recommended"]["mask"]
    desc = P.QuantizePerTensorDescriptor(numel=7, q_min=-128, q_max=127)
    for kind, args in (("PerTensor", {"scale": 0.1, "zero_point": 0}), ("PerToken", None), ("PerGroup", None)):
        shape, scale_shape, fields = {
            "PerTensor": ((7,), (), {"numel": 7}),
            "PerToken": ((1, 7), (1,), {"n": 1, "d": 7}),
            "PerGroup": ((1, 7), (1, 1), {"outer_size": 1, "axis_size": 7, "group_size": 7}),
        }[kind]
        args = args or {"scale": torch.full(scale_shape, 0.1), "zero_point": torch.zeros(scale_shape, dtype=torch.int32)}
        desc = getattr(P, f"Quantize{kind}Descriptor")(**fields, q_min=-128, q_max=127)
        got = run(f"Quantize{kind}Backward", desc, input=x.view(shape), d_output=dy.view(shape), **args)
        assert (got.flatten() != 0).tolist() == mask, kind
    desc = P.FakeQuantizeDescriptor(numel=7, q_min=-128, q_max=127)
    assert run("FakeQuantizeBackward", desc, input=x, d_output=dy, scale=0.1, zero_point=0).tolist() == [float(m) for m in mask]


def test_vector_scale_zero_is_refused_and_harmless_below():
    v = VECTORS["scale_zero"]
    with pytest.raises(InvalidProblemError, match="scale must be finite and greater than 0, found 0.0"):
        per_tensor(v)
    codes = torch.empty(1, 1, 4, dtype=torch.int8)
    zero_point = torch.full((1, 1), 3, dtype=torch.int32)
    affine.quantize(numbers(v["inputs"]["x"]).view(1, 1, 4), torch.zeros(1, 1), zero_point, q_min=-128, q_max=127, group_size=1, out=codes)
    assert codes.flatten().tolist() == v["expected_recommended"]["q"]


@pytest.mark.parametrize("name", ["per_group", "per_group_backward", "dequantize_per_group", "dequantize_per_group_backward"])
def test_vector_per_group(name):
    v = VECTORS[name]
    fields = {"outer_size": 2, "axis_size": 8, "group_size": 4}
    kind = "".join(part.capitalize() for part in name.split("_"))
    kind = kind if name.startswith("dequantize") else f"Quantize{kind}"
    ranges = {"q_min": -10, "q_max": 10} if kind.startswith("Quantize") else {}
    got = run(kind, getattr(P, f"{kind}Descriptor")(**fields, **ranges), **shaped(v, (2, 8), (2, 2)))
    (want,) = v["expected_upstream"].values()
    want = v.get("expected_recommended", {}).get("d_input_inclusive_mask", want)
    assert got.flatten().tolist() == pytest.approx(want, rel=3e-7)  # the seed multiplies by 1 / scale, this divides


@pytest.mark.parametrize("name", ["per_token", "per_token_backward"])
def test_vector_per_token(name):
    v = VECTORS[name]
    kind = "QuantizePerToken" + ("Backward" if name.endswith("backward") else "")
    got = run(kind, getattr(P, f"{kind}Descriptor")(n=2, d=4, q_min=-20, q_max=20), **shaped(v, (2, 4), (2,)))
    (want,) = v["expected_upstream"].values()
    assert got.flatten().tolist() == pytest.approx(want, rel=3e-7)


@pytest.mark.parametrize("name", ["per_channel", "per_channel_backward", "dequantize_per_channel"])
def test_vector_per_channel(name):
    v = VECTORS[name]
    kind = {"per_channel": "Quantize", "per_channel_backward": "Quantize", "dequantize_per_channel": "Dequantize"}[name] + "PerChannel"
    ranges = {key: v["params"][key] for key in ("q_min", "q_max") if key in v["params"]}
    desc = getattr(P, f"{kind}Descriptor")(shape=(2, 3, 4, 1), rank=3, axis=1, **ranges)
    kind += "Backward" if name.endswith("backward") else ""
    (want,) = v["expected_upstream"].values()
    for shape in ((2, 3, 4, 1), (2, 3, 4)):
        got = run(kind, desc, **shaped(v, shape, (3,)))
        assert got.shape == shape and got.flatten().tolist() == pytest.approx(want, rel=3e-7)


def test_vector_fake_quantize():
    v = VECTORS["fake_quantize"]
    args = {"input": numbers(v["inputs"]["x"]), "scale": v["params"]["scale"], "zero_point": 0}
    desc = P.FakeQuantizeDescriptor(numel=11, q_min=-128, q_max=127)
    assert run("FakeQuantize", desc, **args).tolist() == pytest.approx(v["expected_upstream"]["y"], rel=2e-7)
    d_input = run("FakeQuantizeBackward", desc, **args, d_output=numbers(v["inputs"]["d_output"]))
    assert d_input.tolist() == v["expected_upstream"]["d_input"]


def test_vector_dynamic_range():
    v = VECTORS["dynamic_range"]
    desc = P.DynamicRangeQuantizeDescriptor(n=3, d=4, q_min=-127, q_max=127)
    codes, scale, zero_point = run("DynamicRangeQuantize", desc, input=numbers(v["inputs"]["x"]))
    assert scale.tolist() == v["expected_upstream"]["scale"] and codes.tolist() == v["expected_upstream"]["q"]
    assert zero_point.tolist() == [0, 0, 0]
    # The seed gives an infinite scale to a row with an infinity; here the infinity does not enter the range, and saturates.
    v = VECTORS["dynamic_range.nonfinite"]
    desc = P.DynamicRangeQuantizeDescriptor(n=2, d=4, q_min=-127, q_max=127)
    codes, scale, _ = run("DynamicRangeQuantize", desc, input=numbers(v["inputs"]["x"]))
    assert scale.tolist() == [v["expected_upstream"]["scale"][0], numbers(1 / 127).item()]
    assert codes.tolist() == [v["expected_upstream"]["q"][0], [127, 127, -127, 0]]


def test_vector_quantized_linear():
    v = VECTORS["quantized_linear"]
    weight = torch.tensor(v["inputs"]["weight_q"], dtype=torch.int8)
    act_q, act_scale = torch.empty(2, 8, dtype=torch.int8), torch.empty(2)
    desc = P.QuantizedLinearDescriptor(m=2, c_out=3, k=8)
    y = run(
        "QuantizedLinear", desc, activation=numbers(v["inputs"]["activation"]), weight_q=weight,
        weight_scale=numbers(v["inputs"]["weight_scale"]), act_q_scratch=act_q, act_scale_scratch=act_scale,
    )  # fmt: skip
    want = v["expected_upstream"]
    assert act_q.tolist() == want["act_q"] and act_scale.tolist() == want["act_scale"]
    assert y.tolist() == want["output"]


def test_vector_smoothquant_linear():
    v = VECTORS["smoothquant_linear"]
    act, weight = (torch.tensor(v["inputs"][name], dtype=torch.int8) for name in ("act_q", "weight_q"))
    scratch = torch.empty(2)
    desc = P.SmoothQuantLinearDescriptor(m=2, n=3, k=8, act_scale=v["params"]["act_scale"])
    weight_scale = numbers(v["inputs"]["weight_scale"])
    y = run("SmoothQuantLinear", desc, act_q=act, weight_q=weight, weight_scale=weight_scale, act_scale_scratch=scratch)
    torch.testing.assert_close(y, numbers(v["expected_upstream"]["output"]), rtol=2.5e-7, atol=0)
    assert scratch.tolist() == [v["params"]["act_scale"]] * 2


@pytest.mark.parametrize("flat", [False, True])
def test_vector_nf4_row_paired(flat):
    v = VECTORS["nf4.row_paired"]["expected_upstream"]
    weight, absmax = torch.tensor(v["packed"], dtype=torch.uint8), numbers(v["absmax"])
    weight, absmax = (weight.flatten(), absmax) if flat else (weight, absmax.view(4, 1))
    y = run("Nf4Dequantize", P.Nf4DequantizeDescriptor(n=4, k=4, block_size=4), weight=weight, absmax=absmax)
    assert y.tolist() == v["dequantized"]
    one = run("Nf4Matmul", P.Nf4MatmulDescriptor(m=1, n=4, k=4, block_size=4), weight=weight, absmax=absmax, activation=torch.eye(4)[2])
    assert one.tolist() == y[:, 2].tolist()


# ---- an oracle in Python integers, element by element


def _scale_index(kind: str, fields: dict, at: tuple[int, ...]):
    return {
        "PerTensor": lambda: (),
        "PerChannel": lambda: (at[fields.get("axis", 0)],),
        "PerToken": lambda: (at[0],),
        "PerGroup": lambda: (at[0], at[1] // fields.get("group_size", 1)),
    }[kind]()


@pytest.mark.parametrize("code_dtype", CODES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "kind, fields, shape",
    [
        ("PerTensor", {"numel": 60}, (4, 15)),
        ("PerChannel", {"shape": (3, 4, 5), "axis": 1}, (3, 4, 5)),
        ("PerChannel", {"shape": (2, 3, 2, 5), "axis": -1}, (2, 3, 2, 5)),
        ("PerChannel", {"shape": (3, 4, 5), "axis": -2}, (3, 4, 5)),
        ("PerToken", {"n": 6, "d": 10}, (6, 10)),
        ("PerGroup", {"outer_size": 5, "axis_size": 13, "group_size": 4}, (5, 13)),
    ],
)
def test_affine_plans_against_python_integers(kind, fields, shape, dtype, code_dtype):
    real = np.float64 if dtype == torch.float64 else np.float32
    low, high = RANGES[code_dtype]
    low, high = low + 3, high - 2
    desc = getattr(P, f"Quantize{kind}Descriptor")(**fields, q_min=low, q_max=high, input_dtype=dtype, output_dtype=code_dtype)
    back = getattr(P, f"Dequantize{kind}Descriptor")(**fields, input_dtype=code_dtype, output_dtype=dtype)
    scale_shape = desc.scale_shape or ()
    scale, zero_point = seed_cases.scales(scale_shape, dtype), seed_cases.zero_points(scale_shape)
    x, dy = seed_cases.values(shape, dtype), torch.randn(shape).to(dtype)
    common = {"scale": scale, "zero_point": zero_point}
    codes = run(f"Quantize{kind}", desc, input=x, **common)
    d_input = run(f"Quantize{kind}Backward", desc, input=x, d_output=dy, **common)
    y = run(f"Dequantize{kind}", back, input=codes, **common)
    d_codes = run(f"Dequantize{kind}Backward", back, d_output=dy, scale=scale)
    for at in np.ndindex(*shape):
        index = _scale_index(kind, fields, at)
        s, z = real(scale[index].double()), int(zero_point[index])
        value, gradient = real(x[at].double()), real(dy[at].double())
        with np.errstate(over="ignore"):
            quotient = value / s
            whole = 0 if np.isnan(quotient) else int(np.rint(quotient)) if np.isfinite(quotient) else int(math.copysign(2**200, quotient))
            code = min(max(whole + z, low), high)
            assert codes[at].item() == code, (at, value, s, z)
            want = gradient / s if low <= whole + z <= high else real(0)
            assert d_input[at] == torch.tensor(want).to(dtype), (at, value, s, z)
            assert y[at] == torch.tensor(real(code - z) * s).to(dtype)
            assert d_codes[at] == torch.tensor(gradient * s).to(dtype)


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("scope", list(seed_cases.SCOPES))
@pytest.mark.parametrize("dtype", FLOATS)
def test_dynamic_range_against_the_rule(dtype, scope, mode):
    x = seed_cases.range_data(dtype, 12, 50)
    scope = seed_cases.SCOPES[scope]
    low, high = (-127, 127) if mode == "symmetric" else (-128, 127)
    desc = P.DynamicRangeQuantizeDescriptor(n=12, d=50, q_min=low, q_max=high, mode=mode, scope=scope, input_dtype=dtype)
    codes, scale, zero_point = run("DynamicRangeQuantize", desc, input=x)
    real = np.float64 if dtype == torch.float64 else np.float32
    info = torch.finfo(dtype)
    groups: dict[tuple, list] = {}
    for n, d in np.ndindex(12, 50):
        axis = scope.axis % 2
        key = {"tensor": (), "token": (n,), "channel": ((n, d)[axis],)}.get(scope.kind)
        if scope.kind == "group":
            key = (n, d // scope.group_size) if axis == 1 else (n // scope.group_size, d)
        groups.setdefault(key, []).append((n, d))
    assert scale.shape == zero_point.shape and scale.numel() == len(groups)
    for key, members in groups.items():
        values = [real(x[m].double()) for m in members]
        finite = [v for v in values if np.isfinite(v)] + [real(0)]
        with np.errstate(over="ignore", invalid="ignore"):
            bottom, top = min(finite), max(finite)
            extent = max(-bottom, top) if mode == "symmetric" else top - bottom
            steps = real(high if mode == "symmetric" else high - low)
            want = extent / steps if np.isfinite(extent) else (top / 2 - bottom / 2) / steps * 2
            stored = torch.tensor(want).to(dtype).clamp(min=info.tiny * info.eps) if extent > 0 else torch.tensor(1, dtype=dtype)
            assert scale[key] == stored, key
            s = real(stored.double())
            z = 0 if mode == "symmetric" else min(max(low - int(np.rint(bottom / s)), low), high)
            assert zero_point[key].item() == z, key
            for m, v in zip(members, values):
                quotient = 0 if np.isnan(v) else v / s
                whole = int(np.rint(quotient)) if np.isfinite(quotient) else int(math.copysign(2**200, quotient))
                assert codes[m].item() == min(max(whole + z, low), high), (m, v)


@pytest.mark.parametrize("dtype", FLOATS)
def test_w8a8_sums_are_exact(dtype):
    for _, plan, args in seed_cases.linear(dtype):
        if not isinstance(plan, P.SmoothQuantLinearPlan) or not args.act_q.numel():
            continue
        total = args.act_q.long() @ args.weight_q.long().T
        real = torch.float64 if dtype == torch.float64 else torch.float32
        scale = torch.tensor(0.017).to(real) * args.weight_scale.to(real)
        assert torch.equal(plan.run(None, None, args), (scale * total.to(real)).to(dtype))


# ---- torch as an oracle: it multiplies by 1 / scale, which is the same for powers of two


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0**-7])
@pytest.mark.parametrize("zero_point", [0, 5, -128])
def test_fake_quantize_is_torch_fake_quantize(scale, zero_point):
    x = torch.cat((torch.randn(4000) * 60 * scale, torch.arange(-300, 300) * (scale / 2))).requires_grad_()
    want = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127)
    dy = torch.randn_like(x)
    want.backward(dy)
    desc = P.FakeQuantizeDescriptor(numel=x.numel(), q_min=-128, q_max=127)
    args = {"input": x.detach(), "scale": scale, "zero_point": zero_point}
    assert torch.equal(run("FakeQuantize", desc, **args), want.detach())
    got = run("FakeQuantizeBackward", desc, **args, d_output=dy)
    assert torch.equal(got, x.grad) and 0 < (got == 0).sum() < got.numel()
    desc = P.QuantizePerTensorDescriptor(numel=x.numel(), q_min=-128, q_max=127)
    assert torch.equal(run("QuantizePerTensorBackward", desc, **args, d_output=dy), x.grad / scale)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel_is_torch_fake_quantize_per_channel(axis):
    shape = (6, 5, 40)
    x = (torch.randn(shape) * 40).requires_grad_()
    n = shape[axis]
    scale, zero_point = 2.0 ** torch.randint(-3, 2, (n,)), torch.randint(0, 255, (n,), dtype=torch.int32)
    want = torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, 0, 255)
    dy = torch.randn(shape)
    want.backward(dy)
    common = {"scale": scale, "zero_point": zero_point}
    desc = P.QuantizePerChannelDescriptor(shape=shape, axis=axis, q_min=0, q_max=255, output_dtype=torch.uint8)
    codes = run("QuantizePerChannel", desc, input=x.detach(), **common)
    back = P.DequantizePerChannelDescriptor(shape=shape, axis=axis, input_dtype=torch.uint8)
    assert torch.equal(run("DequantizePerChannel", back, input=codes, **common), want.detach())
    got = run("QuantizePerChannelBackward", desc, input=x.detach(), d_output=dy, **common)
    expanded = scale.view([-1 if i == axis else 1 for i in range(3)])
    assert torch.equal(got, x.grad / expanded) and 0 < (got == 0).sum() < got.numel()


# ---- the plan surface


def test_every_plan_has_its_descriptor_args_and_sku():
    assert len(PLANS) == 23
    skus = set()
    for cases in (seed_cases.affine(torch.float16, torch.int8), seed_cases.dynamic_range(torch.float16, torch.int8),
                  seed_cases.linear(torch.float16), seed_cases.nf4(torch.float16, True), seed_cases.nf4(torch.float16, False)):  # fmt: skip
        for _, plan, args in cases:
            kind = type(plan).__name__.removesuffix("Plan")
            assert hasattr(P, f"{kind}Descriptor") and type(args) is getattr(P, f"{kind}Args")
            assert plan.can_implement(args) and plan.can_implement(args).reason is None
            assert isinstance(plan.workspace_size(), int)
            sku = plan.sku()
            assert sku.element == torch.float16 and sku.precision_guarantee == plan.precision_guarantee()
            assert sku.op.replace("_", "") == kind.lower()
            skus.add((kind, str(sku)))
    assert len(skus) == len({name for _, name in skus}) == len(PLANS)
    plan = P.QuantizePerGroupPlan.select(None, P.QuantizePerGroupDescriptor(outer_size=1, axis_size=4, group_size=4, q_min=0, q_max=9))
    assert str(plan.sku()) == "quantize_per_group/float32-int8/cpu-reference/reference"
    assert plan.desc.num_groups() == 1


def test_default_q_range():
    assert P.default_q_range(torch.int8) == (-128, 127)
    assert P.default_q_range(torch.uint8) == (0, 255)
    assert P.default_q_range(torch.int32) is None


def test_dequantize_descriptor_reads_both_orders():
    codes = torch.tensor([1, 2, 3], dtype=torch.int8)
    for given in ({"input_dtype": torch.int8, "output_dtype": torch.float16}, {"input_dtype": torch.float16, "output_dtype": torch.int8}):
        y = run("DequantizePerTensor", P.DequantizePerTensorDescriptor(numel=3, **given), input=codes, scale=0.5, zero_point=1)
        assert y.dtype == torch.float16 and y.tolist() == [0.0, 0.5, 1.0]


def test_scale_and_zero_point_as_zero_dimensional_tensors():
    x = torch.randn(50)
    desc = P.QuantizePerTensorDescriptor(numel=50, q_min=-128, q_max=127)
    want = run("QuantizePerTensor", desc, input=x, scale=0.1, zero_point=3)
    got = run("QuantizePerTensor", desc, input=x, scale=torch.tensor(0.1), zero_point=torch.tensor(3, dtype=torch.int32))
    assert torch.equal(got, want)


def test_dynamic_range_feeds_dequantize():
    x = torch.randn(6, 40, dtype=torch.bfloat16)
    desc = P.DynamicRangeQuantizeDescriptor(
        n=6, d=40, q_min=0, q_max=255, mode="asymmetric", scope=P.DynamicRangeScope.group(1, 16),
        input_dtype=x.dtype, output_dtype=torch.uint8,
    )  # fmt: skip
    codes, scale, zero_point = run("DynamicRangeQuantize", desc, input=x)
    back = P.DequantizePerGroupDescriptor(outer_size=6, axis_size=40, group_size=16, input_dtype=torch.uint8, output_dtype=x.dtype)
    y = run("DequantizePerGroup", back, input=codes, scale=scale, zero_point=zero_point)
    assert (y - x).abs().max() <= 0.6 * scale.max() + 2**-8 * x.abs().max()


def test_fake_quantize_in_place_and_under_autograd():
    x = torch.randn(30, requires_grad=True)
    desc = P.FakeQuantizeDescriptor(numel=30, q_min=-8, q_max=7)
    want = run("FakeQuantize", desc, input=x, scale=0.25, zero_point=0)
    assert not want.requires_grad
    y = x.detach().clone()
    assert run("FakeQuantize", desc, input=y, scale=0.25, zero_point=0, output=y) is y and torch.equal(y, want)


def test_the_reference_works_in_slabs(monkeypatch):
    cases = list(seed_cases.affine(torch.float32, torch.int8)) + list(seed_cases.dynamic_range(torch.float32, torch.int8))
    whole = [plan.run(None, None, args) for _, plan, args in cases]
    monkeypatch.setattr(affine, "_SLAB", 64)
    monkeypatch.setattr(dynamic_range, "_SLAB", 64)
    for (name, plan, args), want in zip(cases, whole, strict=True):
        seed_cases.assert_same_bits(plan.run(None, None, args), want, name)
