"""QLoRA: PEFT's adapters around frozen quantized layers, what a training step keeps, merging."""
import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonq
from tests.support.schemes import same_bits, same_tensors
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.nn import QuantLinear

peft = pytest.importorskip("peft")
from tritonq.integrations.peft import LoraQuantLinear  # noqa: E402

BF16 = torch.bfloat16


class Net(nn.Module):
    def __init__(self, width=64, hidden=128, out=8):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.head = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False), nn.Linear(width, out)

    def forward(self, x):
        return self.head(F.gelu(self.down(F.gelu(self.up(x)))))


def adapted(scheme="nf4", config=None, **more):
    net = Net()
    tritonq.quantize_(net, scheme, exclude=["head.weight"])
    return peft.get_peft_model(net, config or peft.LoraConfig(r=4, target_modules=["up", "down"], **more))


def adapters(model) -> list[LoraQuantLinear]:
    return [m for m in model.modules() if isinstance(m, LoraQuantLinear)]


def randomized(model):
    """Adapters that do something: LoRA starts with B = 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in adapters(model):
            for b in layer.lora_B.values():
                b.weight.normal_(std=0.1)
                if b.bias is not None:
                    b.bias.normal_()
    return model


X = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("scheme", ["nf4", "int4.g32", "uint4.g32", "int8", "fp8_e4m3"])
def test_a_toy_task_is_learned_and_the_codes_stay(scheme):
    model = adapted(scheme)
    assert len(adapters(model)) == 2
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    codes = [layer.get_base_layer().qtensor for layer in adapters(model)]
    before = [[t.clone() for t in q.flat()] for q in codes]
    y = torch.randn(16, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(80):
        loss = F.mse_loss(model(X), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses[::10]
    for layer, q, tensors in zip(adapters(model), codes, before, strict=True):
        assert layer.get_base_layer().qtensor is q and same_tensors(q.flat(), tensors)


def test_gradients_are_those_of_an_ordinary_layer_with_the_decoded_weight():
    model = randomized(adapted("nf4.g32"))
    plain = copy.deepcopy(model)
    for layer in adapters(plain):
        layer.base_layer = layer.base_layer.to_linear()
    for net in (model, plain):
        net(X).square().sum().backward()
    pairs = [(n, p.grad, dict(plain.named_parameters())[n].grad) for n, p in model.named_parameters() if p.requires_grad]
    assert len(pairs) == 4
    for name, ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()), msg=name)


def test_gradcheck():
    model = randomized(adapted("uint4.g32")).double()
    x = X[:3].double().requires_grad_()
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float64 for p in parameters)
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *parameters), fast_mode=True)


def kept_by_a_forward(net, x) -> int:
    """Bytes that autograd keeps and that are neither parameters, nor buffers, nor the input."""
    known = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers(), x)}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x)
    del out
    return sum(kept.values())


def test_nothing_decoded_is_kept():
    """Activations of 2 rows are far smaller than any weight: a decoded one would stand out."""
    width = 512
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
    tritonq.quantize_(net, "nf4")
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    x = torch.randn(2, width)
    activations = 2 * width * 4
    assert 0 < kept_by_a_forward(model, x) <= 8 * activations < width * width


def test_peak_memory_of_a_training_step():
    """Activations of every layer, and what the reference decodes of one weight at a time; kernels decode in registers.

    With 16 layers that is less than their packed weights and activations; all decoded weights would be five times as much.
    """
    width, rows = 512, 32

    def peak(layers: int) -> tuple[int, int]:
        net = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
        tritonq.quantize_(net, "nf4")
        model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=[str(i) for i in range(layers)]))
        x = torch.randn(rows, width)
        model(x).sum().backward()
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(x).sum().backward()
        now = most = 0
        for change in _allocations(profile):
            now += change
            most = max(most, now)
        return most, sum(layer.get_base_layer().qtensor.nbytes for layer in adapters(model))

    (few, _), (many, packed) = peak(2), peak(16)
    weight, activation = 4 * width * width, 4 * rows * width
    assert activation < few < 2 * weight, "one decoded weight and its codes"
    assert 14 * activation <= many - few < 21 * activation < 14 * weight, "fourteen layers more keep as many activations, and no weight"
    assert many < packed + 16 * activation < 16 * weight / 4


def _allocations(profile) -> list[int]:
    """Bytes of every allocation and (negative) release, in the order of time."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def test_merge_is_the_quantized_sum_and_unmerge_gives_back_the_codes():
    model = randomized(adapted("nf4", lora_alpha=8))
    layer = adapters(model)[0]
    q = layer.get_base_layer().qtensor
    want = tritonq.quantize(q.dequantize(torch.float32) + layer.get_delta_weight("default"), "nf4")
    apart = model(X)
    model.merge_adapter(safe_merge=True)
    assert layer.merged and same_tensors(layer.get_base_layer().qtensor.flat(), want.flat())
    merged = model(X)
    assert not torch.equal(merged, apart) and F.cosine_similarity(merged.flatten(), apart.flatten(), 0) > 0.95
    model.unmerge_adapter()
    assert layer.get_base_layer().qtensor is q and same_bits(model(X), apart)
    whole = model.merge_and_unload()
    assert type(whole.up) is QuantLinear and same_bits(whole(X), merged)


