"""Floor 2. Plain torch: the judge of every kernel, and the CPU backend."""
from .matrix import dequantize, matmul, matmul_backward, quantize

__all__ = ["dequantize", "matmul", "matmul_backward", "quantize"]
