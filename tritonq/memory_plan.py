"""Floor 6. What a model takes in memory, counted and not guessed: weights tensor by tensor, KV cache, activations, workspace, load peak.

Weights are counted in the layout that the device's kernels read, scales, zero points and padding included, and per device where
tensor parallelism splits them (:mod:`tritonq.distributed`). What a config.json does not say plainly is refused with the reason.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from .checkpoints.rules import Rules
from .checkpoints.source import Source
from .checkpoints.tensorfile import Entry
from .dtypes import NAMED_DTYPES
from .errors import InvalidProblemError, TritonQError, UnsupportedError
from .model_config import Use, activation_bytes, heads_refused, kv_cache_bytes, language_part, ties_embeddings
from .nn.weight import layout_on
from .plans.core import Target
from .plans.descriptors import MatmulDesc
from .plans.select import select
from .qtensor import expected_bytes
from .scheme import Scheme
from .shards import check_parts

# Modules that tensor parallelism splits, by the names of Transformers' models (base_model_tp_plan): along N, and along K.
COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
ROW = ("o_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on each of ``devices`` equal devices. None: cannot be told, ``unknown`` says why.

    Attributes:
        scheme: that weights get, None for the checkpoint as it is.
        saved: of all weights in a file, scales counted: what ``tritonq quantize`` writes.
        weights: of all tensors in memory.
        kv_cache: keys and values of ``batch`` sequences of ``context`` tokens.
        activations: see :mod:`tritonq.model_config`. Without a context neither is counted: 0.
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
    entries, schemes = source.entries, chosen_schemes(source, rules)
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
    refused = refused or heads_refused(source.config, use.devices)
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


def chosen_schemes(source: Source, rules: Rules | None) -> dict[str, Scheme | None]:
    """The scheme of each tensor, by the rule of a quantize job; None: kept."""
    entries = source.entries
    if rules is None:
        return dict.fromkeys(entry.name for entry in entries)
    decisions = rules.decide(entries, tied=ties_embeddings(source.config))
    return {entry.name: Scheme.parse(text) if (text := decisions[entry.name].scheme) else None for entry in entries}


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
        one = expected_bytes(scheme, (entry.shape[1], entry.shape[2]), dtype, layout)
        return entry.shape[0] * one, refused
    return expected_bytes(scheme, shape, dtype, layout), refused


def split_axis(name: str) -> int | None:
    """0 (N) or 1 (K) for the weight, or bias, of a layer that is split; experts and everything else are kept whole by every device."""
    parts = name.split(".")
    if len(parts) < 2 or parts[-1] not in ("weight", "bias") or any("expert" in part for part in parts):
        return None
    return 0 if parts[-2] in COLUMN else 1 if parts[-2] in ROW else None


def model_dtype(source: Source) -> torch.dtype:
    """What config.json says the model computes in, else the float dtype of most of its bytes."""
    parts = (language_part(source.config), source.config)
    named = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), None)
    if isinstance(named, str) and named in NAMED_DTYPES:
        return NAMED_DTYPES[named]
    totals: dict[torch.dtype, int] = {}
    for entry in source.entries:
        if entry.is_float:
            totals[entry.torch_dtype] = totals.get(entry.torch_dtype, 0) + entry.nbytes
    return max(totals, key=totals.get, default=torch.bfloat16)


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
