"""Floor 7. Adapters of Hugging Face PEFT on quantized layers. Importing registers them: LoRA then takes :class:`tritonq.nn.QuantLinear`.

>>> import tritonq.integrations.peft  # doctest: +SKIP
>>> model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))  # doctest: +SKIP

PEFT 0.21 knows no registry for layers of other packages but a private one of each config, which is not saved with an adapter, so that
an adapter could not be loaded by its path alone. This module therefore puts itself before two functions of PEFT, once.
"""
from __future__ import annotations

import warnings

import torch
from peft.tuners import tuners_utils
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge

from ..errors import InvalidProblemError, UnsupportedError
from ..nn import QuantLinear
from ..ops import quantize

# What init_lora_weights may be: the other ways (pissa, olora, loftq, corda, mica, lora_ga) compute with the weight, some replace it.
_INITS = (True, False, "gaussian", "eva", "orthogonal")


class LoraQuantLinear(LoraLinear):
    """``base(x) + B(A(dropout(x))) * scaling`` around a frozen :class:`QuantLinear`; what PEFT puts in its place.

    The base layer's gradient of x comes straight from the packed weight; nothing that was decoded is kept for it. Adapters are float32
    parameters (``autocast_adapter_dtype`` of PEFT), whatever the weight is.

    ``merge`` decodes the weight in float32, adds the adapters and quantizes the sum under the same scheme, which rounds anew (the
    adapters' part that is smaller than a step is lost; evaluate what was merged). ``unmerge`` gives back the very codes from before, which
    are kept meanwhile.

    Raises:
        UnsupportedError: an ``init_lora_weights`` or a variant (DoRA and others) that computes with the weight itself.
        InvalidProblemError: ``merge(safe_merge=True)`` where the sum is not finite.
    """

    def resolve_lora_variant(self, *, config, **kwargs):
        variant = super().resolve_lora_variant(config=config, **kwargs)
        if variant is not None:
            raise UnsupportedError(f"{type(variant).__name__} computes with the weight, which is quantized and frozen; use plain LoRA")
        return

    def update_layer(self, adapter_name, r, lora_alpha, config, **kwargs):
        init = config.init_lora_weights
        if init not in _INITS:
            rule = "computes with the weight, which is quantized and frozen"
            raise UnsupportedError(f"init_lora_weights={init!r} {rule}; take one of {', '.join(map(repr, _INITS))}")
        super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        if not names:
            return
        base = self.get_base_layer()
        before, before_bias = self._before_merge if self.merged_adapters else (base.qtensor, base.bias)
        if any(self.lora_bias[name] for name in names) and before_bias is None:
            raise UnsupportedError("the adapter has a bias (lora_bias=True) and the layer has none; it cannot be merged")
        weight = before.dequantize(torch.float32)
        bias = None if before_bias is None else before_bias.detach().clone()
        for name in (*self.merged_adapters, *names):
            weight += self.get_delta_weight(name).to(weight)
            if self.lora_bias[name]:
                bias += (self.lora_B[name].bias.detach() * self.scaling[name]).to(bias)
        if safe_merge and not bool(weight.isfinite().all()):
            raise InvalidProblemError(f"the weight is not finite with the adapters {', '.join(names)}; nothing was merged")
        g_idx = before.g_idx if before.column_order is not None else None
        base.qtensor = quantize(weight.to(before.dtype), before.scheme, g_idx=g_idx)
        if bias is not None:
            base.bias = torch.nn.Parameter(bias, requires_grad=before_bias.requires_grad)
        self._before_merge = before, before_bias
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        if not self.merged_adapters:
            return
        base = self.get_base_layer()
        base.qtensor, base.bias = self._before_merge
        self.merged_adapters.clear()
        del self._before_merge


def _create_new_module(lora_config, adapter_name, target, **kwargs):
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if isinstance(base, QuantLinear):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # said of every layer that is not PEFT's own
            return LoraQuantLinear(target, adapter_name, config=lora_config, **kwargs)
    return _peft_create(lora_config, adapter_name, target, **kwargs)


def _include_all_linear(peft_config, model):
    """``target_modules="all-linear"`` counts QuantLinear layers too; the output layer stays out, as PEFT has it."""
    named = getattr(peft_config, "target_modules", None)
    asked = isinstance(named, str) and named.lower() == tuners_utils.INCLUDE_LINEAR_LAYERS_SHORTHAND
    peft_config = _peft_all_linear(peft_config, model)
    if asked:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        ours = {name for name, module in model.named_modules() if isinstance(module, QuantLinear) and module is not head}
        peft_config.target_modules = set(peft_config.target_modules) | ours
    return peft_config


if LoraModel._create_new_module is not _create_new_module:
    _peft_create, _peft_all_linear = LoraModel._create_new_module, tuners_utils._maybe_include_all_linear_layers
    LoraModel._create_new_module = staticmethod(_create_new_module)
    tuners_utils._maybe_include_all_linear_layers = _include_all_linear
