"""QuantLinear, QuantEmbedding and quantize_ as parts of ordinary models."""
import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonq
from tests.support.schemes import SCHEMES, same_bits
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.nn import QuantEmbedding, QuantLinear

BF16 = torch.bfloat16


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for t in self.qkv(x).chunk(3, -1))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-2, -3).flatten(-2))


class Decoder(nn.Module):
    """A small language model with a tied head."""

    def __init__(self, width: int = 64, vocabulary: int = 96, layers: int = 2):
        super().__init__()
        self.embed_tokens, self.lm_head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(width), "attention": Attention(width, 4), "post_norm": nn.LayerNorm(width),
                           "up": nn.Linear(width, 2 * width), "down": nn.Linear(2 * width, width)}) for _ in range(layers)
        )  # fmt: skip

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = x + layer["attention"](layer["norm"](x))
            x = x + layer["down"](F.gelu(layer["up"](layer["post_norm"](x))))
        return self.lm_head(x)


def decoder(dtype=torch.float32) -> Decoder:
    torch.manual_seed(0)
    return Decoder().to(dtype).eval()


def linear(scheme="nf4", dtype=torch.float32, bias=True, **more) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_linear(nn.Linear(96, 40, bias, dtype=dtype), scheme, **more)


def dequantized(model: nn.Module) -> nn.Module:
    """A copy with ordinary modules of the decoded weights."""
    model = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            model.set_submodule(path, module.to_linear())
        elif isinstance(module, QuantEmbedding):
            model.set_submodule(path, nn.Embedding.from_pretrained(module.qtensor.dequantize()))
    return model


IDS = torch.tensor([[1, 5, 90, 17, 3], [2, 2, 7, 41, 95]])


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
        assert list(mine) == list(theirs) and all(map(same_bits, mine.values(), theirs.values()))
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
    assert same_bits(quant(IDS % 50), quant.qtensor.dequantize()[IDS % 50])
    assert quant(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3, 48) and quant.half()(IDS % 50).dtype == torch.float16


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
    (lambda: tritonq.quantize_(decoder(), {"*.gate.*": "int8"}), InvalidProblemError, "matches none"),
])  # fmt: skip
def test_refusals(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("scheme", ["nf4.g32", "int4.g32", "int8", "fp8_e4m3"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_quantize_gives_the_logits_of_the_decoded_model(scheme, dtype):
    model = decoder(dtype)
    report = tritonq.quantize_(model, scheme)
    assert len(report.quantized) == 8 and all(type(m) is not nn.Linear or n == "lm_head" for n, m in model.named_modules())
    assert {one.name: one.reason for one in report.kept if len(one.shape) > 1} == {
        "embed_tokens.weight": "embedding", "lm_head.weight": "tied to the embedding embed_tokens.weight"}  # fmt: skip
    ordinary = dequantized(model)
    exact = copy.deepcopy(ordinary).double()(IDS)
    ours, theirs = ((m(IDS).double() - exact).norm() for m in (model, ordinary))
    assert ours < 1.5 * theirs, "as near to the decoded model in float64 as that model itself is in its own dtype"


def test_patterns_filter_include_and_exclude():
    model = decoder()
    report = tritonq.quantize_(model, {"*.up.*": "int8", "*attention*": "nf4.g32"})
    schemes = {one.name: one.scheme for one in report.quantized}
    assert set(schemes.values()) == {"int8", "nf4.g32"} and schemes["layers.1.up.weight"] == "int8"
    assert any(one.name == "layers.0.down.weight" and "pattern" in one.reason for one in report.kept)
    model = decoder()
    report = tritonq.quantize_(model, "int8", lambda module, name: name.endswith("down"), exclude=["layers.9*", "layers.1*"][1:])
    assert [one.name for one in report.quantized] == ["layers.0.down.weight", "layers.1.down.weight"], "the filter has the last word"
    model = decoder()
    tritonq.quantize_(model, "int8", include=["embed_tokens.weight"], exclude=["layers*"])
    assert type(model.embed_tokens) is QuantEmbedding and type(model.lm_head) is QuantLinear
    assert model.embed_tokens.weight is model.lm_head.weight, "tied: one set of codes"
    torch.testing.assert_close(model(IDS), dequantized(model)(IDS), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_replaced_is_named():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(4, 64, 64))

    model = nn.ModuleDict({"experts": Experts(), "attention": nn.MultiheadAttention(64, 4), "head": nn.Linear(64, 64)})
    with pytest.warns(UserWarning, match=r"experts.gate_up_proj.*attention.in_proj_weight.*attention.out_proj.weight"):
        report = tritonq.quantize_(model, "int8")
    reasons = {one.name: one.reason for one in report.kept}
    assert "held by Experts" in reasons["experts.gate_up_proj"] and "held by Experts" in str(report)
    assert [one.name for one in report.quantized] == ["head.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tritonq.quantize_(decoder(), "int8")


def test_nothing_is_changed_by_a_request_that_is_refused():
    model = decoder()
    with pytest.raises(InvalidProblemError):
        tritonq.quantize_(model, {"*": "int8", "*.nothing": "nf4"})
    assert not any(isinstance(m, QuantLinear) for m in model.modules())


def test_a_model_compiles_whole_and_saves_and_loads(tmp_path):
    model = decoder()
    tritonq.quantize_(model, "nf4.g32", include=["embed_tokens.weight"])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS), model(IDS), rtol=1e-5, atol=1e-5)
    tritonq.save(model, tmp_path / "model.safetensors")
    other = decoder()
    tritonq.quantize_(other, "nf4.g32", include=["embed_tokens.weight"])
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    import safetensors.torch

    other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert same_bits(other(IDS), model(IDS))


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
    assert all(map(same_bits, codes, [m.weight for m in model.modules() if isinstance(m, QuantLinear)]))


class Shared(nn.Module):
    """One Linear in three places."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)
        self.b, self.c = self.a, nn.Sequential(self.a)


def test_a_module_in_several_places_is_replaced_in_all():
    model = Shared()
    assert [one.name for one in tritonq.quantize_(model, "int4.g32").quantized] == ["a.weight"]
    assert type(model.a) is QuantLinear and model.a is model.b is model.c[0]
    model = Shared()
    tritonq.nn.prepare_qat_(model, "int4.g32")
    assert type(model.a) is tritonq.nn.FakeQuantLinear and model.a is model.b is model.c[0]
    assert tritonq.nn.convert_qat_(model) == 1 and type(model.a) is QuantLinear and model.a is model.b is model.c[0]


class Reads(nn.Module):
    """Its code reads the weight of one child, and makes that of another."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.out = (nn.Linear(64, 64) for _ in range(3))
        self.out.weight.data.zero_()

    @property
    def dtype(self):
        return self.down.weight.dtype

    def forward(self, x):
        return self.out(self.down(self.up(x).to(self.dtype)).to(self.up.weight.device))


def test_layers_whose_weight_the_model_reads_are_kept():
    model, x = nn.ModuleDict({"block": Reads()}), torch.randn(2, 64)
    report = tritonq.quantize_(model, "int8")
    assert [one.name for one in report.quantized] == ["block.up.weight", "block.out.weight"]
    assert "Reads reads its weight itself" in str(report) and model["block"](x).shape == x.shape
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0).eval()
    with pytest.warns(UserWarning, match="no Linear holds them"):
        assert not tritonq.quantize_(layer, "int8").quantized
    with torch.no_grad():
        layer(torch.randn(2, 5, 64))
    assert tritonq.quantize_(nn.Sequential(Reads()), "int8", include=["0.down.weight"]).quantized[1].name == "0.down.weight"
    assert len(tritonq.quantize_(nn.Sequential(Reads()), "int8", lambda *_: True).quantized) == 3
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model._keep_in_fp32_modules = ["1"]
    assert [one.name for one in tritonq.quantize_(model, "int8").quantized] == ["0.weight"]


@pytest.mark.parametrize("wrong, text", [
    (torch.tensor([-1]), "rows 0 to 9 exist, got -1"), (torch.tensor([10]), "got 10 to 10"), (torch.tensor([True]), "torch.bool"),
    (torch.tensor([1], dtype=torch.int16), "int16"), ([1], "list"), (torch.tensor([[1]]), r"\[1, 1\]"),
])  # fmt: skip
def test_rows_that_do_not_exist(wrong, text):
    with pytest.raises(InvalidProblemError, match=text):
        tritonq.quantize(torch.randn(10, 64), "int8").rows(wrong)


def test_hooks_stay():
    model, calls = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), []
    before = model[0].register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True)
    model[0].register_forward_hook(lambda module, args, out: calls.append(type(module).__name__))
    tritonq.quantize_(model, "int8")
    model(torch.randn(2, 64))
    before.remove()
    model(torch.randn(2, 64))
    assert calls == ["before", "QuantLinear", "QuantLinear"]
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].register_forward_hook(lambda module, args, out: 2 * out)
    tritonq.nn.prepare_qat_(model, "int8")
    x = torch.randn(2, 64)
    want = model(x)
    tritonq.nn.convert_qat_(model)
    torch.testing.assert_close(model(x), want)


