"""Floor 6. Whole matrices and vectors under a :class:`~tritonq.methods.QuantizationMethod`: quantize, decode, multiply."""
from .products import quantized_dot, quantized_matmul, quantized_matvec
from .quantize import dequantize_matrix, dequantize_vector, quantize_matrix, quantize_matrix_per_channel, quantize_vector
from .ranges import create_params_from_range, find_min_max
from .straight_through import fake_quantize, gradient_mask

__all__ = [
    "create_params_from_range", "dequantize_matrix", "dequantize_vector", "fake_quantize", "find_min_max", "gradient_mask",
    "quantize_matrix", "quantize_matrix_per_channel", "quantize_vector", "quantized_dot", "quantized_matmul", "quantized_matvec",
]  # fmt: skip
