"""Floor 3. PTX that turns the words of layout ``frag`` into 16-bit values, one text per half fragment ``u`` of a word.

Each text gives the registers of h = 0 and h = 1 in ``$0`` and ``$1`` from the word in ``$2``. Values e = 0 and e = 1 stand in the lower and
the upper half of a register throughout, so every instruction handles two.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from ..formats import Format
from ..layouts import frag_codes
from ..layouts.byte_planes import byte_planes


@dataclass(frozen=True, kw_only=True)
class Unpacker:
    """How words become values: ``asm[u]`` with ``inputs`` registers, and the factor by which all values are too large."""

    asm: tuple[str, ...]
    inputs: int
    factor: float

    @property
    def constraints(self) -> str:
        return "=r,=r" + ",r" * self.inputs


def unpacker(fmt: Format, dtype: torch.dtype, zero_points: bool, arch: int | None) -> Unpacker:
    """For x of ``dtype``. ``zero_points``: the constants of rows g and g + 8 (:func:`zero_point_asm`) are two more inputs.

    arch: None where it is not known; the text then runs from sm_80 on.
    """
    if not fmt.is_integer:
        return _book(fmt, dtype) if frag_codes.is_book(fmt) else _minifloat(fmt, dtype, arch)
    zero = None if zero_points else 1 << fmt.bits - 1 if fmt.signed else 0
    return _three_bits(dtype, zero) if fmt.bits == 3 else _integer(fmt.bits, dtype, zero)


def _text(body: str) -> str:
    return "{\n .reg .b32 x, y, k, low, high, r0, r1;\n" + body + " mov.b32 $0, r0; mov.b32 $1, r1;\n}"


def _twice(value: float, dtype: torch.dtype) -> str:
    """A number in both halves of a register."""
    return f"{(int(torch.tensor(value, dtype=dtype).view(torch.int16)) & 0xFFFF) * 0x10001:#x}"


def _kind(dtype: torch.dtype) -> str:
    return "f16x2" if dtype == torch.float16 else "bf16x2"


# A small integer is the pattern of a float that is that many times the least subnormal, exactly, as far as the mantissa and one bit more
# reach: 11 bits in float16, 8 in bfloat16. One multiplication by the largest power of two makes it a normal number.
_LEAST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
_LARGEST = {torch.float16: 2.0**15, torch.bfloat16: 2.0**127}


def _constants(dtype: torch.dtype, zero: int | None, first: int) -> str:
    """Sets low and high, what is added for rows g and g + 8: less the zero point, in units of the result."""
    if zero is None:
        return f" mov.b32 low, ${first}; mov.b32 high, ${first + 1};\n"
    less = _twice(-zero * _LEAST[dtype] * _LARGEST[dtype], dtype)
    return f" mov.b32 low, {less}; mov.b32 high, {less};\n"


def _multiply(register: int, bit: int, dtype: torch.dtype) -> str:
    """r0 or r1, integers that start at ``bit`` of their halves, to integer less zero point."""
    scale = _twice(_LARGEST[dtype] / 2**bit, dtype)
    return f" mov.b32 k, {scale}; fma.rn.{_kind(dtype)} r{register}, r{register}, k, {('low', 'high')[register]};\n"


def _integer(bits: int, dtype: torch.dtype, zero: int | None) -> Unpacker:
    """Unsigned codes of 2, 4 or 8 bits: code (h, u) of a half starts at bit ``bits * (h + 2 u)``. Exact."""
    texts = []
    for u in range(8 // bits):
        body = _constants(dtype, zero, 3)
        for h in (0, 1):
            byte, bit = divmod(bits * (h + 2 * u), 8)
            if byte and bits == 8:
                body += f" prmt.b32 r{h}, $2, 0, 0x4341;\n"
            else:
                body += f" shr.b32 x, $2, {8 * byte};\n" if byte else " mov.b32 x, $2;\n"
                body += f" and.b32 r{h}, x, {((1 << bits) - 1 << bit) * 0x10001:#x};\n"
            body += _multiply(h, bit, dtype)
        texts.append(_text(body))
    return Unpacker(asm=tuple(texts), inputs=1 if zero is not None else 3, factor=_LEAST[dtype] * _LARGEST[dtype])


def _three_bits(dtype: torch.dtype, zero: int | None) -> Unpacker:
    """Lower two bits as :func:`_integer`; the highest from $3: for (h, u) at bit ``4 (u // 2) + u % 2 + 2 h`` of its half. Exact."""
    texts = []
    for u, shift in enumerate(("shl.b32 y, $3, 2", "shl.b32 y, $3, 1", "shr.b32 y, $3, 2", "shr.b32 y, $3, 3")):
        body = _constants(dtype, zero, 4) + f" shr.b32 x, $2, {4 * u}; {shift};\n"
        for h in (0, 1):
            body += f" and.b32 r{h}, x, {(3 << 2 * h) * 0x10001:#x}; lop3.b32 r{h}, y, {(4 << 2 * h) * 0x10001:#x}, r{h}, 0xea;\n"
            body += _multiply(h, 2 * h, dtype)
        texts.append(_text(body))
    return Unpacker(asm=tuple(texts), inputs=2 if zero is not None else 4, factor=_LEAST[dtype] * _LARGEST[dtype])


def zero_point_asm(dtype: torch.dtype) -> str:
    """From a pair of integer zero points to the constants of rows g and g + 8."""
    factor, nothing = _twice(-_LARGEST[dtype], dtype), _twice(-0.0, dtype)
    return (f"{{\n .reg .b32 z, k, c;\n mov.b32 k, {factor}; mov.b32 c, {nothing};\n"
            f" prmt.b32 z, $2, 0, 0x1010; fma.rn.{_kind(dtype)} $0, z, k, c;\n"
            f" prmt.b32 z, $2, 0, 0x3232; fma.rn.{_kind(dtype)} $1, z, k, c;\n}}")  # fmt: skip


# The pair of e = 0 and e = 1 of rows g, then that of rows g + 8: bytes of a word below zeros, and each below eight copies of its sign.
_ABOVE_ZEROS, _BELOW_SIGNS = ("0x1404", "0x3424"), ("0x9180", "0xb3a2")


def _minifloat(fmt: Format, dtype: torch.dtype, arch: int | None) -> Unpacker:
    """8-bit floats, exact for finite codes; the layout marks rows that hold others.

    Sign and the rest go where float16 or bfloat16 has them, which divides by a power of two: an e5m2 is the upper byte of a float16.
    """
    if dtype == torch.float16 and _converted(fmt, arch):
        body = " .reg .b16 first, second;\n mov.b32 {first, second}, $2;\n"
        body += " cvt.rn.f16x2.e4m3x2 r0, first; cvt.rn.f16x2.e4m3x2 r1, second;\n"
        return Unpacker(asm=(_text(body),), inputs=1, factor=1.0)
    exponent = frag_codes.exponent_bits(fmt)
    bit = (10 if dtype == torch.float16 else 7) - (7 - exponent)  # where exponent and mantissa start
    factor = 2.0 ** (2 ** (exponent - 1) - (16 if dtype == torch.float16 else 128))
    if bit == 8:
        body = "".join(f" prmt.b32 r{h}, $2, 0, {_ABOVE_ZEROS[h]};\n" for h in (0, 1))
        return Unpacker(asm=(_text(body),), inputs=1, factor=factor)
    mask = (0x8000 | 0x7F << bit) * 0x10001
    body = "".join(f" prmt.b32 x, $2, 0, {_BELOW_SIGNS[h]}; shl.b32 x, x, {bit}; and.b32 r{h}, x, {mask:#x};\n" for h in (0, 1))
    if dtype == torch.bfloat16:  # products with numbers near 2**-126 would be subnormal in float32
        body += f" mov.b32 k, {_twice(1 / factor, dtype)}; mov.b32 low, {_twice(-0.0, dtype)};\n"
        body += " fma.rn.bf16x2 r0, r0, k, low; fma.rn.bf16x2 r1, r1, k, low;\n"
        factor = 1.0
    return Unpacker(asm=(_text(body),), inputs=1, factor=factor)


def _converted(fmt: Format, arch: int | None) -> bool:
    """Whether one instruction turns two codes into float16: e4m3 from sm_89 on. It takes 0x7F and 0xFF for NaN."""
    return arch is not None and arch >= 89 and frag_codes.exponent_bits(fmt) == 4 and not bool(fmt.levels[[0x7F, 0xFF]].isfinite().any())


BOOK_FACTORS = (-1, 2**16)  # the last two inputs of the texts for code books


def _book(fmt: Format, dtype: torch.dtype) -> Unpacker:
    """Sixteen levels from the byte planes in $3 .. $10 (layouts/byte_planes.py): nibble ``h + 4 u + 2 e``; $11 is -1, $12 is 2**16.

    Look-ups and logic keep the integer pipe busy longer than anything else in the loop does, so what a multiplication can do goes to the
    other one: the complement, ``-x - 1``; the shift, a product's upper half; and in half of the texts an interleaving, from the sum of
    both, ``r0 + 256 r1 = l + 256 h`` modulo 2**32 for four bytes l and h. That takes two multiplications; in all texts it would cost more
    slots of issue than it is worth. ptxas turns constant factors back into logic, so they are loaded.
    """
    nibbles = " mov.b32 x, $2;", " mul.hi.u32 x, $2, $12;"
    rows_g = " prmt.b32 r0, l, h, 0x6240;\n", " mad.lo.u32 r0, h, 256, l; mad.lo.u32 r0, r1, -256, r0;\n"
    texts = [_text(
        f" .reg .b32 la, lb, ha, hb, l, h;\n{nibbles[u]} mad.lo.u32 y, x, $11, $11;\n"
        " prmt.b32 la, $3, $4, x; prmt.b32 lb, $5, $6, y; xor.b32 l, la, lb;\n"
        " prmt.b32 ha, $7, $8, x; prmt.b32 hb, $9, $10, y; xor.b32 h, ha, hb;\n"
        f" prmt.b32 r1, l, h, 0x7351;{rows_g[u]}"
    ) for u in (0, 1)]  # fmt: skip
    return Unpacker(asm=tuple(texts), inputs=11, factor=byte_planes(fmt, dtype).factor)