def test_a_head_tied_to_a_subclass_of_embedding_is_kept():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 8 * super().forward(ids)

    model = nn.ModuleDict({"table": Scaled(96, 64), "head": nn.Linear(64, 96, bias=False), "other": nn.Linear(64, 64)})
    model["head"].weight = model["table"].weight
    report = tritonq.quantize_(model, "int8")
    assert [one.name for one in report.quantized] == ["other.weight"]
    sizes = {one.name: one.bytes_before for one in report.decided}
    assert sizes["table.weight"] == 4 * 96 * 64 and sizes["head.weight"] == 0, "tied: counted once"


def test_buffers_that_were_swapped_are_what_is_computed_with():
    layer, x = linear("int8"), torch.randn(2, 96)
    q = tritonq.quantize(torch.randn(40, 96), "int8")
    got = torch.func.functional_call(layer, {"weight": q.packed, "weight_scale": q.scale}, (x,))
    assert same_bits(got, tritonq.matmul(x, q, layer.bias)) and not same_bits(got, layer(x))


def test_export_of_a_layer_with_act_order():
    layer = QuantLinear(tritonq.quantize(torch.randn(24, 64), "int4.g16", g_idx=torch.arange(64) % 4), torch.nn.Parameter(torch.randn(24)))
    x = torch.randn(2, 64)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_globs_are_a_list(option):
    with pytest.raises(InvalidProblemError, match=f"{option} takes globs in a list, got the text '0.weight'"):
        tritonq.quantize_(nn.Sequential(nn.Linear(64, 64)), "int8", **{option: "0.weight"})


def test_a_copy_holds_its_own_weight():
    layer = linear("nf4")
    other, state = copy.copy(layer), layer.state_dict()
    other.qtensor = tritonq.quantize(torch.randn(40, 96), "nf4")
    assert all(map(same_bits, layer.state_dict().values(), state.values())) and layer.quantized["weight"] is layer.qtensor
