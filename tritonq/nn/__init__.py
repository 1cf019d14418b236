"""Floor 6. Quantized modules, and the call that puts them into a model: ``tritonq.quantize_(model, "nf4")``."""
from .convert import Decided, QuantizationReport, quantize_
from .experts import QuantExperts
from .modules import QuantEmbedding, QuantLinear

__all__ = ["Decided", "QuantEmbedding", "QuantExperts", "QuantLinear", "QuantizationReport", "quantize_"]
