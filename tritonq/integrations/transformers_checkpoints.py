"""Floor 7. Hugging Face Transformers 5: checkpoints that other libraries quantized, straight onto tritonq's kernels.

>>> from tritonq.integrations.transformers_checkpoints import checkpoint_config  # doctest: +SKIP
>>> AutoModelForCausalLM.from_pretrained(PATH, config=checkpoint_config(PATH))  # doctest: +SKIP

Any family of :mod:`tritonq.checkpoints.families` is read: this file knows none by name. Which weights are quantized, and how, is what
their files say, not config.json. Nothing is quantized again. The model is then one of :mod:`tritonq.integrations.transformers`:
``save_pretrained`` writes a tritonq checkpoint.
"""
from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..checkpoints.checkpoint import of_source
from ..checkpoints.families import FAMILIES
from ..checkpoints.family import Family, Record
from ..checkpoints.native import FAMILY, to_tensors
from ..checkpoints.source import of_files
from ..errors import CheckpointError, UnsupportedError
from ..nn.convert import parameters_of
from ..nn.modules import QuantLinear
from ..scheme import Scheme
from .transformers import TritonQConfig, TritonQQuantizer, _empty

METHOD = "tritonq_checkpoint"  # while loading; what is saved is of method "tritonq"
_KNOWN = {family.name: family for family in FAMILIES}


def checkpoint_config(path, **kwargs) -> PreTrainedConfig:
    """The model's configuration, changed so that ``from_pretrained(path, config=...)`` loads the quantized weights onto tritonq's kernels.

    Transformers takes the quantizer from the checkpoint's config.json and refuses a ``quantization_config`` of another class, so it is
    the configuration that has to say it. ``kwargs`` go to ``AutoConfig.from_pretrained``.

    Raises:
        CheckpointError: the configuration names no method, or one whose checkpoints are not read.
    """
    config = AutoConfig.from_pretrained(path, **kwargs)
    described = getattr(config, "quantization_config", None)
    method = described.get("quant_method") if isinstance(described, dict) else None
    if method not in _KNOWN:
        raise CheckpointError(f"{path}: config.json says quant_method {method!r}; read are {', '.join(_KNOWN)}")
    if method != FAMILY:
        config.quantization_config = {"quant_method": METHOD, "family": method}
    return config


@register_quantization_config(METHOD)
class CheckpointConfig(QuantizationConfigMixin):
    """Says while a model is loaded which family its files are of; :func:`checkpoint_config` makes it."""

    def __init__(self, family: str, **kwargs):
        if family not in _KNOWN:
            raise CheckpointError(f"quantization_config: family must be one of {', '.join(_KNOWN)}, got {family!r}")
        self.quant_method, self.family = METHOD, family


@register_quantizer(METHOD)
class CheckpointQuantizer(TritonQQuantizer):
    """Puts layers of the schemes that the files hold into a model, and has each weight assembled from its stored tensors."""

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        checkpoint = of_source(of_files(checkpoint_files or ()))
        if checkpoint.family != self.quantization_config.family:
            raise CheckpointError(f"{checkpoint.source.path}: is of family {checkpoint.family!r}, its config.json "
                                  f"says {self.quantization_config.family!r}")  # fmt: skip
        head = model.get_output_embeddings() if getattr(model.config, "tie_word_embeddings", False) else None
        replaceable = {one.name: one for one in parameters_of(model) if one.is_weight and one.module is not head}
        for name, record in checkpoint.records.items():
            one = next((replaceable[key] for key in _spellings(name, model.base_model_prefix) if key in replaceable), None)
            if one is None or not hasattr(one.module, "out_features") or tuple(one.tensor.shape) != record.shape:
                rule = f"the checkpoint holds it quantized, {list(record.shape)}, and this model has no Linear of that name and shape"
                raise UnsupportedError(f"{name}: {rule} of its own (fused experts and tied heads cannot take it)")
            one.replace(model, _empty(one.module, Scheme.parse(record.scheme), record.dtype))

    def get_weight_conversions(self) -> list:
        family = _KNOWN[self.quantization_config.family]
        longest_first = sorted(family.stored_names("weight"), key=len, reverse=True)  # Transformers 5.19 takes the first that matches
        return [WeightConverter(longest_first, "weight", [_Assemble(family)])]

    def get_new_dtype(self, converter, param, dtype):
        """Stored tensors come as they are; ``_Assemble`` casts those that are no part of a quantized weight."""
        return None if _assembles(converter) else super().get_new_dtype(converter, param, dtype)

    def _process_model_after_weight_loading(self, model, **kwargs):
        self.quantization_config = model.config.quantization_config = TritonQConfig()
        model.quantization_method = FAMILY
        model._weight_conversions = [one for one in model._weight_conversions if not _assembles(one)]  # they are for loading alone
        return super()._process_model_after_weight_loading(model, **kwargs)


class _Assemble(ConversionOps):
    """The stored tensors of one weight to those that its layer holds."""

    def __init__(self, family: Family):
        self.family = family

    def convert(self, input_dict, full_layer_name=None, model=None, missing_keys=None, **kwargs):
        tensors = {stored: value[0] if isinstance(value, list) else value for stored, value in input_dict.items()}
        module = model.get_submodule(full_layer_name.rpartition(".")[0])
        if not isinstance(module, QuantLinear):
            return {full_layer_name: tensors["weight"].to(module.weight.dtype)}
        made = to_tensors(full_layer_name, self.family.assemble("weight", Record.of(module.qtensor), tensors))
        if missing_keys is not None:
            missing_keys.difference_update(made)
        module._is_hf_initialized = True
        return made


def _assembles(converter) -> bool:
    return any(isinstance(op, _Assemble) for op in getattr(converter, "operations", ()))


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    """A weight's name with and without the prefix that a head adds to its model."""
    return name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")
