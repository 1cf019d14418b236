"""fp4_bnb: the FP4 code book of bitsandbytes (not OCP e2m1): sign bit over {0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4}, scale = absmax."""
import torch

from .._triton import jit, tl
from .codebook import lookup16, lookup_ref, midpoints, search16, search16_ref
from .core import Format, register

_MAGNITUDES = (0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25)
LEVELS = _MAGNITUDES + tuple(-m for m in _MAGNITUDES)
# Codes by rising level. Both codes 0 and 8 mean zero: bitsandbytes gives 8 to the values just above zero, 0 to the rest.
ORDER = (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3)
BOUNDS = midpoints(tuple(LEVELS[code] for code in ORDER))
_TWICE, _BOUNDS = tl.constexpr(2 * _MAGNITUDES), tl.constexpr(BOUNDS)


@jit
def fp4_bnb_recode(ranks):
    """ORDER[rank] of every nibble of a uint32."""
    # Magnitudes fall up to rank 7 and rise from 8 on. Their codes are their numbers with bit 1 added to bit 2.
    negative = (ranks & 0x88888888) ^ 0x88888888  # not ~ranks, which the interpreter before Triton 3.9 cannot do to a uint32
    magnitude = (ranks ^ (negative - (negative >> 3))) & 0x77777777
    # Magnitude 0, which adding 7 does not carry into bit 3, has the other sign.
    sign = (negative ^ (magnitude + 0x77777777) ^ 0x88888888) & 0x88888888
    return sign | (magnitude ^ ((magnitude << 1) & 0x44444444))


@jit
def fp4_bnb_encode(u):
    return (fp4_bnb_recode(search16(u, _BOUNDS).to(tl.uint32)) & 15).to(tl.int32)


@jit
def fp4_bnb_decode(code):
    # The sign is set as a bit: Triton 3.6 takes a constant -0.0, the level of code 8, for +0.0.
    magnitude = lookup16(code, _TWICE).to(tl.int32, bitcast=True)
    return (magnitude | ((code & 8) << 28)).to(tl.float32, bitcast=True)


FP4_BNB = register(Format(
    name="fp4_bnb", bits=4, max_abs=1.0, group="g64", empty_scale=0.0, bounds=BOUNDS, recode=fp4_bnb_recode,
    encode=fp4_bnb_encode, encode_ref=lambda u: torch.tensor(ORDER, dtype=torch.int32, device=u.device)[search16_ref(u, BOUNDS)],
    decode=fp4_bnb_decode, decode_ref=lambda code: lookup_ref(code, LEVELS),
    source="bitsandbytes functional.get_4bit_type('fp4')",
))  # fmt: skip
