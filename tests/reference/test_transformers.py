"""Transformers: quantize while loading, save, reload, and what ``tritonq quantize`` wrote."""
import copy
import subprocess
import sys

import pytest
import torch

import tritonq
from tests.support.schemes import same_bits, same_tensors
from tritonq.errors import UnsupportedError
from tritonq.nn import QuantLinear

transformers = pytest.importorskip("transformers", minversion="5.19")
from tests.support.tiny_models import IDS, load, logits, make  # noqa: E402
from tritonq.integrations.transformers import TritonQConfig  # noqa: E402


@pytest.fixture(params=["llama", "qwen3, tied"])
def source(request, tmp_path):
    make(request.param).save_pretrained(tmp_path / "full")
    return tmp_path / "full"


def layers(model) -> dict:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}


@pytest.mark.parametrize("scheme, dtype", [("nf4", torch.float32), ("uint4.g32", torch.bfloat16), ("int8", torch.bfloat16),
                                           ("fp8_e4m3", torch.float32), ("mxfp4", torch.float32)])  # fmt: skip
def test_quantize_while_loading_save_and_reload(source, tmp_path, scheme, dtype):
    model = load(source, quantization_config=TritonQConfig(scheme, exclude=["model.layers.1.mlp.*"]), dtype=dtype)
    named, full = layers(model), load(source, dtype=dtype)
    assert len(named) == 11 + (not model.config.tie_word_embeddings) and not any("layers.1.mlp" in name for name in named)
    for name, layer in named.items():
        want = tritonq.quantize(full.get_submodule(name).weight.detach(), scheme)
        assert same_tensors(layer.qtensor.flat(), want.flat()), name
    model.save_pretrained(tmp_path / "quantized")
    again = load(tmp_path / "quantized", dtype=dtype)
    assert list(layers(again)) == list(named) and same_bits(logits(again), logits(model))
    assert again.generate(IDS, max_new_tokens=3, do_sample=False).shape == (2, 15)
    stored = tritonq.load(tmp_path / "quantized")
    assert sum(isinstance(value, tritonq.QTensor) for value in stored.values()) == len(named)
    ordinary = again.dequantize()
    assert not layers(ordinary)
    torch.testing.assert_close(logits(ordinary), logits(model), rtol=2e-2, atol=2e-2)


def test_what_the_command_line_wrote_is_loaded(source, tmp_path):
    tritonq.checkpoints.quantize_checkpoint(source, tmp_path / "out", {"*.mlp.*": "int8", "*": "nf4.g32"})
    model = load(tmp_path / "out")
    schemes = {str(layer.scheme) for name, layer in layers(model).items() if ".mlp." in name}
    assert schemes == {"int8"} and len(layers(model)) >= 14
    for name, value in tritonq.checkpoints.open(tmp_path / "out"):
        if isinstance(value, tritonq.QTensor):
            assert same_bits(model.get_submodule(name.removesuffix(".weight")).qtensor.dequantize(), value.dequantize())


def test_experts_of_another_kind_are_named(tmp_path):
    """gpt-oss: transposed weights with biases, which no module here computes."""
    make("gpt-oss").save_pretrained(tmp_path / "full")
    with pytest.warns(UserWarning, match="experts.gate_up_proj"):
        model = load(tmp_path / "full", quantization_config=TritonQConfig("int8"))
    assert layers(model) and logits(model).isfinite().all()
    model.save_pretrained(tmp_path / "quantized")
    assert same_bits(logits(load(tmp_path / "quantized")), logits(model))
    tritonq.checkpoints.quantize_checkpoint(tmp_path / "full", tmp_path / "out", "int8")
    with pytest.raises(tritonq.errors.UnsupportedError, match="experts.*--exclude"):
        load(tmp_path / "out")


