"""Floor 5. What the compiler makes of the kernels, for GPUs that need not be here: ``examine`` a problem, read its rows.

Needs Triton, and no GPU; NVIDIA's tools that read machine code are inside Triton's wheel. docs/kernels.md says how to read the figures.
"""
from .examine import Row, examine
from .rules import EXPECTED, Expected, Violation, violations

__all__ = ["EXPECTED", "Expected", "Row", "Violation", "examine", "violations"]
