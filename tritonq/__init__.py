"""tritonq: Triton kernels for quantized LLM weights, held to a torch reference. See README.md."""
from . import checkpoints, errors
from .backend import backend
from .checkpoints import load, save
from .formats.packing import pack, unpack
from .levels import QuantizationLevel
from .ops import dequantize, matmul, quantize
from .planner import DeviceProfile, ModelShard, ShardingPlan, ShardingStrategy, estimate_memory, plan_sharding, suggest_quantization
from .plans.core import KernelSku, PlanPreference, PrecisionGuarantee, Status
from .plans.descriptors import DequantizeDesc, MatmulDesc, QuantizeDesc
from .plans.select import Plan, can_implement, explain, select
from .qtensor import QTensor
from .scheme import Scheme

__version__ = "0.1.0"

__all__ = [
    "DequantizeDesc", "DeviceProfile", "KernelSku", "MatmulDesc", "ModelShard", "Plan", "PlanPreference", "PrecisionGuarantee", "QTensor",
    "QuantizationLevel", "QuantizeDesc", "Scheme", "ShardingPlan", "ShardingStrategy", "Status", "backend", "can_implement", "checkpoints",
    "dequantize", "errors", "estimate_memory", "explain", "load", "matmul", "pack", "plan_sharding", "quantize", "save", "select",
    "suggest_quantization", "unpack",
]  # fmt: skip