@pytest.mark.parametrize("family", ["qwen3, tied", "qwen3 moe"])
def test_device_maps_and_layers_on_disk(family, tmp_path):
    pytest.importorskip("accelerate")
    make(family).save_pretrained(tmp_path / "full")
    model = load(tmp_path / "full", quantization_config=TritonQConfig("nf4.g32"), device_map="auto")
    model.save_pretrained(tmp_path / "quantized")
    parts = {name: "cpu" for name in ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")}
    for placed in ("auto", parts | {"model.layers.1": "disk"}):
        again = load(tmp_path / "quantized", device_map=placed, offload_folder=tmp_path / "disk")
        assert same_bits(logits(again), logits(model))


def test_it_compiles_whole(source):
    model = load(source, quantization_config=TritonQConfig("nf4"))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arguments, text", [
    ({"scheme": "nf9"}, "unknown format 'nf9'"), ({"format_version": 2}, "format_version 2 is unknown"),
    ({"dtype": "int8"}, "dtype must be"), ({"excluded": ["lm_head.weight"]}, "excluded: unknown; known are scheme, overrides, exclude"),
    ({"exclude": "lm_head.weight"}, "exclude takes globs in a list"),
    ({"quant_method": "gptq"}, "quant_method 'gptq' is not 'tritonq', which this"),
])  # fmt: skip
def test_refused_configs(arguments, text):
    with pytest.raises(tritonq.errors.TritonQError, match=text):
        TritonQConfig(**arguments)


def test_without_the_import_nothing_is_loaded_and_the_method_is_named(tmp_path):
    """Transformers knows no entry points: what it says of an unknown method, and that it stops, is all that a user sees."""
    make("llama").save_pretrained(tmp_path / "full")
    load(tmp_path / "full", quantization_config=TritonQConfig("nf4")).save_pretrained(tmp_path / "quantized")
    code = f"import transformers; transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'quantized')!r})"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.returncode != 0 and "Unknown quantization type, got tritonq" in outcome.stderr and "mismatch" in outcome.stderr


def test_the_package_does_not_import_the_framework():
    code = "import sys, tritonq; assert not {'transformers', 'vllm', 'torchao'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_that_the_model_reads_itself(tmp_path):
    """T5 casts to the dtype of wo: kept while loading, and decoded where a file holds it quantized."""
    config = transformers.T5Config(vocab_size=96, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4, decoder_start_token_id=0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tritonq.checkpoints.quantize_checkpoint(tmp_path / "t5", tmp_path / "q", "int8")
    ids = torch.randint(5, 90, (2, 7))
    for folder, more in ((tmp_path / "t5", {"quantization_config": TritonQConfig("int8")}), (tmp_path / "q", {})):
        model = transformers.T5ForConditionalGeneration.from_pretrained(folder, **more).eval()
        ffn = model.encoder.block[0].layer[1].DenseReluDense
        assert type(ffn.wi) is QuantLinear and type(ffn.wo) is torch.nn.Linear
        assert model(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()


@pytest.mark.parametrize("scheme", ["nf4", {"*.mlp.*": "int8", "*.self_attn.*": "nvfp4"}], ids=str)
def test_what_quantize_in_place_made_is_saved(source, tmp_path, scheme):
    model = load(source)
    tritonq.quantize_(model, scheme)
    copy.deepcopy(model).save_pretrained(tmp_path / "copy")
    model.save_pretrained(tmp_path / "quantized")
    for path in ("copy", "quantized"):
        again = load(tmp_path / path)
        assert layers(again).keys() == layers(model).keys() and same_bits(logits(again), logits(model))


def test_an_embedding_that_no_loader_takes_is_refused(source, tmp_path):
    model = load(source)
    tritonq.quantize_(model, "int8", include=["model.embed_tokens.weight"])
    with pytest.raises(UnsupportedError, match="model.embed_tokens: .*tritonq.save"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_import_saving_in_place_quantized_models_is_refused(tmp_path):
    code = f"""if True:
        import tritonq, pytest
        from tests.support.tiny_models import make
        model = make("llama")
        tritonq.quantize_(model, "int8")
        with pytest.raises(tritonq.errors.UnsupportedError, match="import tritonq.integrations.transformers.*tritonq.save"):
            model.save_pretrained({str(tmp_path / "out")!r})
        import tritonq.integrations.transformers
        model.save_pretrained({str(tmp_path / "out")!r})
    """
    subprocess.run([sys.executable, "-c", code], check=True)
