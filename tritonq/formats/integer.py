"""Integer codes: rounding, zero point and range. The integer formats register themselves through these helpers."""
from __future__ import annotations

import torch

from .._triton import jit, tl
from .core import Format, register
from .numerics import round_half_away, round_half_away_ref, round_half_even


@jit
def encode_integer(u, zero_point, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr):
    """clamp(round(u) + zero_point, LOW, HIGH) as int32: rounded first, then added, saturating."""
    if AWAY:
        code = tl.minimum(tl.maximum(round_half_away(u) + zero_point, LOW), HIGH).to(tl.int32)
    elif u.dtype == tl.float64:
        code = tl.minimum(tl.maximum(round_half_even(u) + zero_point, LOW), HIGH).to(tl.int32)
    else:
        code = encode_biased(tl.minimum(tl.maximum(u, -1048576.0), 1048576.0) + 12582912.0 + zero_point, LOW, HIGH)
    return code


@jit
def encode_biased(r, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The code of ``r`` = round(u) + zero_point + 1.5 * 2**23: it already is the low bits of the float, so nothing is converted."""
    r = tl.minimum(tl.maximum(r, LOW + 12582912.0), HIGH + 12582912.0)
    return r.to(tl.int32, bitcast=True) - 0x4B400000


def encode_integer_ref(u: torch.Tensor, zero_point: torch.Tensor | float, low: int, high: int, away: bool) -> torch.Tensor:
    """The torch twin; works in place on ``u`` where it can and returns the codes as floats."""
    r = round_half_away_ref(u) if away else u.round_()
    if isinstance(zero_point, torch.Tensor) or zero_point:
        r = r.add_(zero_point)
    return r.clamp_(low, high)


@jit
def decode_integer(code, BITS: tl.constexpr, SIGNED: tl.constexpr):
    """Stored code (modulo 2**BITS) to the integer it stands for, float32: the low bits of a number near 2**23, less what it has too much.

    Not by a conversion: LLVM knows how few bits it gives, and where a product with a bfloat16 scale becomes float16 it multiplies in
    float16, which has not bfloat16's range.
    """
    OFFSET: tl.constexpr = 2 ** (BITS - 1) if SIGNED else 0
    number = (code.to(tl.int32) ^ (0x4B000000 | OFFSET)).to(tl.float32, bitcast=True)
    return number - (8388608.0 + OFFSET)


def signed_format(bits: int, group: str) -> Format:
    """Signed, symmetric: scale = absmax / (2**(bits-1) - 1)."""
    return register(Format(name=f"int{bits}", bits=bits, signed=True, max_abs=float(2 ** (bits - 1) - 1), group=group, scale=None,
                           source="symmetric round to nearest; GPTQ (arXiv:2210.17323) section 3"))  # fmt: skip


def affine_format(bits: int, group: str) -> Format:
    """Unsigned with an integer zero point: scale = (max - min) / (2**bits - 1) over the range extended to 0."""
    return register(Format(name=f"uint{bits}", bits=bits, affine=True, max_abs=float(2**bits - 1), group=group, scale=None,
                           source="affine quantization; Jacob et al. (arXiv:1712.05877) section 2.1"))  # fmt: skip
