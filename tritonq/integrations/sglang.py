"""Floor 7. SGLang: serves tritonq's own checkpoints. **Never run**: written from SGLang's source (0.5), which cannot be installed on a CPU.

SGLang finds :func:`register` by its entry point ``sglang.srt.plugins``. Unlike vLLM it gives a plugin no place where a model's tensors come
by, so only weights that are stored as layers hold them are served. ``dq`` scales and other families' checkpoints are refused;
``tritonq.save`` of ``tritonq.shards.expand_scales`` of each weight makes a checkpoint that is served.
"""
from __future__ import annotations

import torch

from ..checkpoints.native import FAMILY
from ..errors import UnsupportedError
from ..scheme import Scheme
from .serving import Layer, ServedCheckpoint, TensorSpec, hold, product


def register() -> None:
    """Make SGLang know ``--quantization tritonq``. SGLang calls it in every process, maybe several times."""
    from sglang.srt.layers import linear
    from sglang.srt.layers.quantization import QUANTIZATION_METHODS
    from sglang.srt.server_args import QUANTIZATION_CHOICES, add_quantization_method_choices

    if FAMILY in QUANTIZATION_METHODS:
        return
    config, method = _classes()
    QUANTIZATION_METHODS[FAMILY] = config
    linear.WEIGHT_LOADER_V2_SUPPORTED.append(method.__name__)  # SGLang decides by the name of the class
    if FAMILY not in QUANTIZATION_CHOICES:
        add_quantization_method_choices([FAMILY])


def _classes() -> tuple[type, type]:
    """The classes that SGLang wants, made here because their bases are SGLang's."""
    from sglang.srt.layers.linear import LinearBase, UnquantizedLinearMethod
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.layers.quantization.base_config import LinearMethodBase, QuantizationConfig
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    class TritonQLinearMethod(LinearMethodBase):
        def __init__(self, held: Layer):
            self.held = held

        def create_weights(self, layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype,
                           **extra_weight_attrs):  # fmt: skip
            specs = self.held.tensors(output_partition_sizes, input_size_per_partition)
            for name, spec in specs.items():
                layer.register_parameter(name, _parameter(self.held, spec, extra_weight_attrs["weight_loader"]))
            layer.tritonq_specs, layer.tritonq_shape = specs, (sum(output_partition_sizes), input_size_per_partition)

        def process_weights_after_loading(self, layer):
            hold(layer, self.held, layer.tritonq_specs, layer.tritonq_shape)

        def apply(self, layer, x, bias=None):
            return product(layer, x, bias)

    class TritonQConfig(QuantizationConfig):
        def __init__(self, served: ServedCheckpoint, fused: dict):
            super().__init__()
            self.served, self.packed_modules_mapping = served, fused

        def get_name(self):
            return FAMILY

        def get_supported_act_dtypes(self):
            return [torch.bfloat16, torch.float16, torch.float32]

        @classmethod
        def get_min_capability(cls):
            return 80

        @staticmethod
        def get_config_filenames():
            return []

        def get_scaled_act_names(self):
            return []

        @classmethod
        def from_config(cls, config):
            """SGLang puts its mapping of fused modules into ``config``, and says nowhere where the checkpoint is but in its arguments."""
            from sglang.srt.server_args import get_global_server_args

            served = ServedCheckpoint.open(get_global_server_args().model_path)
            refuse_what_has_to_be_put_together(served)
            return cls(served, config.get("packed_modules_mapping") or {})

        def apply_weight_name_mapper(self, hf_to_sglang_mapper):
            self.served.rename(lambda name: next(iter(hf_to_sglang_mapper.apply_list([name])), None))

        def get_quant_method(self, layer, prefix):
            head = isinstance(layer, ParallelLMHead)
            if isinstance(layer, LinearBase) or head:
                held = self.served.layer(prefix, self.packed_modules_mapping)
                if held is not None:
                    return TritonQLinearMethod(held)
                return None if head else UnquantizedLinearMethod()
            if isinstance(layer, FusedMoE | VocabParallelEmbedding) and (names := self.served.quantized_below(prefix)):
                raise UnsupportedError(f"{', '.join(names[:3])}: quantized, and {type(layer).__name__} takes no such weight; --exclude it")
            return None

    return TritonQConfig, TritonQLinearMethod


def refuse_what_has_to_be_put_together(served: ServedCheckpoint) -> None:
    """SGLang's models load stored tensors by their names, one by one.

    Raises:
        UnsupportedError: a checkpoint of another family, or one with ``dq`` scales.
    """
    checkpoint = served.checkpoint
    dq = next((name for name, record in checkpoint.records.items() if "dq" in Scheme.parse(record.scheme).options), None)
    if checkpoint.family != FAMILY or dq is not None:
        what = f"{dq} has dq scales" if dq and checkpoint.family == FAMILY else f"it is of family {checkpoint.family}"
        way_out = "save tritonq.shards.expand_scales of each weight with tritonq.save, and serve that"
        raise UnsupportedError(f"{checkpoint.source.path}: {what}, and SGLang loads tensors one by one; {way_out}")


def _parameter(held: Layer, spec: TensorSpec, weight_loader) -> torch.nn.Parameter:
    from sglang.srt.layers.parameter import BasevLLMParameter, ChannelQuantScaleParameter, ModelWeightParameter, RowvLLMParameter

    if spec.rows > 1:
        raise UnsupportedError(f"{held.name}: {held.scheme}: SGLang does not load scales of several rows; take a group size or 'channel'")
    axes = {name: axis for name, axis in (("output_dim", spec.output_axis), ("input_dim", spec.input_axis)) if axis is not None}
    kind = {("output_dim", "input_dim"): ModelWeightParameter, ("output_dim",): ChannelQuantScaleParameter,
            ("input_dim",): RowvLLMParameter, (): BasevLLMParameter}[tuple(axes)]  # fmt: skip
    return kind(data=torch.empty(spec.shape or (1,), dtype=spec.dtype), weight_loader=weight_loader, **axes)
