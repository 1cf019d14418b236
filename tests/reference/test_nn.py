"""QuantLinear and QuantEmbedding: products, states, casts, copies; see test_quantize_model.py for whole models."""
import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonq
from tests.support.schemes import SCHEMES, same_bits, same_tensors
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.nn import QuantEmbedding, QuantExperts, QuantLinear

BF16 = torch.bfloat16


def linear(scheme="nf4", dtype=torch.float32, bias=True, **more) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_linear(nn.Linear(96, 40, bias, dtype=dtype), scheme, **more)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_forward_is_that_of_the_decoded_weight(scheme):
    layer, x = linear(scheme), torch.randn(2, 3, 96)
    ordinary = layer.to_linear()
    assert same_bits(ordinary.weight.detach(), layer.qtensor.dequantize())
    torch.testing.assert_close(layer(x), ordinary(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", [*SCHEMES, "uint4.g16.fz"])
def test_state_dict_round_trip(scheme, tmp_path):
    layer, x = linear(scheme), torch.randn(2, 96)
    state = layer.state_dict()
    assert all(name == "bias" or name.startswith("weight") for name in state)
    other = linear(scheme)
    with torch.no_grad():
        other.bias.zero_()
    other.load_state_dict({name: t.clone() for name, t in state.items()})
    assert same_bits(other(x), layer(x)) and other.weight.data_ptr() != layer.weight.data_ptr()
    tritonq.save(layer, tmp_path / "layer.safetensors")
    loaded = tritonq.load(tmp_path / "layer.safetensors")
    assert same_bits(loaded["weight"].dequantize(), layer.qtensor.dequantize()) and same_bits(loaded["bias"], layer.bias.detach())


def test_state_dict_is_the_same_in_every_layout():
    row = linear(layout="row")
    for name in ("frag", "ksplit"):
        other = linear(layout=name)
        assert other.qtensor.layout == name and other.weight.shape != row.weight.shape
        mine, theirs = row.state_dict(), other.state_dict()
        assert list(mine) == list(theirs) and same_tensors(mine.values(), theirs.values())
        other.load_state_dict(mine)
        assert other.qtensor.layout == name and same_bits(other.qtensor.dequantize(), row.qtensor.dequantize())


def test_a_state_that_does_not_fit_is_refused():
    layer = linear("nf4")
    before = layer.qtensor
    with pytest.raises(RuntimeError, match="Missing key.*weight_zero_point"):
        linear("uint4.g32").load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"weight: nf4 of shape \(40, 96\).*needs stored_scale"):
        layer.load_state_dict(dict(linear("nf4.g32").state_dict()))
    with pytest.raises(RuntimeError, match="weight: the state is of scheme fp4_bnb, this layer of nf4"):  # whose tensors look alike
        layer.load_state_dict(linear("fp4_bnb").state_dict())
    with pytest.raises(RuntimeError, match="needs packed"):
        layer.load_state_dict(nn.Linear(96, 40).state_dict() | {"weight_scale": layer.weight_scale})
    with pytest.raises(RuntimeError, match="Unexpected key.*weight_zero"):
        layer.load_state_dict(layer.state_dict() | {"weight_zeros": torch.zeros(1)})
    assert same_bits(layer.qtensor.dequantize(), before.dequantize())


@pytest.mark.parametrize("scheme", ["nf4", "nf4.dq", "uint4.g32.fz", "mxfp8", "nvfp4", "fp8_e4m3"])
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_a_cast_leaves_codes_and_scales_alone(scheme, cast):
    layer = linear(scheme)
    before = {name: tensor.clone() for name, tensor in layer.named_buffers()}
    getattr(layer, cast)()
    assert all(same_bits(before[name], tensor) for name, tensor in layer.named_buffers())
    assert layer.bias.dtype == {"half": torch.float16, "bfloat16": BF16, "double": torch.float64, "float": torch.float32}[cast]
    x = torch.randn(2, 96).to(layer.bias.dtype)
    assert layer(x).dtype == x.dtype


@pytest.mark.parametrize("scheme", ["nf4.dq", "mxfp8", "uint4.g32"])
def test_copies_and_pickles(scheme):
    layer, x = linear(scheme), torch.randn(2, 96)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert same_bits(other(x), layer(x)) and other.weight is other.qtensor.packed
        assert other.weight.data_ptr() != layer.weight.data_ptr() and str(other) == str(layer)


def test_meta_device_and_back():
    layer = linear().to("meta")
    assert layer.weight.is_meta and layer.qtensor.device.type == "meta"
    full = linear()
    layer.load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(2, 96)
    assert same_bits(layer(x), full(x))


def test_buffers_are_the_weight():
    layer = linear("uint4.g32")
    assert {name for name, _ in layer.named_buffers()} == {"weight", "weight_scale", "weight_zero_point"}
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.weight is layer.qtensor.packed


def test_gradients_go_to_x_and_bias_only():
    layer, x = linear(), torch.randn(3, 96, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.qtensor.dequantize().sum(0).expand(3, -1), rtol=1e-5, atol=1e-5)
    assert bool((layer.bias.grad == 3).all())
    with pytest.raises(RuntimeError, match="floating point"):
        layer.weight.requires_grad_()
    layer.weight_scale.requires_grad_()
    with pytest.raises(InvalidProblemError, match="quantized weight .nf4 40x96.* have no gradients; train adapters"):
        layer(x)


def test_a_weight_can_be_replaced_by_one_of_its_shape():
    layer = linear("nf4", layout="frag")
    other = tritonq.quantize(torch.randn(40, 96), "int8")
    layer.qtensor = other
    assert layer.qtensor.layout == "frag" and layer.scheme == other.scheme and same_bits(layer.qtensor.dequantize(), other.dequantize())
    with pytest.raises(InvalidProblemError, match=r"QTensor of shape \(40, 96\), got shape \(3, 96\)"):
        layer.qtensor = tritonq.quantize(torch.randn(3, 96), "int8")


def test_act_order():
    g_idx = torch.arange(96) % 3
    layer = QuantLinear.from_linear(nn.Linear(96, 40), "int4.g32", g_idx=g_idx)
    other = QuantLinear.from_linear(nn.Linear(96, 40), "int4.g32", g_idx=g_idx)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 96)
    assert same_bits(other(x), layer(x)) and "weight_column_order" in layer.state_dict()


