"""Transformers: a checkpoint of bitsandbytes straight onto QuantLinear; its bits, its logits, saved as ours and loaded again."""
import pytest
import torch

import tritonq
from tests.support.schemes import same_bits
from tritonq.nn import QuantLinear

transformers = pytest.importorskip("transformers", minversion="5.19")
functional = pytest.importorskip("bitsandbytes.functional")
from tests.support.tiny_models import IDS, load, logits, make  # noqa: E402
from tritonq.integrations.transformers_checkpoints import checkpoint_config  # noqa: E402


def quantized(folder, architecture, kind="nf4", nested=False, dtype=torch.float32):
    """A checkpoint written by Transformers and bitsandbytes, and the ordinary model that computes with its decoded weights."""
    full = folder / "full"
    make(architecture, dtype).save_pretrained(full)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested)
    model = transformers.AutoModelForCausalLM.from_pretrained(full, quantization_config=config, dtype=dtype)
    model.save_pretrained(folder / "bnb")
    plain = transformers.AutoModelForCausalLM.from_pretrained(full, dtype=dtype)
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":  # eval() would repack it for the CPU and round its scales
            plain.get_submodule(name).weight.data = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return folder / "bnb", plain.eval()


@pytest.mark.parametrize("architecture, kind, nested, dtype", [
    ("llama", "nf4", False, torch.float32), ("llama", "nf4", True, torch.bfloat16), ("qwen3, tied", "nf4", True, torch.float32),
    ("qwen3, tied", "fp4", False, torch.bfloat16),
])  # fmt: skip
def test_load_compute_save_reload(tmp_path, architecture, kind, nested, dtype):
    path, plain = quantized(tmp_path, architecture, kind, nested, dtype)
    model = load(path, config=checkpoint_config(path), dtype=dtype)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    assert len(layers) == 14  # bitsandbytes keeps the head
    for name, layer in layers.items():
        assert str(layer.scheme) == ("nf4" if kind == "nf4" else "fp4_bnb") + ".g64" + ".dq" * nested
        assert torch.equal(layer.qtensor.dequantize(), plain.get_submodule(name).weight), name
    assert model.lm_head.weight.dtype == model.model.norm.weight.dtype == dtype
    tight = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(logits(model), logits(plain), **tight)
    model.save_pretrained(tmp_path / "ours")
    assert tritonq.checkpoints.open(tmp_path / "ours").family == "tritonq"
    again = load(tmp_path / "ours", dtype=dtype)
    assert same_bits(logits(again), logits(model))
    assert again.generate(IDS, max_new_tokens=3, do_sample=False).shape == (2, 15)


def test_another_dtype_for_the_rest_of_the_model(tmp_path):
    path, _ = quantized(tmp_path, "llama")
    model = load(path, config=checkpoint_config(path), dtype=torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    assert model.model.norm.weight.dtype == torch.bfloat16 and layer.weight_scale.dtype == torch.float32
    assert logits(model).isfinite().all()


def test_what_converts_is_what_loads(tmp_path):
    path, plain = quantized(tmp_path, "llama", nested=True)
    tritonq.save(tritonq.load(path), tmp_path / "ours.safetensors")
    for name, value in tritonq.checkpoints.open(tmp_path / "ours.safetensors"):
        want = plain.get_parameter(name)
        assert torch.equal(value.dequantize() if isinstance(value, tritonq.QTensor) else value, want), name


def test_refused(tmp_path):
    path, _ = quantized(tmp_path, "llama")
    with pytest.raises(ValueError, match="BitsAndBytesConfig but you are passing a TritonQConfig"):  # Transformers' own words
        from tritonq.integrations.transformers import TritonQConfig
        transformers.AutoModelForCausalLM.from_pretrained(path, quantization_config=TritonQConfig())
    config = checkpoint_config(path)
    config.intermediate_size = 64
    with pytest.raises(tritonq.errors.UnsupportedError, match="no Linear of that name and shape"):
        transformers.AutoModelForCausalLM.from_pretrained(path, config=config)
    with pytest.raises(tritonq.errors.CheckpointError, match="quant_method None; read are tritonq, bitsandbytes"):
        checkpoint_config(tmp_path / "full")
