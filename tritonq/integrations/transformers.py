"""Floor 7. Hugging Face Transformers 5: quantize while loading, save, load what ``tritonq quantize`` wrote. Importing registers it.

>>> import tritonq.integrations.transformers  # doctest: +SKIP
>>> AutoModelForCausalLM.from_pretrained("MODEL", quantization_config=TritonQConfig("nf4"))  # doctest: +SKIP
"""
from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..checkpoints.native import (
    FAMILY,
    FORMAT_VERSION,
    METADATA_KEY,
    Record,
    header_metadata,
    quantization_config,
    stored_names,
    to_tensors,
)
from ..checkpoints.rules import Rules
from ..dtypes import NAMED_DTYPES
from ..errors import CheckpointError, UnsupportedError
from ..nn.convert import FoundParameter, before_saving, decide, decode_what_is_read, parameters_of, places, put
from ..nn.experts import WEIGHTS, QuantExperts, is_experts, quantize_stack
from ..nn.modules import QuantEmbedding, QuantLinear
from ..nn.weight import QuantizedModule
from ..ops import quantize
from ..qtensor import QTensor
from ..scheme import Scheme
from .transformers_experts import common_scheme, empty_experts, stored_as, with_companions


@register_quantization_config(FAMILY)
class TritonQConfig(QuantizationConfigMixin):
    """What ``quantization_config`` of a config.json holds, and what ``from_pretrained(..., quantization_config=)`` takes.

    Args:
        scheme: of every weight that nothing else names.
        overrides: ``{glob of parameter names: scheme}``; the first that matches counts.
        exclude: globs of parameter names to keep.
        kept: written when a model is saved: the parameters that were kept. None quantizes by the rule of :func:`tritonq.quantize_`.
        dtype: written when a model is saved: the dtype that its weights had.
        format_version: of the checkpoint.
        quant_method: as config.json says it.

    Raises:
        TritonQError: an unknown argument, scheme, dtype or format_version, or globs that are no list.
    """

    def __init__(self, scheme: str = "nf4", overrides: dict[str, str] | None = None, exclude: list[str] | None = None,
                 kept: list[str] | None = None, dtype: str | None = None, format_version: int = FORMAT_VERSION, *,
                 quant_method: str = FAMILY, **unknown):  # fmt: skip
        if unknown:
            rule = "known are scheme, overrides, exclude, kept, dtype and format_version"
            raise CheckpointError(f"quantization_config: {', '.join(sorted(unknown))}: unknown; {rule}")
        if quant_method != FAMILY:
            raise CheckpointError(f"quantization_config: quant_method {quant_method!r} is not {FAMILY!r}, which this class describes")
        if format_version != FORMAT_VERSION:
            raise CheckpointError(f"quantization_config: format_version {format_version!r} is unknown (known: {FORMAT_VERSION})")
        if dtype is not None and dtype not in NAMED_DTYPES:
            raise CheckpointError(f"quantization_config: dtype must be one of {', '.join(NAMED_DTYPES)}, got {dtype!r}")
        self.quant_method = FAMILY
        self.scheme, self.kept, self.dtype, self.format_version = str(Scheme.parse(scheme)), kept, dtype, format_version
        self.overrides = {name: str(Scheme.parse(text)) for name, text in (overrides or {}).items()}
        self.exclude = [*Rules.parse(scheme, exclude=exclude or ()).exclude]


