"""Small floats with a sign: one registration helper, used by e2m1, e4m3, e5m2 and the 16-bit casts."""
from __future__ import annotations

from collections.abc import Callable

import torch

from .core import Format, register
from .numerics import decode_minifloat_ref, encode_minifloat_ref, narrow_ref


def minifloat_format(*, name: str, exponent_bits: int, mantissa_bits: int, max_abs: float, largest: int, scaled: bool, group: str,
                     encode: Callable, decode: Callable, source: str, dtype: torch.dtype | None = None) -> Format:  # fmt: skip
    """Register a float of 1 + exponent_bits + mantissa_bits bits. ``largest`` is the code of ``max_abs``.

    ``scaled`` False is a plain cast without a scale. ``dtype`` is torch's own 16-bit type of that float, where it has one: its casts then
    are the torch twins, at a tenth of the time.
    """
    twins = {"encode_ref": lambda u: encode_minifloat_ref(u, exponent_bits, mantissa_bits, max_abs),
             "decode_ref": lambda code: decode_minifloat_ref(code, exponent_bits, mantissa_bits, largest)}  # fmt: skip
    if dtype is not None:
        twins = {"encode_ref": lambda u: narrow_ref(u).clamp(-max_abs, max_abs).to(dtype).view(torch.int16).int() & 0xFFFF,
                 "decode_ref": lambda code: code.to(torch.int16).view(dtype).float()}  # fmt: skip
    return register(Format(
        name=name, bits=1 + exponent_bits + mantissa_bits, max_abs=max_abs if scaled else None, group=group, source=source,
        encode=encode, decode=decode, **twins,
    ))  # fmt: skip
