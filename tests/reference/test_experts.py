"""Stacks of quantized matrices, the grouped product, QuantExperts, and experts of Transformers models."""
import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonq
from tests.support.schemes import same_bits, same_tensors
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.nn import QuantExperts, QuantLinear
from tritonq.nn.experts import quantize_stack

pytest.importorskip("transformers", minversion="5.19")
from tests.support.tiny_models import load, logits, make  # noqa: E402
from tritonq.integrations.transformers import TritonQConfig  # noqa: E402

BF16 = torch.bfloat16
SCHEMES = ["nf4", "int4.g32", "uint4.g32", "uint4.g32.fz", "int8", "fp8_e4m3", "mxfp4", "int3.g24", "bf16", "int8.b16x16"]
REFUSED = ["nf4.dq", "nvfp4", "int8.tensor", "int8.column", "int8.b32x32"]


def weights(experts=4, n=48, k=96, dtype=torch.float32):
    return torch.randn(experts, n, k, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout, scheme", [(layout, scheme) for layout in ("row", "frag", "ksplit") for scheme in SCHEMES
                                            if layout == "row" or scheme != "bf16"])  # fmt: skip
def test_a_stack_is_its_matrices(layout, scheme):
    w = weights()
    stack = quantize_stack(w, scheme)
    turned = stack.relayout(layout)
    assert len(turned) == 4 and turned.layout == layout and turned.shape == (4, 48, 96)
    for one, expert in zip(turned, w, strict=True):
        assert same_bits(one.dequantize(), tritonq.quantize(expert, scheme).dequantize()) and one.layout == layout
        assert one.packed.untyped_storage().data_ptr() == turned.packed.untyped_storage().data_ptr(), "a view"
    back = turned.relayout("row")
    assert same_tensors(back.flat(), stack.flat()) and same_tensors(back.matrix().flat(), stack.matrix().flat())
    assert tritonq.QStack.from_flat(turned.flat(), turned.form) is turned


@pytest.mark.parametrize("scheme", REFUSED)
def test_scales_that_experts_would_share_are_refused(scheme):
    with pytest.raises(UnsupportedError, match="group size or 'channel'|blocks of 32 rows"):
        quantize_stack(weights(), scheme)
    with pytest.raises(UnsupportedError):
        tritonq.QStack.of(tritonq.quantize(weights().flatten(0, 1), scheme), 4)


@pytest.mark.parametrize("make, text", [
    (lambda q: tritonq.QStack.of(q, 5), "192 rows cannot be 5 matrices"),
    (lambda q: tritonq.grouped_matmul(torch.ones(3, 96), tritonq.QStack.of(q, 4), torch.zeros(3, dtype=torch.int32)), r"ends int32 \[4\]"),
    (lambda q: tritonq.grouped_matmul(torch.ones(3, 96), tritonq.QStack.of(q, 4), torch.zeros(4, dtype=torch.int64)), "torch.int64"),
    (lambda q: tritonq.grouped_matmul(torch.ones(3, 96), tritonq.QStack.of(q, 4), torch.tensor([2, 1, 3, 3]).int()), "ends must rise"),
    (lambda q: tritonq.grouped_matmul(torch.ones(3, 96), tritonq.QStack.of(q, 4), torch.tensor([0, 1, 3, 4]).int()), "at most the 3 rows"),
    (lambda q: tritonq.grouped_matmul(torch.ones(3, 95), tritonq.QStack.of(q, 4), torch.tensor([0, 1, 3, 3]).int()), "96"),
    (lambda q: tritonq.grouped_matmul(torch.ones(3, 96), q, torch.tensor([0, 1, 3, 3]).int()), "experts must be a QStack"),
])  # fmt: skip
def test_bad_requests(make, text):
    with pytest.raises(InvalidProblemError, match=text):
        make(tritonq.quantize(weights().flatten(0, 1), "int8"))


ENDS = torch.tensor([2, 2, 7, 9], dtype=torch.int32)


@pytest.mark.parametrize("activation", [None, "silu", "swiglu"])
@pytest.mark.parametrize("layout", ["row", "frag"])
def test_grouped_product_and_its_gradient(activation, layout):
    stack = quantize_stack(weights(), "nf4").relayout(layout)
    x = torch.randn(11, 96, requires_grad=True)
    y = tritonq.grouped_matmul(x, stack, ENDS, activation)
    parts = [tritonq.matmul(rows, q, activation=activation) for rows, q in zip(x[:9].split([2, 0, 5, 2]), stack, strict=True)]
    want = torch.cat([*parts, torch.zeros(2, y.shape[1])])
    assert same_bits(y.detach(), want.detach())
    seed = torch.randn_like(y)
    (ours,), (theirs,) = torch.autograd.grad(y, x, seed), torch.autograd.grad(want, x, seed)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert bool((ours[9:] == 0).all())


