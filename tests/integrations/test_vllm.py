"""vLLM itself, on the CPU: the greedy tokens of Transformers on one rank and two, and its weight loaders rank by rank. `make test-vllm`."""
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import tritonq
from tests.support.bitsandbytes_files import stored

pytest.importorskip("vllm")
transformers = pytest.importorskip("transformers", minversion="5.19")
ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = {"vocab_size": 500, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=64, tie_word_embeddings=True),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SIZES, head_dim=64, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128),
}
PROMPTS = (list(range(5, 21)), [3, 1, 4, 1, 5])


def checkpoint(folder: pathlib.Path, architecture: str, form: str) -> pathlib.Path:
    """A tiny random model whose layers, and not its embedding, decide the tokens; ``form``: a scheme, or bitsandbytes NF4."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    for name, parameter in model.named_parameters():
        if "proj" in name:
            parameter.data *= 8
    model.save_pretrained(folder / "full")
    out = folder / form
    if not form.startswith("bitsandbytes"):
        schemes = {"*.1.mlp.*": "int8", "*": form} if form == "nf4" else form
        exclude = ["*.experts.*"] if architecture == "qwen3_moe" else []  # vLLM's own kernels multiply these
        tritonq.checkpoints.quantize_checkpoint(folder / "full", out, schemes, exclude=exclude)
        return out
    out.mkdir()
    named = load_file(folder / "full" / "model.safetensors")
    for name in [name for name in named if "proj" in name]:
        named |= stored(name, tritonq.quantize(named.pop(name), "nf4.g64.dq" if "nested" in form else "nf4.g64"))
    save_file(named, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "full" / "config.json").read_text())
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    return out


@torch.no_grad()
def tokens_of_transformers(path: pathlib.Path) -> list[list[int]]:
    from tritonq.integrations.transformers_checkpoints import checkpoint_config

    model = transformers.AutoModelForCausalLM.from_pretrained(path, config=checkpoint_config(path), dtype=torch.float32).eval()
    answers = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


def tokens_of_vllm(path: pathlib.Path, ranks: int, mode: str) -> list[list[int]]:
    command = [sys.executable, "-m", "tests.integrations.vllm_serve", str(path), str(ranks), mode]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    found = [line for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    assert found, (done.stdout + done.stderr)[-4000:]
    return json.loads(found[-1].removeprefix("TOKENS "))


@pytest.mark.parametrize("architecture, form, ranks, mode", [
    ("llama", "nf4", 1, "eager"), ("llama", "int4.g32", 2, "eager"), ("llama", "bitsandbytes", 1, "compile"),
    ("llama", "bitsandbytes nested", 2, "compile"), ("qwen3", "nf4", 2, "eager"), ("qwen3", "int4.g32", 1, "compile"),
    ("qwen3", "bitsandbytes", 2, "eager"), ("qwen3", "bitsandbytes nested", 1, "eager"),
    ("qwen3_moe", "int4.g32", 1, "eager"),
])  # fmt: skip
def test_tokens(tmp_path, architecture, form, ranks, mode):
    path = checkpoint(tmp_path, architecture, form)
    want = tokens_of_transformers(path)
    assert len({token for answer in want for token in answer}) > 8, "an answer that says little"
    assert tokens_of_vllm(path, ranks, mode) == want


# Without an engine: vLLM's layers and loaders on two ranks -----------------------------------------------------------------------


def weights(scheme: str) -> dict[str, tritonq.QTensor]:
    torch.manual_seed(0)
    shapes = {"q_proj": (256, 256), "k_proj": (128, 256), "v_proj": (128, 256), "gate_proj": (512, 256), "up_proj": (512, 256),
              "o_proj": (256, 512), "lm_head": (500, 256)}  # fmt: skip
    schemes = {"lm_head": "nf4"} if ".b" in scheme else {}
    return {f"m.{name}.weight": tritonq.quantize(torch.randn(shape), schemes.get(name, scheme)) for name, shape in shapes.items()}


def load_layers(rank: int, port: int, path: str, scheme: str) -> None:
    """One of two ranks: load vLLM's layers from the file and compare with the decoded weights."""
    os.environ |= {"VLLM_DIST_IDENT": f"tritonq{port}", "LOCAL_WORLD_SIZE": "2", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    torch.set_num_threads(1)
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(2, rank, f"tcp://127.0.0.1:{port}", rank, backend="gloo")
        initialize_model_parallel(2)
        config = get_quantization_config("tritonq").from_config({})
        config.maybe_update_config(path)
        config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
        named = {name.removeprefix("m."): q.dequantize() for name, q in weights(scheme).items()}
        stream = dict(config.get_cache_scale_mapper().apply(load_file(f"{path}/model.safetensors").items()))
        common = {"quant_config": config, "params_dtype": torch.float32}

        def load(layer, parts):
            for name, shard in parts:
                for own in list(layer.tritonq_specs):
                    parameter = getattr(layer, own)
                    parameter.weight_loader(parameter, stream[f"m.{name}.{own}"], *(() if shard is None else (shard,)))
            layer.quant_method.process_weights_after_loading(layer)
            layer.quant_method.process_weights_after_loading(layer)
            assert all(type(parameter) is torch.nn.Parameter for parameter in layer.parameters())
            return layer

        def part(name, axis=0):
            return named[f"{name}.weight"].chunk(2, axis)[rank]

        x, wide = torch.randn(3, 256), torch.randn(3, 512)
        qkv = load(QKVParallelLinear(256, 64, 4, 2, bias=False, prefix="m.qkv_proj", **common),
                   [("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v")])  # fmt: skip
        torch.testing.assert_close(qkv(x)[0], x @ torch.cat([part(n) for n in ("q_proj", "k_proj", "v_proj")]).T, rtol=1e-4, atol=1e-3)
        up = load(MergedColumnParallelLinear(256, [512, 512], bias=False, prefix="m.gate_up_proj", **common),
                  [("gate_proj", 0), ("up_proj", 1)])  # fmt: skip
        torch.testing.assert_close(up(x)[0], x @ torch.cat([part("gate_proj"), part("up_proj")]).T, rtol=1e-4, atol=1e-3)
        row = load(RowParallelLinear(512, 256, bias=False, prefix="m.o_proj", **common), [("o_proj", None)])
        torch.testing.assert_close(row(wide.chunk(2, 1)[rank].contiguous())[0], wide @ named["o_proj.weight"].T, rtol=1e-4, atol=1e-3)
        head = load(ParallelLMHead(500, 256, prefix="m.lm_head", **common), [("lm_head", None)])
        got, mine = head.quant_method.apply(head, x), named["lm_head.weight"][256 * rank : 256 * rank + 256]
        torch.testing.assert_close(got[:, : len(mine)], x @ mine.T, rtol=1e-4, atol=1e-3)
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("scheme", ["nf4.g64", "nf4.g64.dq", "uint4.g32", "int8", "fp8_e4m3.b64x64", "mxfp4"])
def test_loaders_of_two_ranks(tmp_path, scheme):
    tritonq.save(weights(scheme), tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(load_layers, (port, str(tmp_path), scheme), nprocs=2)


def config_of(folder, named):
    from tritonq.integrations.vllm import register

    register()
    register()
    from vllm.model_executor.layers.quantization import get_quantization_config

    config = get_quantization_config("tritonq").from_config({"quant_method": "tritonq"})
    tritonq.save(named, folder)
    config.maybe_update_config(str(folder))
    config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    return config


def test_what_a_layer_cannot_hold_is_refused_by_name(tmp_path):
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    w = torch.randn(64, 192)
    schemes = {"q_proj": "nf4", "k_proj": "nf4", "v_proj": "int8", "mlp.experts.0.up_proj": "nf4", "table": "int8", "head": "int8.b8x64"}
    named = {f"{name}.weight": tritonq.quantize(w, scheme) for name, scheme in schemes.items()}
    config = config_of(tmp_path, named | {"kept.weight": w})
    linear = LinearBase.__new__(LinearBase)
    with pytest.raises(tritonq.errors.UnsupportedError, match="qkv_proj is one layer of q_proj: nf4.*v_proj: int8"):
        config.get_quant_method(linear, "qkv_proj")
    with pytest.raises(tritonq.errors.UnsupportedError, match="mlp.experts.0.up_proj.weight: quantized.*--exclude"):
        config.get_quant_method(RoutedExperts.__new__(RoutedExperts), "mlp.experts")
    with pytest.raises(tritonq.errors.UnsupportedError, match="table.weight: quantized"):
        config.get_quant_method(VocabParallelEmbedding.__new__(VocabParallelEmbedding), "table")
    assert config.get_quant_method(RoutedExperts.__new__(RoutedExperts), "other.experts") is None
    assert isinstance(config.get_quant_method(linear, "kept"), UnquantizedLinearMethod)
    head = ParallelLMHead.__new__(ParallelLMHead)
    torch.nn.Module.__init__(head)
    with pytest.raises(tritonq.errors.UnsupportedError, match="head: int8.b8x64: vLLM loads a head row by row"):
        config.get_quant_method(head, "head").create_weights(head, 192, [64], 192, 64, torch.float32, weight_loader=None)
    with pytest.raises(tritonq.errors.InvalidProblemError, match="q_proj.weight: nf4 .*2 equal parts along K.*Legal.*: 1, 3"):
        config.get_quant_method(linear, "q_proj").create_weights(linear, 96, [64], 192, 64, torch.float32, weight_loader=None)


def test_which_checkpoints_are_taken(tmp_path):
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    config = config_of(tmp_path, {"w.weight": tritonq.quantize(torch.randn(64, 64), "nf4")})
    assert QUANTIZATION_METHODS.count("tritonq") == 1
    assert config.override_quantization_method({"quant_method": "bitsandbytes"}, None) == "tritonq"
    assert config.override_quantization_method({"quant_method": "gptq"}, None) is None
    QUANTIZATION_METHODS.append("bitsandbytes")  # another plugin has registered it
    try:
        assert config.override_quantization_method({"quant_method": "bitsandbytes"}, None) is None
        assert config.override_quantization_method({"quant_method": "bitsandbytes"}, "tritonq") == "tritonq"
    finally:
        QUANTIZATION_METHODS.remove("bitsandbytes")
