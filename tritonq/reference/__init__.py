"""Floor 2. Plain torch: the judge of every kernel, and the CPU backend."""
from .matrix import dequantize, matmul, quantize

__all__ = ["dequantize", "matmul", "quantize"]