def test_gradcheck_and_opcheck():
    stack = quantize_stack(weights(3, 8, 16).double(), "uint4.g8")
    ends = torch.tensor([1, 1, 3], dtype=torch.int32)
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    for activation in (None, "swiglu"):
        assert torch.autograd.gradcheck(lambda x: tritonq.grouped_matmul(x, stack, ends, activation), x)  # noqa: B023
        torch.library.opcheck(torch.ops.tritonq.grouped_matmul.default, (x, *stack.operands, ends, activation))


class Plain(nn.Module):
    """What QuantExperts computes, one token after another."""

    def __init__(self, experts: QuantExperts):
        super().__init__()
        self.gate_up, self.down, self.act = experts.weight("gate_up_proj"), experts.weight("down_proj"), experts.act_fn

    def forward(self, x, index, weight):
        rows = []
        for token, chosen, shares in zip(x, index, weight, strict=True):
            total = torch.zeros_like(token)
            for e, share in zip(chosen.tolist(), shares, strict=True):
                if e < len(self.gate_up):
                    gate, up = (self.gate_up[e] @ token).chunk(2)
                    total = total + share * (self.down[e] @ (self.act(gate) * up))
            rows.append(total)
        return torch.stack(rows)


def experts(scheme="int4.g32", act=F.silu, dtype=torch.float32, **more):
    return QuantExperts.from_weights(weights(4, 128, 32, dtype), weights(4, 32, 64, dtype), scheme, act, **more)


