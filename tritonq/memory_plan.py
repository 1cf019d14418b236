"""Floor 6. What a model takes in memory, counted and not guessed: weights tensor by tensor, KV cache, activations, workspace, load peak.

Weights are counted in the layout that the device's kernels read, scales, zero points and padding included, and per device where
tensor parallelism splits them (:mod:`tritonq.distributed`). What a config.json does not say plainly is refused with the reason.

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
from math import prod

import torch

from .checkpoints.rules import Rules
from .checkpoints.source import Source
from .checkpoints.tensorfile import Entry
from .errors import InvalidProblemError, TritonQError, UnsupportedError
from .nn.weight import layout_on
from .plans.core import Target
from .plans.descriptors import MatmulDesc
from .plans.select import select
from .qtensor import NAMED_DTYPES, expected_flat
from .scheme import Scheme
from .shards import check_parts

# Modules that tensor parallelism splits, by the names of Transformers' models (base_model_tp_plan): along N, and along K.
COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
ROW = ("o_proj", "down_proj")
DEFAULT_TOKENS = 2048  # max_num_batched_tokens of vLLM
# What says that some layers cache something else than keys and values of the whole context.
_OTHER_CACHES = ("kv_lora_rank", "attn_layer_indices", "attn_layer_period", "layers_block_type", "block_types", "cross_attention_layers",
                 "num_kv_shared_layers", "ssm_cfg", "state_size", "mamba_d_state", "linear_num_value_heads", "compress_ratios")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on each of ``devices`` equal devices. None: cannot be told, ``unknown`` says why.

    Attributes:
        scheme: that weights get, None for the checkpoint as it is.
        saved: of all weights in a file, scales counted: what ``tritonq quantize`` writes.
        weights: of all tensors in memory.
        kv_cache: keys and values of ``batch`` sequences of ``context`` tokens.
        activations: see the module. Without a context neither is counted: 0.
        workspace: the most that a product of the plan takes (``plan.workspace_size()``).
        load_peak: the most while weights are quantized as they are read: all of them and the largest one in its own dtype.
        refused: why the weights cannot be split over the devices.
    """

    scheme: str | None
    devices: int
    saved: int
    weights: int
    kv_cache: int | None
    activations: int | None
    workspace: int
    load_peak: int
    unknown: tuple[str, ...] = ()
    refused: str | None = None

    @property
    def running(self) -> int:
        """Everything at work; what cannot be told counts as nothing."""
        return self.weights + (self.kv_cache or 0) + (self.activations or 0) + self.workspace

    @property
    def needed(self) -> int:
        return max(self.running, self.load_peak)

    def fits(self, memory: int) -> bool | None:
        """Whether a device of ``memory`` bytes is enough; None where only something that cannot be told decides."""
        if self.refused or self.needed > memory:
            return False
        return None if self.unknown else True


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


def plan_memory(source: Source, scheme: str | Scheme | dict[str, str] | Rules | None, use: Use = Use()) -> MemoryPlan:  # noqa: B008
    """What ``source`` (:func:`tritonq.checkpoints.open` gives it) takes with its weights quantized.

    Args:
        source: original weights.
        scheme: as for :func:`tritonq.quantize_`, or rules; None: as it is.
        use: what is asked of the model.

    Example:
        >>> from tritonq import checkpoints
        >>> plan_memory(checkpoints.open("MODEL").source, "nf4", Use(context=8192, batch=8)).fits(24 << 30)  # doctest: +SKIP
        True
    """
    rules = scheme if isinstance(scheme, Rules) or scheme is None else Rules.parse(scheme)
    entries, schemes = entries_of(source), chosen_schemes(source, rules)
    dtype = model_dtype(source)
    saved = weights = largest = 0
    refused, products = None, set()
    for entry in entries:
        chosen = schemes[entry.name]
        saved += bytes_of(entry, chosen, 1, None)[0]
        size, why = bytes_of(entry, chosen, use.devices, use.target)
        weights, refused = weights + size, refused or why
        if chosen is not None:
            largest = max(largest, entry.nbytes)
            products |= _products(entry, chosen, dtype, use)
    refused = refused or _heads_refused(source.config, use.devices)
    workspace, why = _workspace(products)
    known: dict[str, int | None] = {"kv_cache": 0, "activations": 0}
    unknown = [why] if why else []
    for name, count in (("kv_cache", kv_cache_bytes), ("activations", activation_bytes)) if use.context else ():
        try:
            known[name] = count(source.config, use, dtype)
        except UnsupportedError as error:
            known[name] = None
            unknown.append(str(error))
    text = None if rules is None else str(rules.default) if not rules.patterns else "assigned"
    return MemoryPlan(scheme=text, devices=use.devices, saved=saved, weights=weights, workspace=workspace, load_peak=weights + largest,
                      unknown=tuple(unknown), refused=refused, **known)  # fmt: skip


