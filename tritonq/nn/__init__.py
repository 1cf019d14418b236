"""Floor 6. Quantized modules, and the call that puts them into a model: ``tritonq.quantize_(model, "nf4")``."""
from .convert import Decided, QuantizationReport, quantize_
from .experts import QuantExperts
from .modules import QuantEmbedding, QuantGatedMLP, QuantLinear
from .qat import FakeQuantLinear, convert_qat_, prepare_qat_

__all__ = ["Decided", "FakeQuantLinear", "QuantEmbedding", "QuantExperts", "QuantGatedMLP", "QuantLinear", "QuantizationReport",
           "convert_qat_", "prepare_qat_", "quantize_"]