INDEX = torch.tensor([[0, 3], [3, 1], [0, 1], [3, 0], [4, 3]])  # expert 2 has no token; 4: none
SHARES = torch.rand(5, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scheme", ["nf4", "int4.g32", "int8", "fp8_e4m3", ("mxfp4", "int8")])
@pytest.mark.parametrize("act", [F.silu, nn.SiLU(), F.gelu])
def test_experts(scheme, act):
    layer = experts(scheme, act)
    x = torch.randn(5, 32, requires_grad=True)
    shares = SHARES.clone().requires_grad_()
    ours, theirs = layer(x, INDEX, shares), Plain(layer)(x, INDEX, shares)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    for a, b in zip(torch.autograd.grad(ours.sum(), (x, shares)), torch.autograd.grad(theirs.sum(), (x, shares)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_experts_are_a_module(tmp_path):
    layer, x = experts("uint4.g32"), torch.randn(5, 32)
    y = layer(x, INDEX, SHARES)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    other = experts("uint4.g32")
    other.load_state_dict({name: torch.zeros_like(t) for name, t in layer.state_dict().items()})
    other.load_state_dict(layer.state_dict())
    empty = experts("uint4.g32").to("meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    turned = experts("uint4.g32", layout="frag")
    assert turned.gate_up_proj.shape != layer.gate_up_proj.shape
    assert same_tensors(turned.state_dict().values(), layer.state_dict().values())
    for one in (copy.deepcopy(layer), torch.load(file, weights_only=False), other, empty, copy.deepcopy(layer).half().float()):
        assert same_bits(one(x, INDEX, SHARES), y) and str(one) == str(layer)
    assert set(layer.state_dict()) == {f"{n}{s}" for n in ("gate_up_proj", "down_proj") for s in ("", "_scale", "_zero_point")}
    tritonq.save(nn.ModuleDict({"experts": layer}), tmp_path / "m.safetensors")
    checkpoint = tritonq.checkpoints.open(tmp_path / "m.safetensors")
    assert checkpoint.shape("experts.gate_up_proj") == (4, 128, 32)
    assert same_bits(checkpoint["experts.gate_up_proj"].dequantize().view(4, 128, 32), layer.weight("gate_up_proj"))
    assert not [p for p in layer.parameters()]


def test_wrong_shapes_are_refused():
    with pytest.raises(InvalidProblemError, match=r"gate_up_proj must be \[E, 2 I, H\]"):
        QuantExperts.from_weights(weights(4, 128, 32), weights(4, 32, 128), "int8")
    with pytest.raises(InvalidProblemError, match=r"must be a weight \[E, N, K\]"):
        QuantExperts.from_weights(weights(4, 128, 32)[0], weights(4, 32, 64), "int8")
    with pytest.raises(UnsupportedError, match="took the place of no module"):
        experts().to_experts()


def found(model) -> list[QuantExperts]:
    return [module for module in model.modules() if isinstance(module, QuantExperts)]


@pytest.mark.parametrize("scheme", ["nf4", "int4.g32", "int8", "fp8_e4m3"])
def test_quantize_replaces_them_and_gives_the_logits_of_the_decoded_model(scheme):
    model = make("qwen3 moe")
    report = tritonq.quantize_(model, scheme)
    assert len(found(model)) == 2 and sum("experts" in one.name for one in report.quantized) == 4
    assert {one.reason for one in report.kept if one.name.endswith("gate.weight")} == {"expert router"}
    ordinary = copy.deepcopy(model)
    for path, module in list(ordinary.named_modules()):
        if isinstance(module, QuantLinear):
            ordinary.set_submodule(path, module.to_linear())
        elif isinstance(module, QuantExperts):
            ordinary.set_submodule(path, module.to_experts())
    assert type(ordinary.model.layers[0].mlp.experts).__name__ == "Qwen3MoeExperts"
    torch.testing.assert_close(logits(model), logits(ordinary), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled), logits(model), rtol=1e-4, atol=1e-4)


def test_both_weights_of_experts_or_none():
    model = make("qwen3 moe")
    report = tritonq.quantize_(model, {"*gate_up_proj": "nf4", "*down_proj": "int8"}, exclude=["*layers.1.mlp.experts.down_proj"])
    (layer,) = found(model)
    assert {name: str(q.scheme) for name, q in layer.quantized.items()} == {"gate_up_proj": "nf4", "down_proj": "int8"}
    reasons = {one.name: one.reason for one in report.kept}
    assert "other weight of these experts is kept (excluded" in reasons["model.layers.1.mlp.experts.gate_up_proj"]
    with pytest.warns(UserWarning, match="experts.gate_up_proj"):
        report = tritonq.quantize_(model := make("qwen3 moe"), "nvfp4")
    reasons = {one.name: one.reason for one in report.kept}
    assert not found(model) and "experts need their own" in reasons["model.layers.0.mlp.experts.down_proj"]


@pytest.mark.parametrize("scheme, dtype", [("nf4.g32", torch.float32), ("uint4.g32", BF16), ("fp8_e4m3", BF16)])
def test_transformers_quantizes_saves_and_loads_them(tmp_path, scheme, dtype):
    make("qwen3 moe", dtype).save_pretrained(tmp_path / "full")
    model = load(tmp_path / "full", quantization_config=TritonQConfig(scheme), dtype=dtype)
    want = load(tmp_path / "full", dtype=dtype)
    tritonq.quantize_(want, scheme)
    assert len(found(model)) == 2 and same_bits(logits(model), logits(want))
    model.save_pretrained(tmp_path / "quantized")
    assert same_bits(logits(load(tmp_path / "quantized", dtype=dtype)), logits(model))
    tritonq.checkpoints.quantize_checkpoint(tmp_path / "full", tmp_path / "job", scheme)
    assert same_bits(logits(load(tmp_path / "job", dtype=dtype)), logits(model))
    names = {name for folder in ("quantized", "job") for name in tritonq.checkpoints.open(tmp_path / folder).records}
    assert names == set(tritonq.checkpoints.open(tmp_path / "job").records) and any("experts.3.up_proj.weight" in name for name in names)
    torch.testing.assert_close(logits(model.dequantize()), logits(want), rtol=2e-2, atol=2e-2)


def test_kept_experts_stay_and_mixed_ones_are_named(tmp_path):
    make("qwen3 moe").save_pretrained(tmp_path / "full")
    model = load(tmp_path / "full", quantization_config=TritonQConfig("int8", exclude=["*layers.0.mlp.experts*"]))
    assert len(found(model)) == 1
    model.save_pretrained(tmp_path / "quantized")
    assert same_bits(logits(load(tmp_path / "quantized")), logits(model))
    tritonq.checkpoints.quantize_checkpoint(tmp_path / "full", tmp_path / "mixed", {"*experts.2.*": "nf4.g32", "*": "int8"})
    with pytest.raises(UnsupportedError, match=r"experts.gate_up_proj: holds .*experts.0.*int8.*experts.2.*nf4"):
        load(tmp_path / "mixed")


def test_a_file_may_hold_all_rows_of_all_experts_as_one_matrix(tmp_path):
    """Where a model has no converter that takes experts apart, its files hold the 3-D weight as ``tritonq quantize`` writes it."""
    import safetensors.torch

    make("qwen3 moe").save_pretrained(tmp_path / "full")
    model = load(tmp_path / "full", quantization_config=TritonQConfig("uint4.g32"))
    model._weight_conversions = None
    model.save_pretrained(tmp_path / "apart")
    tensors = safetensors.torch.load_file(tmp_path / "apart" / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if "experts" not in name}
    for i, one in enumerate(found(model)):
        for name, q in one.quantized.items():
            path = f"model.layers.{i}.mlp.experts.{name}"
            kept |= {f"{path}{suffix}": t for suffix, t in zip(("", "_scale", "_zero_point"), q.matrix().flat(), strict=True)}
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.json").write_text((tmp_path / "apart" / "config.json").read_text())
    safetensors.torch.save_file(kept, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    assert kept["model.layers.0.mlp.experts.gate_up_proj"].shape == (4 * 64, 32)
    assert same_bits(logits(load(tmp_path / "whole")), logits(model))


def test_tokens_without_experts_and_none_at_all():
    experts = QuantExperts.from_weights(weights(4, 64, 64), weights(4, 64, 32), "int8")
    assert experts(torch.randn(0, 64), torch.zeros(0, 2, dtype=torch.int64), torch.ones(0, 2)).shape == (0, 64)
    x = torch.randn(3, 64)
    assert not experts(x, torch.zeros(3, 0, dtype=torch.int64), torch.ones(3, 0)).any()
    assert not experts(x, torch.full((3, 2), -1), torch.ones(3, 2)).any() and not experts(x, torch.full((3, 2), 4), torch.ones(3, 2)).any()
    index, share = torch.tensor([[0, 3], [1, 2], [3, 1]]), torch.rand(3, 2, dtype=torch.float64)
    experts = QuantExperts.from_weights(weights(4, 64, 64).double(), weights(4, 64, 32).double(), "int8")
    torch.testing.assert_close(experts(x.double(), index, share), Plain(experts)(x.double(), index, share), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scheme", ["int4.g32", "mxfp4", "int4.g32.se4m3"])
def test_pickles_hold_the_tensors_once(scheme):
    experts = QuantExperts.from_weights(weights(4, 64, 64), weights(4, 64, 32), scheme)
    before = len(pickle.dumps(experts))
    x, index, share = torch.randn(3, 64), torch.tensor([[0, 3], [1, 2], [3, 1]]), torch.rand(3, 2)
    want = experts(x, index, share)
    stored = pickle.dumps(experts)
    assert len(stored) == before and same_bits(pickle.loads(stored)(x, index, share), want)
    assert same_bits(copy.deepcopy(experts)(x, index, share), want)


def test_refused_arguments():
    q = tritonq.quantize(torch.randn(8, 64), "int8")
    for count in ("2", 2.0, True, 0, 3):
        with pytest.raises(InvalidProblemError, match="8 rows cannot be"):
            tritonq.QStack.of(q, count)
    with pytest.raises(InvalidProblemError, match="takes a QTensor, got Tensor"):
        tritonq.QStack.of(torch.randn(8, 64), 2)
    stack = tritonq.QStack.of(q, 2)
    with pytest.raises(InvalidProblemError, match="must name a torch device"):
        stack.to("gpu9")
    assert tritonq.QStack.of(tritonq.quantize(torch.randn(8, 0), "int8"), 2).matrix().shape == (8, 0)
    x, ends = torch.randn(3, 64), torch.zeros(2, dtype=torch.int32)
    for wrong, text in (([1], "x must be a Tensor"), (None, "x must be a Tensor"), (x.to_sparse(), "sparse"), (x.int(), "int32"),
                        (x[:, :9], "K=64")):  # fmt: skip
        with pytest.raises(InvalidProblemError, match=text):
            tritonq.grouped_matmul(wrong, stack, ends)
    with pytest.raises(InvalidProblemError, match="ends must be a Tensor"):
        tritonq.grouped_matmul(x, stack, [0, 3])
    with pytest.raises(InvalidProblemError, match="activation"):
        tritonq.grouped_matmul(x, stack, ends, "tanh")
    assert not tritonq.grouped_matmul(x, stack, ends).any()


@pytest.mark.parametrize("scheme", ["nvfp4", "nf4.dq"])
def test_files_whose_experts_share_scales_are_refused(tmp_path, scheme):
    make("qwen3 moe").save_pretrained(tmp_path / "full")
    tritonq.checkpoints.quantize_checkpoint(tmp_path / "full", tmp_path / "q", scheme)
    with pytest.raises(UnsupportedError, match="scales"):
        load(tmp_path / "q")