@register_quantizer(FAMILY)
class TritonQQuantizer(HfQuantizer):
    """Puts :class:`QuantLinear` modules into a model that is on the meta device, and completes them once their tensors are there."""

    requires_calibration = False
    _hooks = ()

    def validate_environment(self, *args, **kwargs) -> None:
        """Nothing beyond what importing this module needs."""

    def _process_model_before_weight_loading(self, model, **kwargs):
        found, config = parameters_of(model), self.quantization_config
        if self.pre_quantized:
            schemes = {one.name: self._stored_scheme(model, one) for one in found}
            lost = [one.name for one in found if one.tensor.dim() > 2 and schemes[one.name] is not None and not one.is_weight]
            if lost:
                rule = "the checkpoint holds these experts quantized, and no module here can take them"
                raise UnsupportedError(f"{', '.join(lost)}: {rule}; quantize the model with --exclude for them")
        else:
            rules = Rules.parse({**config.overrides, "*": config.scheme}, exclude=config.exclude)
            schemes = {one.name: scheme for one, (scheme, _) in zip(found, decide(found, rules), strict=True)}
        head = model.get_output_embeddings() if getattr(model.config, "tie_word_embeddings", False) else None
        hooks = self._hooks = []
        for one in found:
            dtype = one.tensor.dtype if config.dtype is None else NAMED_DTYPES[config.dtype]
            if schemes[one.name] is None or not one.is_weight or one.module is head:
                continue
            if type(one.module) is torch.nn.Linear:
                one.replace(model, _empty(one.module, Scheme.parse(schemes[one.name]), dtype))
            elif is_experts(one.module) and one.own_name == WEIGHTS[0]:
                both = {name: schemes[f"{one.path}.{name}"] for name in WEIGHTS}
                common_scheme(one.path, {name: scheme and "quantized" for name, scheme in both.items()})
                one.replace(model, empty_experts(one.module, both, dtype))
            if not self.pre_quantized:
                hooks.append(_announce(model.get_submodule(one.path), one))

    def _stored_scheme(self, model, one: FoundParameter) -> str | None:
        """The scheme that a checkpoint says a parameter has; None: it was kept."""
        config, kept = self.quantization_config, set(self.quantization_config.kept or ())
        if one.tensor.dim() < 2:
            return None
        parts = [one.name] if one.name in kept or one.name in config.overrides else stored_as(model, one.name, tuple(one.tensor.shape))
        return common_scheme(one.name, {part: None if part in kept else config.overrides.get(part, config.scheme) for part in parts})

    def _process_model_after_weight_loading(self, model, **kwargs):
        for hook in self._hooks:
            hook.remove()
        for module in model.modules():
            if isinstance(module, QuantizedModule):
                module.complete()
        if self.pre_quantized:
            decode_what_is_read(model)
        if getattr(model, "_weight_conversions", None) is not None:
            model._weight_conversions = with_companions(model._weight_conversions, model)  # for saving
        records = _records(model)
        if records:
            described = quantization_config(records, [])
            self.quantization_config.scheme, self.quantization_config.overrides = described["scheme"], described["overrides"]
            self.quantization_config.dtype = described["dtype"]
        left = [one for one in parameters_of(model) if one.tensor.dim() > 1]
        self.quantization_config.kept = [part for one in left for part in stored_as(model, one.name, tuple(one.tensor.shape))]
        return model

    def update_weight_conversions(self, weight_conversions, model=None) -> list:
        """Transformers 5.19 hands over no model: experts cannot be loaded with it, everything else can."""
        conversions = list(weight_conversions) if model is None else with_companions(weight_conversions, model)
        return conversions + self.get_weight_conversions()

    def param_needs_quantization(self, model, param_name: str, **kwargs) -> bool:
        path, _, name = param_name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, QuantExperts):  # True also lets a file hold all rows of all experts as one matrix; see complete()
            return self.pre_quantized or name in WEIGHTS
        return name == "weight" and not self.pre_quantized and isinstance(module, QuantLinear)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize()

    def get_weight_conversions(self) -> list:
        return []  # what is stored is what a module holds

    def get_state_dict_and_metadata(self, model):
        records, state = _records(model), None
        whole = [name for name, record in records.items() if len(record.shape) > 2]
        if whole:  # experts that no converter takes apart: files hold the rows of all as one matrix
            state = model.state_dict()
            for name in (stored for weight in whole for stored in stored_names(weight) if stored in state):
                state[name] = state[name].flatten(0, 1)
        return state, {METADATA_KEY: header_metadata({}, records)[METADATA_KEY]}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters train around the frozen weights."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def _dequantize(self, model, dtype=None):
        dtype = NAMED_DTYPES.get(dtype, dtype)  # text, once a model was saved
        for module, paths in places(model).items():
            if isinstance(module, QuantLinear):
                put(model, paths, module, module.to_linear(dtype))
            elif isinstance(module, QuantExperts):
                put(model, paths, module, module.to_experts(dtype))
        return model


def _describe(model) -> None:
    """Give a model that :func:`tritonq.quantize_` changed what one has that was quantized while it was loaded."""
    if not isinstance(model, PreTrainedModel):
        return
    tables = [path for path, module in model.named_modules() if isinstance(module, QuantEmbedding)]
    if tables:
        rule = "from_pretrained puts no quantized embeddings into a model"
        raise UnsupportedError(f"{', '.join(tables)}: {rule}; keep them, or take tritonq.save(model, path)")
    if _records(model):
        model.hf_quantizer = TritonQQuantizer(TritonQConfig(), pre_quantized=False)
        model.is_quantized, model.quantization_method = True, FAMILY
        model.hf_quantizer.postprocess_model(model)


before_saving.append(_describe)


def _announce(module: torch.nn.Module, one: FoundParameter):
    """Let the state dict say, until the hook is removed, that a weight comes as it was: before 5.23 Transformers casts it to what stands
    there, and only then has it quantized."""
    name, comes = one.own_name, torch.empty_like(one.tensor, device="meta")

    def hook(module, state, prefix, metadata):
        state[prefix + name] = comes

    return module.register_state_dict_post_hook(hook)


class _Quantize(ConversionOps):
    """One weight of a checkpoint to the tensors of its quantized form."""

    def convert(self, input_dict, full_layer_name=None, model=None, missing_keys=None, **kwargs):
        (value,) = input_dict.values()
        path, _, name = full_layer_name.rpartition(".")
        module, value = model.get_submodule(path), value[0] if isinstance(value, list) else value
        make = quantize_stack if isinstance(module, QuantExperts) else quantize
        tensors = to_tensors(full_layer_name, make(value, module._held[name].scheme))
        if missing_keys is not None:
            missing_keys.difference_update(tensors)
        module._is_hf_initialized = True
        return tensors


def _empty(linear: torch.nn.Linear, scheme: Scheme, dtype: torch.dtype) -> QuantLinear:
    """A layer on the meta device for a weight of that scheme and dtype."""
    return QuantLinear(QTensor.on_meta(scheme, tuple(linear.weight.shape), dtype), linear.bias)


def _records(model) -> dict[str, Record]:
    """What a file says of the model's quantized weights, under the names that they have there."""
    records = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, q in module.quantized.items() if isinstance(module, QuantLinear | QuantExperts) else ():
            parts = stored_as(model, f"{path}.{name}", q.shape)
            records |= {part: replace(Record.of(q), shape=shape) for part, shape in parts.items()}
    return records
