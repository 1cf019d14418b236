"""Small models of three families, each way a user can get them quantized: the logits are those of the model with the decoded weights.

Two ranks of tensor parallel are in test_distributed.py.
"""
import copy

import pytest
import torch

import tritonq
from tests.support.schemes import same_bits
from tritonq.nn import QuantExperts, QuantLinear

transformers = pytest.importorskip("transformers", minversion="5")
from tritonq.integrations.transformers import TritonQConfig  # noqa: E402

SIZES = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
}
IDS = torch.arange(24).reshape(2, 12) * 7 % 256


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def decoded(model):
    model = copy.deepcopy(model)
    model.config._experts_implementation = "eager"  # the others do not take float64
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            model.set_submodule(path, module.to_linear())
        elif isinstance(module, QuantExperts):
            model.set_submodule(path, module.to_experts())
    assert not any(isinstance(module, QuantLinear | QuantExperts) for module in model.modules())
    return model


@pytest.mark.parametrize("scheme", ["nf4.g32", "int4.g32", "int8", "fp8_e4m3"])
@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_those_of_the_decoded_model(family, scheme, tmp_path):
    torch.manual_seed(0)
    full = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    full.save_pretrained(tmp_path / "full")
    model = copy.deepcopy(full)
    tritonq.quantize_(model, scheme)
    ours, want = logits(model), logits(decoded(model))
    exact = logits(decoded(model).double())
    noise = float((want.double() - exact).norm())
    assert float((ours.double() - exact).norm()) <= 2 * noise < 1e-4 * float(exact.norm()), "as near to float64 as the decoded model is"
    assert float((ours - logits(full)).norm()) > 100 * noise, "quantization itself is far from noise"
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert float((logits(compiled).double() - exact).norm()) <= 2 * noise
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=TritonQConfig(scheme)).eval()
    assert same_bits(logits(loaded), ours)
    loaded.save_pretrained(tmp_path / "quantized")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "quantized").eval()
    assert same_bits(logits(again), ours)
    tokens = again.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(tokens, decoded(model).generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0))
