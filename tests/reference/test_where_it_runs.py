"""Small models of three families, each way a user can get them quantized: the logits are those of the model with the decoded weights.

Two ranks of tensor parallel are in test_distributed.py.
"""
import copy

import pytest
import torch

import tritonq
from tests.support.schemes import same_bits
from tritonq.nn import QuantExperts, QuantLinear

pytest.importorskip("transformers", minversion="5.19")
from tests.support.tiny_models import IDS, load, logits, make  # noqa: E402
from tritonq.integrations.transformers import TritonQConfig  # noqa: E402


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
@pytest.mark.parametrize("family", ["llama", "qwen3, tied", "qwen3 moe"])
def test_logits_are_those_of_the_decoded_model(family, scheme, tmp_path):
    full = make(family)
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
    loaded = load(tmp_path / "full", quantization_config=TritonQConfig(scheme))
    assert same_bits(logits(loaded), ours)
    loaded.save_pretrained(tmp_path / "quantized")
    again = load(tmp_path / "quantized")
    assert same_bits(logits(again), ours)
    tokens = again.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(tokens, decoded(model).generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0))
