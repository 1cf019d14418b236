"""Floor 6. What a model takes beside its weights, by its config.json: KV cache and activations. What that does not say plainly is refused.

Activations are the largest set of tensors that a decoder layer of Transformers holds at once without gradients, for ``tokens`` computed
together, read off the forward of ``LlamaModel`` and measured (H hidden, I intermediate, Q heads x head_dim, V key/value heads x head_dim).
4 H are alive throughout: embeddings, layer's input, residual, its norm. To them come:

=========  =========================================================================================  ==========================
norm       two float32 copies                                                                         2 H of float32
attention  q, k, v, three temporaries of the rotation of q                                            4 Q + 2 V
MLP        act(gate), up, their product                                                               3 I
experts    k chosen ones per token: gathered tokens, gate and up and their product, float32 results   k (H + 3 I), 3 k H of float32
logits     of the last token of each sequence, and their float32 copy                                 vocabulary size
=========  =========================================================================================  ==========================

Attention is taken to be fused: no scores ``[T, T]`` in memory.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .errors import InvalidProblemError, UnsupportedError
from .plans.core import Target

DEFAULT_TOKENS = 2048  # max_num_batched_tokens of vLLM
# What says that some layers cache something else than keys and values of the whole context.
_OTHER_CACHES = (
    "kv_lora_rank", "attn_layer_indices", "attn_layer_period", "attn_type_list", "layers_block_type", "block_types", "block_configs",
    "hybrid_override_pattern", "hybrid_layer_pattern", "full_attn_idxs", "cross_attention_layers", "num_kv_shared_layers", "use_cla",
    "ssm_cfg", "state_size", "ssm_state_size", "mamba_d_state", "linear_num_value_heads", "compress_ratios", "per_layer_config",
    "global_head_dim", "v_head_dim", "H_cycles", "prompt_length",
)  # fmt: skip
# Kinds of layers that keep the latest tokens alone, and what says how many.
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_KV_HEADS = re.compile(r"(?<!q)kv|key_value|multi_query|(attention|query)_group")  # names of settings that count key/value heads


@dataclass(frozen=True, kw_only=True)
class Use:
    """How a model is used: ``batch`` sequences of ``context`` tokens, ``tokens`` computed at once, on ``devices`` devices of one kind."""

    context: int = 0
    batch: int = 1
    tokens: int | None = None
    devices: int = 1
    target: Target = Target(backend="triton", device="cuda", arch=90)

    def __post_init__(self):
        for name, least in (("context", 0), ("batch", 1), ("devices", 1), ("tokens", 1)):
            value = getattr(self, name)
            if not (name == "tokens" and value is None) and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InvalidProblemError(f"{name} must be a whole number >= {least}, got {value!r}")

    @property
    def at_once(self) -> int:
        """Tokens in one forward: those asked for, else what an engine batches, at most all there are."""
        if self.tokens is not None:
            return self.tokens
        return max(min(DEFAULT_TOKENS, self.batch * self.context), self.batch)


def kv_cache_bytes(config: Mapping, use: Use, dtype: torch.dtype) -> int:
    """``2 x layers x key/value heads x head_dim x context x batch`` values of ``dtype``, per device.

    Raises:
        UnsupportedError: the config says, or may say, that not every layer caches that.
    """
    what = "KV cache"
    text = _text_config(config, what)
    made = _names(config, "architectures", what) or ["CausalLM"]
    if not any(part in name for name in made for part in ("CausalLM", "LMHead", "ConditionalGeneration")):
        raise UnsupportedError(f"{what}: cannot tell, {', '.join(made)} is not known to generate text")
    if other := next((key for key in _OTHER_CACHES if text.get(key)), None):
        raise UnsupportedError(f"{what}: cannot tell, {other} = {text[other]!r:.80} says that layers cache something else")
    kinds = set(_names(text, "layer_types", what)) - {"full_attention"}
    if kinds - _WINDOWS.keys():
        raise UnsupportedError(f"{what}: cannot tell, layers of type {', '.join(sorted(kinds))} cache something else")
    for kind, key in _WINDOWS.items():
        window = text.get(key) if text.get(f"use_{key}", True) else None
        if (kind in kinds or window and not text.get("layer_types")) and not (isinstance(window, int) and use.context <= window):
            raise UnsupportedError(f"{what}: cannot tell, layers attend to {key} = {window!r:.80} of {use.context} tokens, and engines "
                                   "differ in what they keep")  # fmt: skip
    layers, heads, width = (_number(text, key, what) for key in ("num_hidden_layers", "num_key_value_heads", "head_dim"))
    return 2 * layers * -(-heads // use.devices) * width * use.context * use.batch * dtype.itemsize


def activation_bytes(config: Mapping, use: Use, dtype: torch.dtype) -> int:
    """See the module; ``use.at_once`` tokens, per device.

    Raises:
        UnsupportedError: the config lacks a size.
    """
    what = "activations"
    text = _text_config(config, what)
    hidden, heads, kv, width, vocabulary = (
        _number(text, key, what) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"))
    q, v = heads * width // use.devices, kv * width // use.devices
    size, sizes = dtype.itemsize, []
    sizes.append(2 * hidden * 4)
    sizes.append((4 * q + 2 * v) * size)
    if text.get("num_experts_per_tok"):
        wide = "moe_intermediate_size" if "moe_intermediate_size" in text else "intermediate_size"
        per_token, expert = (_number(text, key, what) for key in ("num_experts_per_tok", wide))
        sizes.append(per_token * (hidden + 3 * expert) * size + 3 * per_token * hidden * 4)
    else:
        sizes.append(3 * _number(text, "intermediate_size", what) // use.devices * size)
    return (4 * hidden * size + max(sizes)) * use.at_once + use.batch * vocabulary * (size + 4)


def language_part(config: Mapping) -> Mapping:
    """The part of a config.json that describes the language model: empty where that is no JSON object."""
    text = config.get("text_config") or config
    return text if isinstance(text, Mapping) else {}


def ties_embeddings(config: Mapping) -> bool:
    """Whether ``lm_head`` is the embedding: releases of Transformers differ in whether the model or its language part says so."""
    return any(bool(part.get("tie_word_embeddings")) for part in (config, language_part(config)))


def _text_config(config: Mapping, what: str) -> Mapping:
    """:func:`language_part` with what it leaves to a rule filled in."""
    if not config:
        raise UnsupportedError(f"{what}: cannot tell, there is no config.json beside the weights")
    if config.get("is_encoder_decoder"):
        raise UnsupportedError(f"{what}: cannot tell of an encoder and decoder")
    text = dict(language_part(config))
    heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    if isinstance(heads, int) and heads > 0:
        if text.get("num_key_value_heads") is None:
            text["num_key_value_heads"] = _kv_heads(text, heads, what)
        if not text.get("head_dim") and isinstance(hidden, int):
            text["head_dim"] = text.get("kv_channels") or hidden // heads
    return text


def _kv_heads(text: Mapping, heads: int, what: str) -> int:
    """Key/value heads without ``num_key_value_heads``: one with Falcon's ``multi_query``, as many as query heads where nothing counts.

    Falcon's new decoder ignores ``multi_query``; Transformers caches its ``num_kv_heads`` once for each query head, other engines once.
    """
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    if named := next((key for key in text if text[key] and key != "kv_channels" and _KV_HEADS.search(key)), None):
        raise UnsupportedError(f"{what}: cannot tell, config.json has no num_key_value_heads, and {named} = {text[named]!r:.80}")
    return heads


def _names(part: Mapping, key: str, what: str) -> list[str]:
    names = part.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UnsupportedError(f"{what}: cannot tell, config.json has {key} = {names!r:.80}")
    return names


def _number(text: Mapping, key: str, what: str) -> int:
    value = text.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedError(f"{what}: cannot tell, config.json has {key} = {value!r:.80}" if key in text else
                               f"{what}: cannot tell, config.json has no {key}")  # fmt: skip
    return value


def heads_refused(config: Mapping, devices: int) -> str | None:
    """Why attention cannot be split: whole heads go to a device."""
    if devices == 1:
        return None
    text = language_part(config)
    for key in ("num_attention_heads", "num_key_value_heads"):
        heads = text.get(key)
        if isinstance(heads, int) and heads % devices:
            return f"{key} = {heads} cannot be split over {devices} devices"
    return None
