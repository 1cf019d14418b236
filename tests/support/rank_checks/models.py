"""Language models of Transformers, whole and split."""
from __future__ import annotations

import copy

import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import parallelize_module

import tritonq
from tests.support.schemes import same_tensors
from tritonq.distributed import ColwiseParallel, ExpertParallel, RowwiseParallel, ShardedLinear, gather
from tritonq.errors import InvalidProblemError, UnsupportedError

from .common import near, random, refused, zeroed

MODEL_SCHEMES = ("nf4.g32", "int4.g32", "int8", "fp8_e4m3")

STORED = {"llama": ("nf4.g32", "int3.g32"), "qwen3": ("int8",), "qwen3_moe": ("nf4.g32",)}


def configs() -> dict:
    import transformers

    sizes = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8,
             "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 64}  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    return {"llama": transformers.LlamaConfig(**sizes), "qwen3": transformers.Qwen3Config(**sizes, tie_word_embeddings=True),
            "qwen3_moe": transformers.Qwen3MoeConfig(**sizes, **experts)}  # fmt: skip


def layers_split(config) -> int:
    """Projections of the attention, those of dense MLPs, and a head of its own; experts are kept by every rank."""
    moe = config.model_type == "qwen3_moe"
    return config.num_hidden_layers * (4 if moe else 7) + (not config.tie_word_embeddings)


def causal_lm(config) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def plan_of(config) -> dict:
    layers = "model.layers.*."
    plan = {f"{layers}self_attn.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    plan[f"{layers}self_attn.o_proj"] = RowwiseParallel()
    if config.model_type != "qwen3_moe":
        plan |= {f"{layers}mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")}
        plan[f"{layers}mlp.down_proj"] = RowwiseParallel()
    return plan if config.tie_word_embeddings else plan | {"lm_head": ColwiseParallel(output_layouts=Replicate())}


def transformers_models(mesh, folder):
    for name, config in configs().items():
        ids = torch.arange(24).reshape(2, 12) * 7 % 256
        for scheme in MODEL_SCHEMES:
            whole = causal_lm(config)
            tritonq.quantize_(whole, scheme)
            mine = parallelize_module(copy.deepcopy(whole), mesh, plan_of(config))
            assert sum(type(m) is ShardedLinear for m in mine.modules()) == layers_split(config)
            with torch.no_grad():
                near(mine(ids).logits, whole(ids).logits)
            if scheme == "nf4.g32":
                a, b = (m.generate(ids, max_new_tokens=4, do_sample=False) for m in (mine, whole))
                assert torch.equal(a, b), name


def mixtures_of_experts(mesh, folder):
    """Attention split by heads, experts by expert; a state of DTensors, the whole gathered again, and gradients."""
    config = configs()["qwen3_moe"]
    ids = torch.arange(24).reshape(2, 12) * 7 % 256
    for scheme in MODEL_SCHEMES:
        whole = causal_lm(config)
        tritonq.quantize_(whole, scheme)
        mine = parallelize_module(copy.deepcopy(whole), mesh, plan_of(config) | {"model.layers.*.mlp.experts": ExpertParallel()})
        with torch.no_grad():
            near(mine(ids).logits, whole(ids).logits)
    experts, parts = whole.model.layers[0].mlp.experts, mine.model.layers[0].mlp.experts
    assert len(parts.quantized["down_proj"]) == 4 // mesh.size() and f"of {mesh.size()}" in repr(parts)
    together = gather(mine)
    assert same_tensors(together["model.layers.0.mlp.experts.down_proj"].flat(), experts.quantized["down_proj"].flat())
    state = {name: tensor.clone() for name, tensor in parts.state_dict().items()}
    assert all(tensor.placements == (Shard(0),) and tensor.shape[0] == 4 for tensor in state.values())
    for source in (state, experts.state_dict()):
        zeroed(parts).load_state_dict(source)
        with torch.no_grad():
            near(mine(ids).logits, whole(ids).logits)
    x, index, shares = random(5, 128), torch.tensor([[0, 3], [2, 1], [0, 1], [3, 0], [1, 3]]), torch.rand(5, 2)
    grads = []
    for layer in (experts, parts):
        inputs = x.clone().requires_grad_(), index, shares.clone().requires_grad_()
        layer(*inputs).square().sum().backward()
        grads.append((inputs[0].grad, inputs[2].grad))
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        near(ours, theirs)
    only_experts = nn.ModuleDict({"experts": parts})
    refused(UnsupportedError, "gather brings the whole together", lambda: tritonq.save(only_experts, folder / "refused.safetensors"))
    odd = tritonq.nn.QuantExperts.from_weights(torch.randn(3, 64, 32), torch.randn(3, 32, 32), "int8")
    refused(InvalidProblemError, "3 experts cannot be split into 2 equal parts. Legal numbers of parts: 1, 3",
            lambda: parallelize_module(nn.ModuleDict({"experts": odd}), mesh, {"experts": ExpertParallel()}))  # fmt: skip
