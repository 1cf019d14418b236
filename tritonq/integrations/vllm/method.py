"""Floor 7. vLLM's interfaces, filled from :mod:`tritonq.integrations.serving`. Written against vLLM 0.32."""
from __future__ import annotations

from pathlib import Path

import torch
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import WeightsMapper
from vllm.model_executor.parameter import (
    BasevLLMParameter,
    BlockQuantScaleParameter,
    ChannelQuantScaleParameter,
    ModelWeightParameter,
    RowvLLMParameter,
)

from ...checkpoints.families import FAMILIES
from ...checkpoints.native import FAMILY
from ...errors import UnsupportedError
from ..serving import Layer, ServedCheckpoint, TensorSpec, hold, product


@register_quantization_config(FAMILY)
class TritonQConfig(QuantizationConfig):
    """What vLLM asks about a checkpoint. The answers come from its files: which weights are quantized, and how."""

    def __init__(self):
        super().__init__()
        self.served: ServedCheckpoint | None = None

    def get_name(self) -> str:
        return FAMILY

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict) -> TritonQConfig:
        return cls()

    @classmethod
    def override_quantization_method(cls, hf_quant_cfg, user_quant, hf_config=None) -> str | None:
        """Checkpoints of other families are taken where vLLM has no method of that name, or where ``--quantization tritonq`` says so."""
        method = hf_quant_cfg.get("quant_method")
        read = method in (family.name for family in FAMILIES)
        return FAMILY if read and (user_quant == FAMILY or method not in QUANTIZATION_METHODS) else None

    def maybe_update_config(self, model_name, hf_config=None, revision=None) -> None:
        """Open the checkpoint: the first moment at which vLLM says where it is."""
        path = Path(model_name)
        if not path.is_dir():
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(model_name, revision=revision, allow_patterns=["*.safetensors", "*.json"]))
        self.served = ServedCheckpoint.open(path)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        self.served.rename(hf_to_vllm_mapper.map_name)

    def get_cache_scale_mapper(self) -> WeightsMapper:
        """Beside vLLM's names of cache scales, the place where every tensor that a model loads comes by."""
        return _Assembling.of(super().get_cache_scale_mapper(), self.served)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str):
        if isinstance(layer, RoutedExperts):
            self._refuse(layer, prefix, "vLLM's fused experts; quantize with --exclude '*.experts.*'")
        elif isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead):
            self._refuse(layer, prefix, "vLLM's embedding; quantize without --include for it")
        elif isinstance(layer, LinearBase | ParallelLMHead):
            held = self.served.layer(prefix, self.packed_modules_mapping)
            if held is not None:
                return TritonQLinearMethod(held)
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None
        return None

    def _refuse(self, layer: torch.nn.Module, prefix: str, what: str) -> None:
        names = self.served.quantized_below(prefix)
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            named = f"{', '.join(names[:3])}{more}"
            raise UnsupportedError(f"{named}: quantized, and held by {type(layer).__name__}: there is no kernel for {what}")


class _Assembling(WeightsMapper):
    """A mapper of names under which the weights of other families become tritonq's on their way into a model.

    vLLM merges mappers with ``|`` and sends what a model loads through :meth:`apply` of the result, once for a model and once more for
    the model inside of it, where the names that are to be put together have gone.
    """

    served: ServedCheckpoint

    @classmethod
    def of(cls, mapper: WeightsMapper, served: ServedCheckpoint) -> _Assembling:
        made = cls(**vars(mapper))
        object.__setattr__(made, "served", served)
        return made

    def __or__(self, other: WeightsMapper) -> _Assembling:
        return self.of(super().__or__(other), self.served)

    def __ror__(self, other: WeightsMapper) -> _Assembling:
        return self.of(WeightsMapper.__or__(other, self), self.served)

    def apply(self, weights):
        return super().apply(self.served.stream(weights))


@register_weight_loader_v2_supported_method
class TritonQLinearMethod(LinearMethodBase):
    """A linear layer from packed weights. Parameters are plain torch.nn.Parameter ones once they are loaded."""

    def __init__(self, held: Layer):
        self.held = held

    def create_weights(self, layer, input_size_per_partition: int, output_partition_sizes: list[int], input_size: int, output_size: int,
                       params_dtype: torch.dtype, **extra_weight_attrs) -> None:  # fmt: skip
        specs = self.held.tensors(output_partition_sizes, input_size_per_partition)
        rows = max(spec.rows for spec in specs.values())
        if rows > 1:
            if isinstance(layer, ParallelLMHead):
                rule = "vLLM loads a head row by row, and its scales cover several"
                raise UnsupportedError(f"{self.held.name}: {self.held.scheme}: {rule}; quantize it with a group size or 'channel'")
            layer.weight_block_size = [rows, self.held.scheme.granularity.columns]
        for name, spec in specs.items():
            layer.register_parameter(name, _parameter(spec, extra_weight_attrs["weight_loader"]))
        layer.tritonq_specs, layer.tritonq_shape = specs, (sum(output_partition_sizes), input_size_per_partition)

    def process_weights_after_loading(self, layer) -> None:
        hold(layer, self.held, layer.tritonq_specs, layer.tritonq_shape)

    def apply(self, layer, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return product(layer, x, bias)


def _parameter(spec: TensorSpec, weight_loader) -> BasevLLMParameter:
    axes = {name: axis for name, axis in (("output_dim", spec.output_axis), ("input_dim", spec.input_axis)) if axis is not None}
    kind = {("output_dim", "input_dim"): ModelWeightParameter, ("output_dim",): ChannelQuantScaleParameter,
            ("input_dim",): RowvLLMParameter, (): BasevLLMParameter}[tuple(axes)]  # fmt: skip
    if spec.rows > 1 and len(axes) == 2:
        kind = BlockQuantScaleParameter
    data = torch.empty(spec.shape or (1,), dtype=spec.dtype)  # vLLM loads a number as a vector of one
    return kind(data=data, weight_loader=weight_loader, **axes)
