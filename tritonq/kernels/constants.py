"""Floor 3. A scheme as the compile-time arguments of the kernel bodies: the one place that maps one to the other."""
from __future__ import annotations

import torch

from .._triton import tl
from ..scheme import Scheme

# Extent of the second and third axis of a CUDA grid.
MAX_GRID_Y = 65535


def next_power_of_two(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """:func:`tritonq.dtypes.compute_dtype`, as Triton names it."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def contracts(compute) -> bool:
    """Whether a product may be contracted into the sum that takes it (``enable_fp_fusion``), said aloud as Triton's default changes.

    Not in float64: its products are added up across threads, of which each would round the others' product but not its own. They would
    store different sums at one address.
    """
    return compute != tl.float64


def kernel_name(scheme: Scheme) -> str:
    """The scheme as part of a kernel's name, ``int4_g128``."""
    return str(scheme).replace(".", "_")


def encode_constants(scheme: Scheme, dtype: torch.dtype) -> dict:
    """What quantizing ``dtype`` input under ``scheme`` needs to know."""
    fmt = scheme.format
    low, high = scheme.code_range
    scaled = scheme.has_scale
    storage = scheme.scale_format(dtype) if scaled else None
    zero = scheme.zero_format(dtype) if scheme.float_zero else None
    return {
        "NAME": kernel_name(scheme), "COMPUTE": compute_type(dtype), "ENCODE": fmt.encode, "BITS": fmt.bits, "LOW": low, "HIGH": high,
        "AWAY": "away" in scheme.options, "AFFINE": fmt.affine, "FLOAT_ZERO": scheme.float_zero,
        "DIVISOR": scheme.divisor if scaled else 1.0, "EMPTY_SCALE": fmt.empty_scale, "ROUND_UP": scheme.rounds_up,
        "MAX_EXPONENT": scheme.max_exponent if scheme.recipe == "mx" else None,
        "ENCODE_SCALE": storage and storage.encode, "DECODE_SCALE": storage and storage.decode,
        "ENCODE_ZERO": zero and zero.encode, "DECODE_ZERO": zero and zero.decode,
    }  # fmt: skip


def decode_constants(scheme: Scheme, dtype: torch.dtype) -> dict:
    """What decoding to ``dtype`` (or multiplying with ``dtype`` activations) needs to know."""
    fmt = scheme.format
    return {
        "NAME": kernel_name(scheme), "COMPUTE": compute_type(scheme.decode_dtype(dtype)),
        "DECODE": fmt.decode, "BITS": fmt.bits, "SIGNED": fmt.signed,
        "HAS_SCALE": scheme.has_scale, "AFFINE": fmt.affine, "FLOAT_ZERO": scheme.float_zero,
    }  # fmt: skip


def carrier(stored: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor as kernels see it: 8-bit floats as their bytes, which every architecture can load."""
    return stored.view(torch.uint8) if stored is not None and stored.dtype.itemsize == 1 else stored
