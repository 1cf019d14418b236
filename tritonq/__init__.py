"""tritonq: Triton kernels for quantized LLM weights, held to a torch reference. See README.md."""
from . import checkpoints, errors
from ._version import __version__
from .backend import backend
from .checkpoints import load, save
from .formats.packing import pack, unpack
from .levels import QuantizationLevel
from .matrix import (
    create_params_from_range,
    dequantize_matrix,
    dequantize_vector,
    fake_quantize,
    find_min_max,
    quantize_matrix,
    quantize_matrix_per_channel,
    quantize_vector,
    quantized_dot,
    quantized_matmul,
    quantized_matvec,
)
from .methods import QuantizationMethod, QuantizationParams, QuantizedDataType, determine_data_type
from .nf4_quantizer import Nf4Quantizer
from .nn import quantize_
from .ops import dequantize, grouped_matmul, matmul, quantize
from .planner import DeviceProfile, ModelShard, ShardingPlan, ShardingStrategy, estimate_memory, plan_sharding, suggest_quantization
from .plans.core import KernelSku, PlanPreference, PrecisionGuarantee, Status
from .plans.descriptors import DequantizeDesc, MatmulBackwardDesc, MatmulDesc, QuantizeDesc
from .plans.select import Plan, can_implement, explain, select
from .qstack import QStack
from .qtensor import QTensor
from .scheme import Scheme

__all__ = [
    "__version__",
    "DequantizeDesc", "DeviceProfile", "KernelSku", "MatmulBackwardDesc", "MatmulDesc", "ModelShard", "Plan", "PlanPreference",
    "PrecisionGuarantee", "QStack", "QTensor", "QuantizationLevel", "QuantizeDesc", "Scheme", "ShardingPlan", "ShardingStrategy", "Status",
    "backend", "can_implement", "checkpoints", "dequantize", "errors", "estimate_memory", "explain", "grouped_matmul", "load", "matmul",
    "nn", "pack", "plan_sharding", "quantize", "quantize_", "save", "select", "suggest_quantization", "unpack",
    "Nf4Quantizer", "QuantizationMethod", "QuantizationParams", "QuantizedDataType", "create_params_from_range", "dequantize_matrix",
    "dequantize_vector", "determine_data_type", "fake_quantize", "find_min_max", "quantize_matrix", "quantize_matrix_per_channel",
    "quantize_vector", "quantized_dot", "quantized_matmul", "quantized_matvec",
]  # fmt: skip
