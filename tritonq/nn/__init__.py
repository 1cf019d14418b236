"""Floor 6. Quantized modules, and the call that puts them into a model: ``tritonq.quantize_(model, "nf4")``."""
from .convert import Decided, QuantizationReport, quantize_
from .modules import QuantEmbedding, QuantLinear

__all__ = ["Decided", "QuantEmbedding", "QuantLinear", "QuantizationReport", "quantize_"]
