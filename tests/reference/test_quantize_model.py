"""quantize_: which layers of a model are replaced, which are kept and why, and what the model computes then."""
import copy
import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonq
from tests.support.schemes import same_bits, same_tensors
from tritonq.checkpoints.rules import keep_reason
from tritonq.errors import InvalidProblemError
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


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit.embeddings.cls_token", "learned token or state"),
        ("decoder.mask_token", "learned token or state"),
        ("layers.0.mixer.A_log", "learned token or state"),
        ("layers.0.token.weight", None),
    ],
)
def test_learned_tokens_and_states_are_kept(name, reason):
    assert keep_reason(name, (64, 768)) == reason


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_globs_are_a_list(option):
    with pytest.raises(InvalidProblemError, match=f"{option} takes globs in a list, got the text '0.weight'"):
        tritonq.quantize_(nn.Sequential(nn.Linear(64, 64)), "int8", **{option: "0.weight"})


@pytest.mark.parametrize(
    ("scheme", "options", "text"),
    [
        ("int4", {"filter_fn": 5}, r"filter_fn must be a function \(module, name\) -> bool or None, got int 5"),
        ({3: "int4"}, {}, "a dict of schemes takes globs, text such as '.*', got int 3"),
        ("int4", {"include": 5}, "include takes globs, text such as '.*', got int 5"),
        ("int4", {"exclude": [None]}, "exclude takes globs, text such as '.*', got NoneType None"),
    ],
)
def test_arguments_of_another_type(scheme, options, text):
    with pytest.raises(InvalidProblemError, match=text):
        tritonq.quantize_(nn.Sequential(nn.Linear(64, 64)), scheme, **options)


def test_a_glob_that_matches_nothing():
    with pytest.raises(InvalidProblemError, match="matches none"):
        tritonq.quantize_(decoder(), {"*.gate.*": "int8"})



def tied(scheme="nf4.g32") -> nn.ModuleDict:
    model = nn.ModuleDict({"head": nn.Linear(64, 40, bias=False), "embedding": nn.Embedding(40, 64), "inner": nn.Linear(64, 64)})
    model.head.weight = model.embedding.weight
    tritonq.quantize_(model, scheme, include=["embedding.weight"])
    assert are_tied(model)
    return model


def are_tied(model) -> bool:
    return model.head.qtensor is model.embedding.qtensor and model.head.weight is model.embedding.weight is model.head.qtensor.packed


@pytest.mark.parametrize("moved", [
    lambda model: model.to("meta"), lambda model: model.to_empty(device="cpu"), lambda model: model._apply(torch.clone), nn.Module.half,
    lambda model: model.to("cpu"), lambda model: nn.ModuleList([model, nn.Linear(2, 2)]).to("meta")[0]])  # fmt: skip
def test_tied_codes_stay_tied_where_they_are_moved(moved):
    model = tied()
    before, alone = weakref.ref(model.head.qtensor), tied()
    alone.head.qtensor = tritonq.quantize(torch.randn(40, 64), "nf4.g32")
    assert are_tied(moved(model)) and not are_tied(moved(alone))
    gc.collect()
    assert before() is None  # nothing keeps what was moved


@pytest.mark.parametrize("scheme", ["nf4.g32", "mxfp8", "fp8_e4m3.channel", "uint4.g32"])
@pytest.mark.parametrize("left_out", ["", "embedding", "head"])
def test_tied_codes_stay_tied_where_they_are_loaded(scheme, left_out):
    """As torch's parameters do, also where a file names one of the two alone."""
    model, other = tied(scheme), tied(scheme)
    held = model.head.qtensor
    state = {name: tensor for name, tensor in other.state_dict().items() if not left_out or not name.startswith(left_out)}
    model.load_state_dict(state, strict=not left_out)
    ids = torch.arange(40)
    assert are_tied(model) and model.head.qtensor is held and same_bits(model.embedding(ids), other.embedding(ids))
    assert all(mine.data_ptr() != theirs.data_ptr() for mine, theirs in zip(model.buffers(), other.buffers(), strict=True))


def test_loading_over_inference_tensors_and_assigning():
    w = torch.randn(40, 64)
    with torch.inference_mode():
        layer = QuantLinear(tritonq.quantize(torch.randn(40, 64), "mxfp8"))
    other, held = QuantLinear(tritonq.quantize(w, "mxfp8")), layer.qtensor
    layer.load_state_dict(other.state_dict())
    assert same_tensors(layer.qtensor.flat(), other.qtensor.flat()) and not same_bits(held.packed, other.weight)
    assert layer.weight.data_ptr() != other.weight.data_ptr()
    layer.load_state_dict(other.state_dict(), assign=True)
    assert layer.weight.data_ptr() == other.weight.data_ptr()
