"""Floor 0. The float dtypes of matrices, by name, and what is computed in for each."""
from __future__ import annotations

import torch

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float16`` -> ``"float16"``."""
    return str(dtype).removeprefix("torch.")


# By name, as forms and files write them: "bfloat16" -> torch.bfloat16.
NAMED_DTYPES = {dtype_name(dtype): dtype for dtype in FLOAT_DTYPES}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 is computed in float64, every other type in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
