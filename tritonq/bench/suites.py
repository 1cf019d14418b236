"""Every suite by name, the most telling first."""
from __future__ import annotations

from .activations import ACTIVATIONS
from .backward import BACKWARD
from .cold_start import COLD_START
from .cpu import CPU, CPU_MEMORY
from .end_to_end import END_TO_END
from .launch import LAUNCH
from .matmul import DECODE, MATMUL
from .quality import MINILM, QUALITY
from .quantize import DEQUANTIZE, QUANTIZE
from .suite import Suite
from .w8a8 import W8A8

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (MATMUL, END_TO_END, QUANTIZE, DEQUANTIZE, W8A8, ACTIVATIONS, BACKWARD, LAUNCH, COLD_START, DECODE, CPU, CPU_MEMORY,
                  QUALITY, MINILM)
}  # fmt: skip