@pytest.mark.parametrize("scheme", ["nf4", "int4.g32", "uint4.g32", "int8", "fp8_e4m3", "mxfp4", "int3.g40"])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_layers(scheme, bias):
    torch.manual_seed(0)
    layers = [QuantLinear.from_linear(nn.Linear(96, n, bias), scheme, layout=layout) for n, layout in ((40, "row"), (8, "row"), (8, "row"))]
    x = torch.randn(2, 3, 96)
    fused = QuantLinear.fused(layers)
    assert same_bits(fused.qtensor.dequantize(), torch.cat([layer.qtensor.dequantize() for layer in layers]))
    torch.testing.assert_close(fused(x), torch.cat([layer(x) for layer in layers], -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_gated_mlp(dtype):
    torch.manual_seed(0)
    linears = [nn.Linear(*sizes, bias=False, dtype=dtype) for sizes in ((64, 128), (64, 128), (128, 64))]
    gate, up, down = (QuantLinear.from_linear(one, "nf4") for one in linears)
    mlp, x = tritonq.nn.QuantGatedMLP(QuantLinear.fused([gate, up]), down), torch.randn(5, 64, dtype=dtype)
    tight = {torch.float32: 1e-5, BF16: 2e-2}[dtype]
    torch.testing.assert_close(mlp(x), down(F.silu(gate(x)) * up(x)), rtol=tight, atol=tight)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(mlp, fullgraph=True, backend="aot_eager")(x), mlp(x))


@pytest.mark.parametrize("make, text", [
    (lambda: QuantLinear.fused([linear("nf4"), linear("int8")]), "one scheme"), (lambda: QuantLinear.fused([]), "at least one part"),
    (lambda: QuantLinear.fused([linear("nf4"), linear("nf4", bias=False)]), "with and without bias"),
    (lambda: QuantLinear.fused([linear("nf4"), nn.Linear(96, 4)]), "got Linear; quantize it first"),
    (lambda: QuantLinear.fused([linear("int8.tensor"), QuantLinear.from_linear(nn.Linear(96, 4), "int8.tensor")]), "share one stored"),
    (lambda: tritonq.nn.QuantGatedMLP(linear("nf4"), linear("nf4")), "no bias"),
    (lambda: tritonq.nn.QuantGatedMLP(linear("nf4", bias=False), linear("nf4")), "twice the outputs"),
])  # fmt: skip
def test_what_cannot_be_fused_is_refused(make, text):
    with pytest.raises(InvalidProblemError, match=text):
        make()


@pytest.mark.parametrize("scheme", ["int8", "nf4.g32", "uint4.g16", "mxfp4", "nvfp4", "fp8_e4m3", "bf16", "int3.g24"])
def test_embedding(scheme):
    table = nn.Embedding(50, 48)
    quant = QuantEmbedding.from_embedding(table, scheme)
    ids = torch.tensor([[1, 5, 40, 17, 3], [2, 2, 7, 41, 45]])
    assert same_bits(quant(ids), quant.qtensor.dequantize()[ids])
    assert quant(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3, 48) and quant.half()(ids).dtype == torch.float16


@pytest.mark.parametrize("make, error, text", [
    (lambda: QuantEmbedding.from_embedding(nn.Embedding(8, 32), "int8.tensor"), UnsupportedError, "scales of its own"),
    (lambda: QuantEmbedding.from_embedding(nn.Embedding(8, 32), "nf4.dq"), UnsupportedError, "without dq"),
    (lambda: QuantEmbedding.from_embedding(nn.Embedding(8, 32, max_norm=1.0), "int8"), UnsupportedError, "max_norm"),
    (lambda: QuantEmbedding.from_embedding(nn.Linear(8, 8), "int8"), InvalidProblemError, "takes a torch.nn.Embedding"),
    (lambda: QuantLinear.from_linear(nn.Embedding(8, 8), "int8"), InvalidProblemError, "takes a torch.nn.Linear"),
    (lambda: QuantLinear(torch.zeros(2, 2)), InvalidProblemError, "must be a QTensor"),
    (lambda: linear(layout="tiles"), InvalidProblemError, "layout must be 'auto' or one of"),
    (lambda: linear("nf9"), InvalidProblemError, "unknown format 'nf9'"),
    (lambda: QuantLinear(linear().qtensor, torch.zeros(3)), InvalidProblemError, r"bias must have shape \(40,\)"),
    (lambda: tritonq.quantize_(nn.Linear(8, 8), "int8"), InvalidProblemError, "use from_linear"),
    (lambda: tritonq.quantize_(torch.zeros(8, 8), "int8"), InvalidProblemError, "takes a torch.nn.Module"),
])  # fmt: skip
def test_refusals(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_adapters_learn_around_a_frozen_weight():
    class Adapted(nn.Module):
        def __init__(self, base: QuantLinear, rank: int = 4):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down, self.up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    torch.manual_seed(0)
    model = nn.Sequential(Adapted(linear("nf4", bias=False)), nn.GELU(), Adapted(QuantLinear.from_linear(nn.Linear(40, 8), "int4.g8")))
    codes = [m.weight.clone() for m in model.modules() if isinstance(m, QuantLinear)]
    x, y = torch.randn(64, 96), torch.randn(64, 8)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert same_tensors(codes, [m.weight for m in model.modules() if isinstance(m, QuantLinear)])


@pytest.mark.parametrize("wrong, text", [
    (torch.tensor([-1]), "rows 0 to 9 exist, got -1"), (torch.tensor([10]), "got 10 to 10"), (torch.tensor([True]), "torch.bool"),
    (torch.tensor([1], dtype=torch.int16), "int16"), ([1], "list"), (torch.tensor([[1]]), r"\[1, 1\]"),
])  # fmt: skip
def test_rows_that_do_not_exist(wrong, text):
    with pytest.raises(InvalidProblemError, match=text):
        tritonq.quantize(torch.randn(10, 64), "int8").rows(wrong)


def test_buffers_that_were_swapped_are_what_is_computed_with():
    layer, x = linear("int8"), torch.randn(2, 96)
    q = tritonq.quantize(torch.randn(40, 96), "int8")
    got = torch.func.functional_call(layer, {"weight": q.packed, "weight_scale": q.scale}, (x,))
    assert same_bits(got, tritonq.matmul(x, q, layer.bias)) and not same_bits(got, layer(x))


@pytest.mark.parametrize("scheme, field", [("nvfp4", "second_scale"), ("nf4.dq", "second_scale"), ("nf4.dq", "scale_offset"),
                                           ("uint4.g32", "zero_point")])  # fmt: skip
def test_any_buffer_can_be_swapped(scheme, field):
    layer, x = linear(scheme), torch.randn(2, 96)
    other = getattr(layer.qtensor, field) + 1
    got = torch.func.functional_call(layer, {f"weight_{field}": other}, (x,))
    assert same_bits(got, tritonq.matmul(x, replace(layer.qtensor, **{field: other}), layer.bias)) and not same_bits(got, layer(x))


def test_act_order_can_be_swapped():
    layer = QuantLinear(tritonq.quantize(torch.randn(24, 64), "int4.g16", g_idx=torch.arange(64) % 4))
    other, x = layer.weight_column_order.flip(0), torch.randn(2, 64)
    got = torch.func.functional_call(layer, {"weight_column_order": other}, (x,))
    assert same_bits(got, tritonq.matmul(x, replace(layer.qtensor, column_order=other))) and not same_bits(got, layer(x))


@pytest.mark.parametrize("scheme, layout", [("int8", "row"), ("nvfp4", "row"), ("nf4.dq", "frag"), ("nf4", "ksplit")])
def test_buffers_that_were_assigned_are_the_weight_everywhere(scheme, layout):
    """They were what forward used, while state dicts, copies and casts held the old weight."""
    layer, x = linear(scheme, layout=layout), torch.randn(2, 96)
    q = tritonq.quantize(torch.randn(40, 96), scheme).relayout(layout)
    other = QuantLinear(q, layer.bias, layout)
    for name, tensor in other.named_buffers():
        setattr(layer, name, tensor)
    assert layer.qtensor is layer.quantized["weight"] is q
    assert same_tensors(layer.state_dict().values(), other.state_dict().values())
    same = linear(scheme, layout=layout)
    same.load_state_dict(layer.state_dict())
    copies = [layer, same, copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to_linear(), layer.float()]
    assert all(same_bits(one(x), other(x)) if isinstance(one, QuantLinear) else torch.allclose(one(x), other(x)) for one in copies)
    assert layer.qtensor.layout == layout


def test_assigned_buffers_of_experts_are_the_weights():
    one, other = (QuantExperts.from_weights(torch.randn(2, 64, 32), torch.randn(2, 32, 32), "nf4.g32") for _ in range(2))
    for name, tensor in other.named_buffers():
        setattr(one, name, tensor)
    assert same_tensors(copy.deepcopy(one).state_dict().values(), other.state_dict().values())
    assert same_bits(one.weight("down_proj"), other.weight("down_proj"))


def test_export_of_a_layer_with_act_order():
    layer = QuantLinear(tritonq.quantize(torch.randn(24, 64), "int4.g16", g_idx=torch.arange(64) % 4), torch.nn.Parameter(torch.randn(24)))
    x = torch.randn(2, 64)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_a_copy_holds_its_own_weight():
    layer = linear("nf4")
    other, state = copy.copy(layer), layer.state_dict()
    other.qtensor = tritonq.quantize(torch.randn(40, 96), "nf4")
    assert same_tensors(layer.state_dict().values(), state.values()) and layer.quantized["weight"] is layer.qtensor


def test_a_bias_that_is_computed():
    layer, x = QuantLinear.from_linear(torch.nn.Linear(64, 8), "int4.g32"), torch.randn(2, 64)
    plain, bias = layer(x), layer.bias.detach().clone()
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Softplus())
    torch.testing.assert_close(layer(x), plain - bias + F.softplus(bias))
