"""tritonq: Triton kernels for quantized LLM weights, held to a torch reference. See README.md."""
from . import errors
from .backend import backend
from .formats.packing import pack, unpack
from .ops import dequantize, matmul, quantize
from .plans.core import KernelSku, PlanPreference, PrecisionGuarantee, Status
from .plans.descriptors import DequantizeDesc, MatmulDesc, QuantizeDesc
from .plans.select import Plan, can_implement, explain, select
from .qtensor import QTensor
from .scheme import Scheme

__version__ = "0.1.0"

__all__ = [
    "DequantizeDesc", "KernelSku", "MatmulDesc", "Plan", "PlanPreference", "PrecisionGuarantee", "QTensor", "QuantizeDesc", "Scheme", "Status",
    "backend", "can_implement", "dequantize", "errors", "explain", "matmul", "pack", "quantize", "select", "unpack",
]  # fmt: skip
