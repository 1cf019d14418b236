"""Floor 4. The Triton kernels as entries of the registry."""
from __future__ import annotations

from .registry import KernelEntry

KERNELS: list[KernelEntry] = []
