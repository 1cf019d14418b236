"""Floor 0. What a stored code means. One file per format registers one :class:`Format`; nothing else needs editing."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import torch

from ..errors import InvalidProblemError
from ..kept import plainly

Twin = Callable[[torch.Tensor], torch.Tensor]


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code of ``bits`` bits; two's complement where ``signed``."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Format:
    """What one stored code means. One instance per name, so equality is identity.

    A value ``x`` in a group with scale ``s`` is stored as the code of ``x / s`` and read back as ``s * level(code)``.

    *Level formats* (nf4, fp8, ...) bring ``encode`` and ``decode``: elementwise ``@triton.jit`` functions between the
    quotient (float32 or float64; finite, no NaN) and the unsigned code (int32), with torch twins. The tests hold each
    pair to bitwise equality on every code and on both sides of every rounding boundary.

    *Integer formats* have neither: a code is its own level, and rounding, zero point and range are the scheme's.
    Signed codes are stored modulo ``2**bits`` (two's complement).

    Attributes:
        bits: width of one code.
        max_abs: the level that a group's absmax maps to, ``scale = absmax / max_abs``; None where there is no scale.
        signed: ``codes()`` returns signed integers.
        affine: a zero point per group, ``level - zero_point``.
        group: granularity when the scheme names none, such as ``"g64"`` or ``"channel"``.
        scale: name of the scale format when the scheme names none; None is the input's dtype (float64 input: fp32).
        bounds: 15 rising float32 numbers if the code is the number of them strictly below the quotient; lets kernels search by table.
        recode: where that number is not the code yet, a ``@triton.jit`` function from one to the other for every nibble of a uint32.
            ``encode`` and ``encode_ref`` give codes all the same. The code of 0 is 0.
        empty_scale: the scale of a group without range (all zero, NaN or Inf).
        source: paper or specification of the numbers.
    """

    name: str
    bits: int
    max_abs: float | None
    group: str
    source: str
    signed: bool = False
    affine: bool = False
    scale: str | None = "fp32"
    bounds: tuple[float, ...] | None = None
    recode: Callable | None = None
    empty_scale: float = 1.0
    encode: Callable | None = None
    decode: Callable | None = None
    encode_ref: Twin | None = None
    decode_ref: Twin | None = None

    @property
    def is_integer(self) -> bool:
        """Codes are their own levels."""
        return self.encode is None

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest logical code."""
        return code_range(self.bits, self.signed)

    @property
    def unit(self) -> int:
        """Fewest codes that fill whole bytes: 1, 2 (4-bit), 4 (2-bit) or 8 (3-bit)."""
        return 8 // gcd(self.bits, 8)

    @cached_property
    def levels(self) -> torch.Tensor:
        """float32 ``[2**bits]``: the level of each stored code. Formats of at most 8 bits."""
        with plainly():
            stored = torch.arange(2**self.bits)
            if not self.is_integer:
                return self.decode_ref(stored)
            return torch.where(stored > self.code_range[1], stored - 2**self.bits, stored).float()

    def row_bytes(self, k: int) -> int:
        """Bytes of ``k`` packed codes, ``ceil(k * bits / 8)``."""
        return -(-k * self.bits // 8)

    def __repr__(self) -> str:
        return f"Format({self.name!r})"

    def __reduce__(self):
        return get_format, (self.name,)


FORMATS: dict[str, Format] = {}


def register(fmt: Format) -> Format:
    """Add ``fmt`` to the registry. Quantize, dequantize, matmul, tests, docs and command line read it from there.

    Raises:
        InvalidProblemError: the name is taken, a part of the codec is missing, codes have a width without a packing, or ``recode`` does not
            take 0 to the code 0.

    Example:
        >>> from tritonq.formats import get_format, register
        >>> register(get_format("nf4"))
        Traceback (most recent call last):
        ...
        tritonq.errors.InvalidProblemError: format 'nf4' is registered already; choose another name
    """
    if fmt.name in FORMATS:
        raise InvalidProblemError(f"format {fmt.name!r} is registered already; choose another name")
    codec = (fmt.encode, fmt.decode, fmt.encode_ref, fmt.decode_ref)
    if any(part is None for part in codec) and any(part is not None for part in codec):
        raise InvalidProblemError(f"format {fmt.name!r} must bring encode, decode, encode_ref and decode_ref, or none of them")
    if fmt.bits not in (2, 3, 4, 8, 16):
        raise InvalidProblemError(f"format {fmt.name!r} has {fmt.bits}-bit codes; packings exist for 2, 3, 4, 8 and 16 bits")
    if fmt.recode is not None and (zero := int(fmt.encode_ref(torch.zeros(1, dtype=torch.float32)))) != 0:
        raise InvalidProblemError(f"format {fmt.name!r} has recode, and {zero} as the code of 0; it must be 0, which fills rows")
    FORMATS[fmt.name] = fmt
    return fmt


def get_format(name: str) -> Format:
    """The registered format called ``name``; an unknown name is an error that lists the known ones."""
    try:
        return FORMATS[name]
    except (KeyError, TypeError):
        raise InvalidProblemError(f"unknown format {name!r}; known formats: {', '.join(FORMATS)}") from None
