"""The adapter for SGLang against stand-ins with SGLang's names. It shows that the adapter's own lines run, and nothing about SGLang."""
import sys
import types

import pytest
import torch

import tritonq
from tritonq.errors import UnsupportedError


class Parameter(torch.nn.Parameter):
    """Stands in for SGLang's parameter classes, which take axes and a loader."""

    def __new__(cls, data, **kwargs):
        return super().__new__(cls, data, requires_grad=False)

    def __init__(self, data, weight_loader, **axes):
        self.axes = axes


@pytest.fixture
def sglang(monkeypatch, tmp_path):
    """``sglang`` as far as the adapter imports it, serving the folder that it returns."""
    module = types.ModuleType

    def add(name, **members):
        added = module(name)
        added.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, added)
        return added

    kinds = {name: type(name, (torch.nn.Module,), {}) for name in ("LinearBase", "FusedMoE", "VocabParallelEmbedding")}
    head = type("ParallelLMHead", (kinds["VocabParallelEmbedding"],), {})
    base = type("QuantizationConfig", (), {"__init__": lambda self: None})
    for package in ("sglang", "sglang.srt", "sglang.srt.layers", "sglang.srt.layers.moe", "sglang.srt.layers.moe.fused_moe_triton"):
        add(package)
    unquantized = type("UnquantizedLinearMethod", (), {})
    linear = add("sglang.srt.layers.linear", LinearBase=kinds["LinearBase"], UnquantizedLinearMethod=unquantized,
                 WEIGHT_LOADER_V2_SUPPORTED=[])  # fmt: skip
    sys.modules["sglang.srt.layers"].linear = linear
    add("sglang.srt.layers.moe.fused_moe_triton.layer", FusedMoE=kinds["FusedMoE"])
    add("sglang.srt.layers.quantization", QUANTIZATION_METHODS={})
    add("sglang.srt.layers.quantization.base_config", LinearMethodBase=object, QuantizationConfig=base)
    add("sglang.srt.layers.vocab_parallel_embedding", ParallelLMHead=head, VocabParallelEmbedding=kinds["VocabParallelEmbedding"])
    names = ("BasevLLMParameter", "ChannelQuantScaleParameter", "ModelWeightParameter", "RowvLLMParameter")
    add("sglang.srt.layers.parameter", **{name: type(name, (Parameter,), {}) for name in names})
    choices = []
    add("sglang.srt.server_args", QUANTIZATION_CHOICES=choices, add_quantization_method_choices=choices.extend,
        get_global_server_args=lambda: types.SimpleNamespace(model_path=str(tmp_path)))  # fmt: skip
    return tmp_path


def test_registering_and_a_layer(sglang):
    from tritonq.integrations.sglang import register

    register()
    register()
    methods = sys.modules["sglang.srt.layers.quantization"].QUANTIZATION_METHODS
    linear = sys.modules["sglang.srt.layers.linear"]
    assert linear.WEIGHT_LOADER_V2_SUPPORTED == ["TritonQLinearMethod"]
    assert sys.modules["sglang.srt.server_args"].QUANTIZATION_CHOICES == ["tritonq"]
    parts = {f"m.{name}_proj.weight": tritonq.quantize(torch.randn(32, 128), "nf4") for name in "qkv"}
    others = {"m.kept.weight": torch.ones(2, 2), "m.experts.0.up_proj.weight": tritonq.quantize(torch.ones(4, 64), "nf4")}
    tritonq.save(parts | others, sglang)
    config = methods["tritonq"].from_config({})
    layer = linear.LinearBase()
    method = config.get_quant_method(layer, "m.qkv_proj")
    method.create_weights(layer, 128, [32, 32, 32], 128, 96, torch.float32, weight_loader=None)
    assert layer.weight.axes == {"output_dim": 0, "input_dim": 1}
    layer.weight.data.copy_(torch.cat([q.packed for q in parts.values()]))
    layer.weight_scale.data.copy_(torch.cat([q.scale for q in parts.values()]))
    method.process_weights_after_loading(layer)
    x = torch.randn(3, 128)
    torch.testing.assert_close(method.apply(layer, x), x @ torch.cat([q.dequantize() for q in parts.values()]).T, rtol=1e-4, atol=1e-4)
    assert type(config.get_quant_method(layer, "m.kept")) is linear.UnquantizedLinearMethod
    experts = sys.modules["sglang.srt.layers.moe.fused_moe_triton.layer"].FusedMoE()
    with pytest.raises(UnsupportedError, match="m.experts.0.up_proj.weight: quantized, and FusedMoE"):
        config.get_quant_method(experts, "m.experts")
    assert config.get_quant_method(experts, "other") is None
