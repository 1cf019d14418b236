"""Floor 1. ``QuantizationLevel``: the coarse precision ladder of capacity planning (bits per parameter, nothing else).

A level says how many bits a parameter takes; a :class:`tritonq.Scheme` says how it is coded and counts its scales too.
"""
from __future__ import annotations

from enum import Enum

from .errors import InvalidProblemError


class QuantizationLevel(Enum):
    """How many bits a parameter takes: ``NONE`` (32), ``FLOAT16``, ``BFLOAT16`` (16), ``INT8``, ``INT4``.

    The value of a member is its JSON name (``"None"``, ``"Float16"``, ``"BFloat16"``, ``"Int8"``, ``"Int4"``); ``str()`` gives
    ``FP32 FP16 BF16 INT8 INT4``.

    >>> level = QuantizationLevel.parse("int4")
    >>> str(level), level.bits_per_param, level.memory_reduction_factor
    ('INT4', 4, 8.0)
    """

    NONE = "None"
    FLOAT16 = "Float16"
    BFLOAT16 = "BFloat16"
    INT8 = "Int8"
    INT4 = "Int4"

    @property
    def bits_per_param(self) -> int:
        """Bits that one parameter takes, scales not counted."""
        return _BITS[self]

    @property
    def memory_reduction_factor(self) -> float:
        """How many times smaller than fp32 the parameters are."""
        return 32 / _BITS[self]

    def __str__(self) -> str:
        return _DISPLAY[self]

    @classmethod
    def from_bits(cls, bits: int) -> QuantizationLevel:
        """The level of ``bits`` bits: 32, 16 (FLOAT16; BFLOAT16 shares the width, name it instead), 8 or 4.

        Raises:
            InvalidProblemError: other bits.
        """
        if isinstance(bits, bool) or not isinstance(bits, int) or bits not in _FROM_BITS:
            raise InvalidProblemError(f"no quantization level has {bits!r} bits; known: 32, 16, 8, 4")
        return _FROM_BITS[bits]

    @classmethod
    def parse(cls, text: str) -> QuantizationLevel:
        """The level that ``text`` names, in any case: fp32 f32 float32 none, fp16 f16 float16, bf16 bfloat16, int8 i8 q8, int4 i4 q4."""
        level = _SPELLINGS.get(text.strip().lower()) if isinstance(text, str) else None
        if level is None:
            raise InvalidProblemError(f"unknown quantization level: {text!r} (expected FP32, FP16, BF16, INT8, or INT4)")
        return level


_Level = QuantizationLevel
_BITS = {_Level.NONE: 32, _Level.FLOAT16: 16, _Level.BFLOAT16: 16, _Level.INT8: 8, _Level.INT4: 4}
_DISPLAY = {_Level.NONE: "FP32", _Level.FLOAT16: "FP16", _Level.BFLOAT16: "BF16", _Level.INT8: "INT8", _Level.INT4: "INT4"}
_FROM_BITS = {32: _Level.NONE, 16: _Level.FLOAT16, 8: _Level.INT8, 4: _Level.INT4}
_SPELLINGS = {
    spelling: level
    for level, spellings in {
        _Level.NONE: "fp32 f32 float32 none",
        _Level.FLOAT16: "fp16 f16 float16",
        _Level.BFLOAT16: "bf16 bfloat16",
        _Level.INT8: "int8 i8 q8",
        _Level.INT4: "int4 i4 q4",
    }.items()
    for spelling in spellings.split()
}
