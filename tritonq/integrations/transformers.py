"""Floor 7. Hugging Face Transformers 5: quantize while loading, save, load what ``tritonq quantize`` wrote. Importing registers it.

>>> import tritonq.integrations.transformers  # doctest: +SKIP
>>> AutoModelForCausalLM.from_pretrained("MODEL", quantization_config=TritonQConfig("nf4"))  # doctest: +SKIP
"""
from __future__ import annotations

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..checkpoints.native import FAMILY, FORMAT_VERSION, METADATA_KEY, Record, header_metadata, quantization_config, to_tensors
from ..checkpoints.rules import Rules
from ..errors import CheckpointError, UnsupportedError
from ..nn.convert import decide, parameters_of
from ..nn.modules import QuantLinear
from ..ops import quantize
from ..qtensor import NAMED_DTYPES, QTensor, expected_flat
from ..scheme import Scheme


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
    """

    def __init__(self, scheme: str = "nf4", overrides: dict[str, str] | None = None, exclude: list[str] | None = None,
                 kept: list[str] | None = None, dtype: str | None = None, format_version: int = FORMAT_VERSION, **kwargs):  # fmt: skip
        if format_version != FORMAT_VERSION:
            raise CheckpointError(f"quantization_config: format_version {format_version!r} is unknown (known: {FORMAT_VERSION})")
        if dtype is not None and dtype not in NAMED_DTYPES:
            raise CheckpointError(f"quantization_config: dtype must be one of {', '.join(NAMED_DTYPES)}, got {dtype!r}")
        self.quant_method = FAMILY
        self.scheme, self.kept, self.dtype, self.format_version = str(Scheme.parse(scheme)), kept, dtype, format_version
        self.overrides = {name: str(Scheme.parse(text)) for name, text in (overrides or {}).items()}
        self.exclude = list(exclude or [])


@register_quantizer(FAMILY)
class TritonQQuantizer(HfQuantizer):
    """Puts :class:`QuantLinear` modules into a model that is on the meta device, and completes them once their tensors are there."""

    requires_calibration = False

    def validate_environment(self, *args, **kwargs) -> None:
        """Nothing beyond what importing this module needs."""

    def _process_model_before_weight_loading(self, model, **kwargs):
        found, config = parameters_of(model), self.quantization_config
        if self.pre_quantized:
            kept = set(config.kept or ())
            schemes = {one.name: None if one.name in kept else config.overrides.get(one.name, config.scheme) for one in found}
            lost = [one.name for one in found if one.tensor.dim() > 2 and schemes[one.name] is not None]
            if lost:
                rule = "the checkpoint holds these experts quantized, and Transformers' fused experts modules cannot"
                raise UnsupportedError(f"{', '.join(lost)}: {rule}; quantize the model with --exclude for them")
        else:
            rules = Rules.parse({**config.overrides, "*": config.scheme}, exclude=config.exclude)
            schemes = {one.name: scheme for one, (scheme, _) in zip(found, decide(found, rules), strict=True)}
        head = model.get_output_embeddings() if getattr(model.config, "tie_word_embeddings", False) else None
        for one in found:
            if one.is_weight and type(one.module) is torch.nn.Linear and schemes[one.name] is not None and one.module is not head:
                dtype = one.tensor.dtype if config.dtype is None else NAMED_DTYPES[config.dtype]
                model.set_submodule(one.path, _empty(one.module, Scheme.parse(schemes[one.name]), dtype))

    def _process_model_after_weight_loading(self, model, **kwargs):
        for module in model.modules():
            if isinstance(module, QuantLinear):
                module.complete()
        records = _records(model)
        if records:
            described = quantization_config(records, [])
            self.quantization_config.scheme, self.quantization_config.overrides = described["scheme"], described["overrides"]
            self.quantization_config.dtype = described["dtype"]
        self.quantization_config.kept = [one.name for one in parameters_of(model) if one.is_weight]
        return model

    def param_needs_quantization(self, model, param_name: str, **kwargs) -> bool:
        path, _, name = param_name.rpartition(".")
        return name == "weight" and not self.pre_quantized and isinstance(model.get_submodule(path), QuantLinear)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize()

    def get_weight_conversions(self) -> list:
        return []  # what is stored is what a module holds

    def get_state_dict_and_metadata(self, model):
        return None, {METADATA_KEY: header_metadata({}, _records(model))[METADATA_KEY]}

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
        for path, module in list(model.named_modules()):
            if isinstance(module, QuantLinear):
                model.set_submodule(path, module.to_linear(dtype))
        return model


class _Quantize(ConversionOps):
    """One weight of a checkpoint to the tensors of its quantized form."""

    def convert(self, input_dict, full_layer_name=None, model=None, missing_keys=None, **kwargs):
        (value,) = input_dict.values()
        module = model.get_submodule(full_layer_name.rpartition(".")[0])
        tensors = to_tensors(full_layer_name, quantize(value[0] if isinstance(value, list) else value, module.scheme))
        if missing_keys is not None:
            missing_keys.difference_update(tensors)
        module._is_hf_initialized = True
        return tensors


def _empty(linear: torch.nn.Linear, scheme: Scheme, dtype: torch.dtype) -> QuantLinear:
    """A layer on the meta device for a weight of that scheme and dtype."""
    shape = tuple(linear.weight.shape)
    expected = expected_flat(scheme, shape, dtype, "row")
    tensors = {name: torch.empty(size, dtype=kind, device="meta") for name, (size, kind) in expected.items()}
    return QuantLinear(QTensor(scheme, shape, dtype, **tensors), linear.bias)


def _records(model) -> dict[str, Record]:
    """What a file says of the model's quantized weights."""
    return {f"{path}.weight": _record_of(module) for path, module in model.named_modules() if isinstance(module, QuantLinear)}


def _record_of(module: QuantLinear) -> Record:
    return Record(scheme=str(module.scheme), shape=module.qtensor.shape, dtype=module.qtensor.dtype)