def entries_of(source: Source) -> list[Entry]:
    return [entry for file in source.files for entry in file.entries.values()]


def chosen_schemes(source: Source, rules: Rules | None) -> dict[str, Scheme | None]:
    """The scheme of each tensor, by the rule of a quantize job; None: kept."""
    entries = entries_of(source)
    if rules is None:
        return dict.fromkeys(entry.name for entry in entries)
    decisions = rules.decide(entries, tied=bool(source.config.get("tie_word_embeddings")))
    return {entry.name: Scheme.parse(text) if (text := decisions[entry.name].scheme) and entry.numel else None for entry in entries}


def bytes_of(entry: Entry, scheme: Scheme | None, devices: int, target: Target | None) -> tuple[int, str | None]:
    """(bytes of a tensor on each device, why it cannot be split); ``target`` None: as saved, in layout ``row``."""
    axis = split_axis(entry.name) if devices > 1 else None
    if scheme is None:
        split = axis is not None and axis < len(entry.shape) and entry.shape[axis] % devices == 0  # a row-split layer's bias is kept whole
        return entry.nbytes // devices if split else entry.nbytes, None
    shape, dtype, refused = (prod(entry.shape[:-1]), entry.shape[-1]), entry.torch_dtype, None
    if axis is not None and len(entry.shape) == 2:
        try:
            check_parts(scheme, shape, axis, devices, name=entry.name)
            shape = tuple(n // devices if i == axis else n for i, n in enumerate(shape))
        except InvalidProblemError as error:
            refused = str(error)
    layout = "row" if target is None else layout_on(scheme, dtype, target)
    if len(entry.shape) == 3 and layout != "row":  # each expert is laid out by itself
        one = _size(scheme, (entry.shape[1], entry.shape[2]), dtype, layout)
        return entry.shape[0] * one, refused
    return _size(scheme, shape, dtype, layout), refused


def _size(scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype, layout: str) -> int:
    return sum(prod(size) * kind.itemsize for size, kind in expected_flat(scheme, shape, dtype, layout).values())


def split_axis(name: str) -> int | None:
    """0 (N) or 1 (K) for the weight, or bias, of a layer that is split; experts and everything else are kept whole by every device."""
    parts = name.split(".")
    if len(parts) < 2 or parts[-1] not in ("weight", "bias") or any("expert" in part for part in parts):
        return None
    return 0 if parts[-2] in COLUMN else 1 if parts[-2] in ROW else None


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


def model_dtype(source: Source) -> torch.dtype:
    """What config.json says the model computes in, else the float dtype of most of its bytes."""
    text = source.config.get("text_config") or source.config
    named = text.get("dtype") or text.get("torch_dtype") or source.config.get("torch_dtype")
    if named in NAMED_DTYPES:
        return NAMED_DTYPES[named]
    totals: dict[torch.dtype, int] = {}
    for entry in entries_of(source):
        if entry.is_float:
            totals[entry.torch_dtype] = totals.get(entry.torch_dtype, 0) + entry.nbytes
    return max(totals, key=totals.get, default=torch.bfloat16)


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


def _heads_refused(config: Mapping, devices: int) -> str | None:
    """Why attention cannot be split: whole heads go to a device."""
    if devices == 1:
        return None
    text = config.get("text_config") or config
    for key in ("num_attention_heads", "num_key_value_heads"):
        heads = text.get(key)
        if isinstance(heads, int) and heads % devices:
            return f"{key} = {heads} cannot be split over {devices} devices"
    return None


def _products(entry: Entry, scheme: Scheme, dtype: torch.dtype, use: Use) -> set[MatmulDesc]:
    """With this weight: for one token of each sequence, and for all that are computed at once."""
    axis = split_axis(entry.name) if use.devices > 1 else None
    n, k = (size // use.devices if i == axis else size for i, size in enumerate(entry.shape[-2:]))
    layout = layout_on(scheme, entry.torch_dtype, use.target)
    return {MatmulDesc(m=m, n=n, k=k, dtype=dtype, scheme=scheme, target=use.target, source_dtype=entry.torch_dtype, layout=layout)
            for m in (use.batch, use.at_once)}  # fmt: skip


def _workspace(products: set[MatmulDesc]) -> tuple[int, str | None]:
    """(the most that one of the products takes, why it cannot be told)."""
    most = 0
    for desc in products:
        try:
            most = max(most, select(desc).workspace_size())
        except TritonQError as error:
            return 0, f"workspace: cannot tell, {error}"
    return most, None
