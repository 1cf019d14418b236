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

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .errors import InvalidProblemError, UnsupportedError
from .plans.core import Target

DEFAULT_TOKENS = 2048  # max_num_batched_tokens of vLLM
# What says that some layers cache something else than keys and values of the whole context.
_OTHER_CACHES = ("kv_lora_rank", "attn_layer_indices", "attn_layer_period", "layers_block_type", "block_types", "cross_attention_layers",
                 "num_kv_shared_layers", "ssm_cfg", "state_size", "mamba_d_state", "linear_num_value_heads", "compress_ratios")  # fmt: skip


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
    text = _text_config(config, "KV cache")
    made = config.get("architectures") or ["CausalLM"]
    if not any(part in str(name) for name in made for part in ("CausalLM", "LMHead", "ConditionalGeneration")):
        raise UnsupportedError(f"KV cache: cannot tell, {', '.join(map(str, made))} is not known to generate text")
    if other := next((key for key in _OTHER_CACHES if text.get(key)), None):
        raise UnsupportedError(f"KV cache: cannot tell, {other} = {text[other]!r} says that layers cache something else")
    kinds = set(text.get("layer_types") or ()) - {"full_attention"}
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    if kinds - {"sliding_attention"}:
        raise UnsupportedError(f"KV cache: cannot tell, layers of type {', '.join(sorted(kinds))} cache something else")
    if (kinds or window and not text.get("layer_types")) and not (isinstance(window, int) and use.context <= window):
        raise UnsupportedError(f"KV cache: cannot tell, layers attend to a sliding window of {window} of {use.context} tokens, and engines "
                               "differ in what they keep")  # fmt: skip
    layers, heads, width = (_number(text, key, "KV cache") for key in ("num_hidden_layers", "num_key_value_heads", "head_dim"))
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
    per_token, expert = text.get("num_experts_per_tok"), text.get("moe_intermediate_size", text.get("intermediate_size"))
    if per_token:
        if not expert:
            raise UnsupportedError(f"{what}: cannot tell, config.json has no moe_intermediate_size")
        sizes.append(per_token * (hidden + 3 * expert) * size + 3 * per_token * hidden * 4)
    else:
        sizes.append(3 * _number(text, "intermediate_size", what) // use.devices * size)
    return (4 * hidden * size + max(sizes)) * use.at_once + use.batch * vocabulary * (size + 4)


def _text_config(config: Mapping, what: str) -> Mapping:
    """The part of a config.json that describes the language model, with what it leaves to a rule filled in."""
    if not config:
        raise UnsupportedError(f"{what}: cannot tell, there is no config.json beside the weights")
    text = dict(config.get("text_config") or config)
    if config.get("is_encoder_decoder"):
        raise UnsupportedError(f"{what}: cannot tell of an encoder and decoder")
    heads = text.get("num_attention_heads")
    if isinstance(heads, int) and heads > 0:
        text["num_key_value_heads"] = text.get("num_key_value_heads") or heads
        hidden = text.get("hidden_size")
        if not text.get("head_dim") and isinstance(hidden, int):
            text["head_dim"] = hidden // heads
    return text


def _number(text: Mapping, key: str, what: str) -> int:
    value = text.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedError(f"{what}: cannot tell, config.json has {key} = {value!r}" if key in text else
                               f"{what}: cannot tell, config.json has no {key}")  # fmt: skip
    return value


def heads_refused(config: Mapping, devices: int) -> str | None:
    """Why attention cannot be split: whole heads go to a device."""
    if devices == 1:
        return None
    text = config.get("text_config") or config
    for key in ("num_attention_heads", "num_key_value_heads"):
        heads = text.get(key)
        if isinstance(heads, int) and heads % devices:
            return f"{key} = {heads} cannot be split over {devices} devices"
    return None
