"""Tiny checkpoints, written by the safetensors library (not by ours)."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """A language model in miniature: what is quantized, and one of everything that is kept."""
    generator = torch.Generator().manual_seed(7)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(0.02).to(dtype)

    named = {"model.embed_tokens.weight": rand(50, 64), "model.norm.weight": rand(64), "lm_head.weight": rand(50, 64)}
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        named |= {
            prefix + "self_attn.q_proj.weight": rand(64, 64),
            prefix + "self_attn.q_proj.bias": rand(64),
            prefix + "mlp.down_proj.weight": rand(64, 96),
            prefix + "input_layernorm.weight": rand(64),
        }
    named["model.layers.2.mlp.experts.gate_up_proj"] = rand(4, 48, 64)
    named["model.layers.2.mlp.gate.weight"] = rand(4, 64)
    named["model.conv.weight"] = rand(8, 8, 3, 3)
    named["model.position_ids"] = torch.arange(16).reshape(1, 16)
    return named


QUANTIZED = {
    "lm_head.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("self_attn.q_proj", "mlp.down_proj")),
    "model.layers.2.mlp.experts.gate_up_proj",
}


def write_folder(folder: Path, named: dict[str, torch.Tensor] | None = None, shards: int = 1, config: dict | None = None) -> Path:
    """A folder as ``save_pretrained`` writes it: weights, index where there are several files, config, tokenizer, a subfolder."""
    named = tensors() if named is None else named
    folder.mkdir(parents=True, exist_ok=True)
    names = list(named)
    if shards == 1:
        save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for shard in range(shards):
            filename = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = names[shard::shards]
            save_file({name: named[name] for name in part}, folder / filename, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, filename)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "vocab_size": 50} | (config or {})))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"not carried")
    (folder / ".cache").mkdir(exist_ok=True)
    (folder / ".cache" / "lock").write_text("not carried")
    return folder


def fingerprint(folder: Path) -> dict[str, str]:
    """sha256 of every file below ``folder``."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def model_files(folder: Path) -> dict[str, str]:
    """The fingerprint without the report, which tells the time."""
    return {name: digest for name, digest in fingerprint(folder).items() if name != "tritonq_report.json"}
