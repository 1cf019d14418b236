"""Quantization-aware training: what fake-quantized layers compute, their gradients, and exact conversion."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonq
from tests.support.schemes import SCHEMES, same_bits
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.fake_quantize_op import fake_quantize, refuses_learned_scale
from tritonq.nn import FakeQuantLinear, QuantLinear, convert_qat_, prepare_qat_
from tritonq.scheme import Scheme

BF16 = torch.bfloat16
LEARNED = ["int4.g32", "int4.narrow.g32", "int8", "uint4.g32", "uint4.g24.fz", "nf4", "fp4_e2m1.g32", "fp8_e4m3", "int3.g40", "int4.b16x32",
           "int4.g32.away", "uint8.tensor", "int8.column", "int4.g32.s32"]  # fmt: skip


def linear(n=40, k=96, dtype=torch.float32, bias=True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(k, n, bias, dtype=dtype)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_weight_is_that_of_the_quantized_layer(scheme, dtype):
    layer = FakeQuantLinear(linear(dtype=dtype), scheme)
    w_hat = layer.fake_weight()
    assert same_bits(w_hat.detach(), tritonq.quantize(layer.weight.detach(), scheme).dequantize()) and w_hat.dtype == dtype
    quantized = layer.to_quant_linear()
    assert same_bits(quantized.qtensor.dequantize(), w_hat.detach()) and quantized.bias is layer.bias
    seed = torch.randn_like(w_hat)
    (grad,) = torch.autograd.grad(w_hat, layer.weight, seed)
    assert torch.equal(grad, seed), "straight through"


@pytest.mark.parametrize("scheme", LEARNED)
@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float64])
def test_learned_scales_begin_as_quantize_takes_them_and_convert_exactly(scheme, dtype):
    layer = FakeQuantLinear(linear(dtype=dtype), scheme, learn_scale=True)
    assert same_bits(layer.fake_weight().detach(), tritonq.quantize(layer.weight.detach(), scheme).dequantize())
    with torch.no_grad():
        layer.weight_scale.mul_(0.7)
        layer.weight.mul_(1.3)
    w_hat = layer.fake_weight().detach()
    q = layer.to_quant_linear().qtensor
    assert same_bits(q.dequantize(), w_hat) and q.scheme == Scheme.parse(scheme)
    assert not same_bits(w_hat, tritonq.quantize(layer.weight.detach(), scheme).dequantize())


def by_the_book(grad, w, layer):
    """Gradients of weight and scale, element by element in float64, from the definition."""
    scheme = layer.scheme
    rows, columns = scheme.group_shape(*w.shape)
    levels = sorted(set(scheme.format.levels.double().tolist()) - {math.inf, -math.inf})
    levels = [v for v in levels if math.isfinite(v)]
    low, high = scheme.code_range if scheme.format.is_integer else (None, None)
    d_w, d_s = torch.zeros_like(w), torch.zeros_like(layer.weight_scale, dtype=torch.float64)
    largest = max(abs(low), high) if scheme.format.is_integer else scheme.format.max_abs
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            at = i // rows, j // columns
            s = layer.weight_scale[at].item()
            z = 0 if layer.weight_zero_point is None else layer.weight_zero_point[at].item()
            v = (w[i, j].item() - z) / s if scheme.float_zero else w[i, j].item() / s
            if scheme.format.is_integer:
                offset = 0 if scheme.float_zero else z
                code = round(v) + offset
                inside, level = low <= code <= high, min(max(code, low), high) - offset
            else:
                inside, level = abs(v) <= scheme.format.max_abs, min(levels, key=lambda one: abs(one - v))  # noqa: B023
            d_w[i, j] = grad[i, j] if inside else 0
            d_s[at] += grad[i, j].item() * (level - (v if inside else 0)) / math.sqrt(rows * columns * largest)
    return d_w, d_s


@pytest.mark.parametrize("scheme", [s for s in LEARNED if "away" not in s])
def test_gradients_with_a_learned_scale_are_those_of_the_definition(scheme):
    layer = FakeQuantLinear(linear(16, 48, torch.float64), scheme, learn_scale=True)
    with torch.no_grad():
        layer.weight_scale.mul_(0.6)  # some weights lie beyond the range
    seed = torch.randn(16, 48, dtype=torch.float64)
    ours = torch.autograd.grad(layer.fake_weight(), (layer.weight, layer.weight_scale), seed)
    theirs = by_the_book(seed, layer.weight.detach(), layer)
    assert bool((theirs[0] == 0).any()) and torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1].double(), theirs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["nf4.dq", "nvfp4", "mxfp4", "mxfp8", "int4.g32.pow2", "bf16"])
def test_scales_that_cannot_be_learned_are_refused(scheme):
    with pytest.raises(UnsupportedError, match="stores its scales in few steps|has no scale"):
        FakeQuantLinear(linear(), scheme, learn_scale=True)
    assert refuses_learned_scale(Scheme.parse(scheme), torch.float32)


@pytest.mark.parametrize("make, text", [
    (lambda w: fake_quantize(w, "int4.g32", torch.ones(40, 2)), r"must be a float \[40, 3\]"),
    (lambda w: fake_quantize(w, "int4.g32", torch.ones(40, 3, dtype=torch.int32)), "torch.int32"),
    (lambda w: fake_quantize(w, "uint4.g32", torch.ones(40, 3)), "a zero point for each group"),
    (lambda w: fake_quantize(w, "int4.g32", torch.ones(40, 3), torch.ones(40, 3)), "no zero point"),
    (lambda w: fake_quantize(w, "int9"), "unknown format"), (lambda w: fake_quantize(w[0], "int4"), "must be a matrix"),
    (lambda w: FakeQuantLinear(nn.Embedding(8, 8), "int4"), "takes a torch.nn.Linear"),
    (lambda w: prepare_qat_(nn.Linear(8, 8), "int4"), "holds Linear layers"),
    (lambda w: convert_qat_(FakeQuantLinear(linear(), "int4")), "use to_quant_linear"),
])  # fmt: skip
def test_refusals(make, text):
    with pytest.raises(InvalidProblemError, match=text):
        make(torch.randn(40, 96))


def test_scales_stay_positive():
    layer = FakeQuantLinear(linear(), "int4.g32", learn_scale=True)
    with torch.no_grad():
        layer.weight_scale[0, 0], layer.weight_scale[0, 1] = -1.0, 0.0
    w_hat = layer.fake_weight()
    assert w_hat.isfinite().all() and bool((w_hat[0, :64].abs() < 1e-30).all())
    assert same_bits(layer.to_quant_linear().qtensor.dequantize(), w_hat.detach())


def test_operator_checks_and_compile():
    w = torch.randn(8, 64, requires_grad=True)
    scale, zero = torch.rand(8, 2, requires_grad=True), torch.full((8, 2), 7, dtype=torch.uint8)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.tritonq.fake_quantize.default, (w, "int4.g32"), test_utils=tests)
    torch.library.opcheck(torch.ops.tritonq.fake_quantize.default, (w, "uint4.g32", scale, zero), test_utils=tests)
    layer = FakeQuantLinear(linear(), "uint4.g32", learn_scale=True)
    torch._dynamo.reset()
    compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.randn(3, 96)
    assert torch.equal(compiled(x), layer(x))
    compiled(x).sum().backward()
    got = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    layer(x).sum().backward()
    assert set(got) == {"weight", "bias", "weight_scale"} and all(torch.equal(p.grad, got[name]) for name, p in layer.named_parameters())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens, self.up = nn.Embedding(32, 64), nn.Linear(64, 128)
        self.norm, self.down = nn.LayerNorm(128), nn.Linear(128, 8)

    def forward(self, ids):
        return self.down(self.norm(F.gelu(self.up(self.embed_tokens(ids)))))


@pytest.mark.parametrize("scheme, learn_scale, share", [("int2.g32", False, 0.5), ("int2.g32", True, 0.5), ("uint2.g16", True, 0.5),
                                                        ("nf4", False, 1), ("mxfp4", False, 1)])  # fmt: skip
def test_training_beats_rounding_and_conversion_keeps_it(scheme, learn_scale, share):
    """A task that the full model has learned: trained further as quantized, its loss is below that of rounding; far below at 2 bits."""
    ids = torch.arange(32)
    y = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))

    def train(model, steps, rate):
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(steps):
            loss = F.mse_loss(model(ids), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model

    full = train(Net(), 60, 0.01)
    rounded = copy.deepcopy(full)
    tritonq.quantize_(rounded, scheme)
    model = copy.deepcopy(full)
    report = prepare_qat_(model, scheme, learn_scale=learn_scale)
    assert [one.name for one in report.quantized] == ["up.weight", "down.weight"]
    torch.testing.assert_close(model(ids), rounded(ids), rtol=1e-4, atol=1e-4)
    train(model, 60, 0.003)
    trained = model(ids)
    assert F.mse_loss(trained, y) < share * F.mse_loss(rounded(ids), y)
    assert convert_qat_(model) == 2 and type(model.up) is QuantLinear
    torch.testing.assert_close(model(ids), trained, rtol=1e-4, atol=1e-4)


def test_preparing_follows_the_rule_of_quantize():
    model = Net()
    report = prepare_qat_(model, {"up.*": "nf4", "*": "int8"}, include=["embed_tokens.weight"], exclude=["down.weight"])
    assert {one.name: one.scheme for one in report.quantized} == {"up.weight": "nf4"}
    reasons = {one.name: one.reason for one in report.kept if len(one.shape) > 1}
    assert set(reasons) == {"embed_tokens.weight", "down.weight"} and reasons["down.weight"] == "excluded"
    assert reasons["embed_tokens.weight"] == "held by Embedding; only Linear layers are trained this way"
    twin = Net()
    tritonq.quantize_(twin, "nf4", exclude=["down.weight"])
    assert report.quantized[0].bytes_after == twin.up.qtensor.nbytes


def test_a_layer_is_a_module_and_a_linear(tmp_path):
    layer = FakeQuantLinear(linear(), "uint4.g32", learn_scale=True)
    assert isinstance(layer, nn.Linear) and set(layer.state_dict()) == {"weight", "bias", "weight_scale", "weight_zero_point"}
    other = FakeQuantLinear(linear(), "uint4.g32", learn_scale=True)
    with torch.no_grad():
        layer.weight_scale.mul_(0.5)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 96)
    assert same_bits(other(x), layer(x)) and same_bits(copy.deepcopy(layer)(x), layer(x))
    half = copy.deepcopy(layer).half()
    assert half.weight_zero_point.dtype == torch.uint8 and half(x.half()).dtype == torch.float16
    assert same_bits(half.to_quant_linear().qtensor.dequantize(), half.fake_weight().detach())
    assert str(layer) == "FakeQuantLinear(in_features=96, out_features=40, bias=True, scheme=uint4.g32, learned scale)"


@pytest.mark.parametrize("scheme", ["uint4.g32.fz", "uint4.g32.fz.s16", "uint4.g32.fz.s32", "uint4.g32"])
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_learned_scales_after_a_cast(scheme, cast):
    layer = getattr(FakeQuantLinear(torch.nn.Linear(64, 32), scheme, learn_scale=True), cast)()
    x = torch.randn(2, 64, dtype=layer.weight.dtype)
    assert layer(x).dtype == x.dtype
    assert torch.equal(layer.to_quant_linear().qtensor.dequantize(), layer.fake_weight())