def test_two_adapters_are_merged_onto_the_same_weight_in_one_or_two_calls():
    def two():
        model = adapted("int8", peft.LoraConfig(r=4, target_modules=["up"], lora_bias=True))
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["up"], lora_bias=True))
        return randomized(model), adapters(model)[0]

    (_, at_once), (_, apart) = two(), two()
    bias = at_once.base_layer.bias
    at_once.merge(adapter_names=["default", "second"])
    apart.merge(adapter_names=["default"])
    apart.merge(adapter_names=["second"])
    assert same_tensors(at_once.base_layer.qtensor.flat(), apart.base_layer.qtensor.flat())
    assert same_bits(at_once.base_layer.bias, apart.base_layer.bias) and not same_bits(at_once.base_layer.bias, bias)
    apart.unmerge()
    assert same_bits(apart.base_layer.bias, bias) and not apart.merged_adapters


def test_an_adapter_is_saved_and_loaded_by_its_path(tmp_path):
    model = randomized(adapted("int4.g32"))
    model.save_pretrained(tmp_path)
    net = Net()
    tritonq.quantize_(net, "int4.g32", exclude=["head.weight"])
    assert same_bits(peft.PeftModel.from_pretrained(net, tmp_path)(X), model(X))
    with model.disable_adapter():
        plain = model(X)
    assert not same_bits(plain, model(X))


@pytest.mark.parametrize("config, text", [
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' computes with the weight"),
    ({"init_lora_weights": "olora"}, "take one of True"), ({"use_dora": True}, "DoraLinearVariant computes with the weight"),
])  # fmt: skip
def test_refused(config, text):
    with pytest.raises(UnsupportedError, match=text):
        adapted(**config)


def test_what_cannot_be_merged_changes_nothing():
    model = randomized(adapted(lora_bias=True, config=None))
    down = adapters(model)[1]
    before = down.base_layer.qtensor
    with pytest.raises(UnsupportedError, match="the layer has none"):
        down.merge()
    up = adapters(model)[0]
    with torch.no_grad():
        up.lora_A["default"].weight[0, 0] = torch.nan
    q = up.base_layer.qtensor
    with pytest.raises(InvalidProblemError, match="not finite with the adapters default"):
        up.merge(safe_merge=True)
    assert up.base_layer.qtensor is q and not up.merged and down.base_layer.qtensor is before


def test_transformers_all_linear_bf16():
    transformers = pytest.importorskip("transformers", minversion="5.19")
    config = transformers.LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(BF16)
    tritonq.quantize_(model, "nf4")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unsupported layer type")
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert len(adapters(model)) == 14 and not isinstance(model.get_output_embeddings(), LoraQuantLinear)
    ids = torch.arange(24).reshape(2, 12)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name and p is not None and p.isfinite().all() for name, p in grads.items())
    assert any(bool(p.abs().sum()) for name, p in grads.items() if "lora_B" in name)
