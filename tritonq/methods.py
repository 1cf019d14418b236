"""Floor 1. ``QuantizationMethod`` and ``QuantizationParams``: the vocabulary of the matrix functions, and the scheme behind each method.

A method is a scheme with one scale per matrix (or per column), stored in float32:

======================  ==========================  ===========================================
method                  scheme                      value of code ``q``
======================  ==========================  ===========================================
SYMMETRIC               ``int<bits>.tensor``        ``scale * q``
AFFINE                  ``uint<bits>.tensor``       ``scale * (q - zero_point)``
UNIFORM                 ``uint<bits>.tensor.fz``    ``min_val + scale * q``
POWER_OF_TWO            ``…fz.pow2``                ``min_val + scale * q``, scale a power of two
INT4, UINT4             4-bit SYMMETRIC, UNIFORM    the bits asked for are ignored
FLOAT16, BFLOAT16       ``fp16``, ``bf16``          the cast value; the bits asked for are ignored
PER_CHANNEL_SYMMETRIC   ``int<bits>.column``        ``scale[column] * q``
PER_CHANNEL_AFFINE      ``uint<bits>.column``       ``scale[column] * (q - zero_point[column])``
======================  ==========================  ===========================================

The affine code is ``clamp(round(x / scale) + zero_point)``. Bits are 2 to 8; codes of 5, 6 and 7 bits take a byte each.
"""
from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from enum import Enum

import torch

from .errors import InvalidProblemError, shorten
from .formats import Format
from .formats.core import code_range
from .qtensor import QTensor
from .scheme import Scheme

MIN_BITS, MAX_BITS = 2, 8
ROUNDINGS = ("half_even", "half_away")


class QuantizationMethod(Enum):
    """How a matrix or vector is quantized; the table above says what each method computes."""

    UNIFORM = "Uniform"
    SYMMETRIC = "Symmetric"
    AFFINE = "Affine"
    POWER_OF_TWO = "PowerOfTwo"
    INT4 = "Int4"
    UINT4 = "UInt4"
    FLOAT16 = "Float16"
    BFLOAT16 = "BFloat16"
    PER_CHANNEL_SYMMETRIC = "PerChannelSymmetric"
    PER_CHANNEL_AFFINE = "PerChannelAffine"

    @property
    def per_channel(self) -> bool:
        """One scale per column instead of one per matrix."""
        return self in (QuantizationMethod.PER_CHANNEL_SYMMETRIC, QuantizationMethod.PER_CHANNEL_AFFINE)

    @property
    def float_zero(self) -> bool:
        """Codes count steps above ``min_val``."""
        return self in (QuantizationMethod.UNIFORM, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UINT4)

    @property
    def symmetric(self) -> bool:
        """Codes are signed and zero is code 0."""
        return self in (QuantizationMethod.SYMMETRIC, QuantizationMethod.INT4, QuantizationMethod.PER_CHANNEL_SYMMETRIC)

    @property
    def is_cast(self) -> bool:
        """A plain float cast: no codes, no scale."""
        return self in (QuantizationMethod.FLOAT16, QuantizationMethod.BFLOAT16)

    def code_bits(self, bits: int) -> int:
        """The width of a code when a caller asks for ``bits``: 4 for INT4 and UINT4, 16 for the casts, else ``bits``.

        Raises:
            InvalidProblemError: ``bits`` is no integer, or the method takes it and it is not in 2..8.
        """
        if isinstance(bits, bool) or not isinstance(bits, int):
            raise InvalidProblemError(f"bits must be an int, got {type(bits).__name__} {bits!r}")
        if self.is_cast:
            return 16
        if self in (QuantizationMethod.INT4, QuantizationMethod.UINT4):
            return 4
        if not MIN_BITS <= bits <= MAX_BITS:
            known = ", ".join(str(b) for b in range(MIN_BITS, MAX_BITS + 1))
            raise InvalidProblemError(f"{self.name} has no codes of {bits} bits; bits must be one of {known} (16: FLOAT16, BFLOAT16)")
        return bits

    def code_range(self, bits: int) -> tuple[int, int]:
        """Smallest and largest code: ``-2**(b-1) .. 2**(b-1) - 1`` for symmetric methods, else ``0 .. 2**b - 1``."""
        return code_range(self.code_bits(bits), self.symmetric)

    def data_type(self, bits: int) -> QuantizedDataType:
        """What holds one code: INT4 or UINT4 for 4-bit codes, INT8 or UINT8 for other widths, the float type for casts."""
        if self.is_cast:
            return QuantizedDataType[self.name]
        return QuantizedDataType[f"{'INT' if self.symmetric else 'UINT'}{4 if self.code_bits(bits) == 4 else 8}"]


class QuantizedDataType(Enum):
    """What holds one code. UINT8 is here because unsigned 8-bit codes do not fit INT8."""

    INT8 = "Int8"
    UINT8 = "UInt8"
    INT4 = "Int4"
    UINT4 = "UInt4"
    FLOAT16 = "Float16"
    BFLOAT16 = "BFloat16"


@dataclass(frozen=True, kw_only=True)
class QuantizationParams:
    """What one call of a quantize function chose, as Python numbers.

    Attributes:
        bits: width of a code, 16 for casts.
        scale: float32 value; per-channel methods: the mean of ``channel_scales``; casts: 1.
        zero_point: AFFINE: the code of zero; per-channel: the rounded mean; 0 for the other methods, except UINT4, which
            reports ``round(-min_val / scale)`` (decoding does not use it).
        min_val, max_val: least and greatest finite value of the data (0 where there is none). For UNIFORM, POWER_OF_TWO and
            UINT4 ``min_val`` is the offset that decoding adds, a float32 value.
        method, data_type: see the enums.
        channel_scales, channel_zero_points: one per column for per-channel methods, else None.

    Raises:
        InvalidProblemError: a field of the wrong type, bits that the method does not have, a scale that is not finite and positive, a range
            that is not finite, channel lists of different lengths.
    """

    bits: int
    scale: float
    zero_point: int
    min_val: float
    max_val: float
    method: QuantizationMethod
    data_type: QuantizedDataType
    channel_scales: tuple[float, ...] | None = None
    channel_zero_points: tuple[int, ...] | None = None

    def __post_init__(self):
        for name, kinds in _FIELD_TYPES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise InvalidProblemError(f"{name} must be {_words(kinds)}, got {type(value).__name__} {value!r}")
        for name in ("channel_scales", "channel_zero_points"):
            value = getattr(self, name)
            if (value is not None) != self.method.per_channel or not isinstance(value, (tuple, list, type(None))):
                wanted = "one per column" if self.method.per_channel else "None"
                raise InvalidProblemError(f"{name} of {self.method.name} must be {wanted}, got {value!r}"[:300])
            object.__setattr__(self, name, None if value is None else tuple(value))
        scales = self.channel_scales or ()
        if self.method.per_channel and len(scales) != len(self.channel_zero_points):
            counts = f"{len(scales)} channel_scales and {len(self.channel_zero_points)} channel_zero_points"
            raise InvalidProblemError(f"{counts} do not belong together; give one of each per column")
        for scale in (self.scale, *scales):
            if not (_is_finite(scale) and scale > 0):
                raise InvalidProblemError(f"a scale must be finite and positive, got {scale!r}"[:200])
        for name in ("min_val", "max_val"):
            if not _is_finite(value := getattr(self, name)):
                raise InvalidProblemError(f"{name} must be finite, got {value!r}"[:200])
        if self.bits != (width := self.method.code_bits(self.bits)):
            raise InvalidProblemError(f"codes of {self.method.name} have {width} bits, got bits={self.bits}"[:200])


_FIELD_TYPES = {
    "bits": int, "scale": (int, float), "zero_point": int, "min_val": (int, float), "max_val": (int, float),
    "method": QuantizationMethod, "data_type": QuantizedDataType,
}  # fmt: skip


def _is_finite(value) -> bool:
    """Whether it is a number that a float holds; integers have no end, and ``math.isfinite`` raises for the large ones."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _words(kinds: type | tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))


def determine_data_type(bits: int) -> QuantizedDataType:
    """The signed type for codes of ``bits`` bits: 4 is INT4, 16 FLOAT16, the other widths up to 8 INT8.

    Raises:
        InvalidProblemError: any other width.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not (MIN_BITS <= bits <= MAX_BITS or bits == 16):
        raise InvalidProblemError(f"no data type holds codes of {bits!r} bits; known: {MIN_BITS}..{MAX_BITS} and 16")
    if bits == 16:
        return QuantizedDataType.FLOAT16
    return QuantizedDataType.INT4 if bits == 4 else QuantizedDataType.INT8


@dataclass(frozen=True, kw_only=True, eq=False)
class _ByteFormat(Format):
    """Codes of fewer bits, one per byte. Never registered: it quantizes, the result then is of the 8-bit format."""

    width: int

    @property
    def code_range(self) -> tuple[int, int]:
        return code_range(self.width, self.signed)


def method_scheme(method: QuantizationMethod, bits: int, rounding: str = "half_even") -> Scheme:
    """The scheme of the QTensor that ``method`` makes, such as ``uint8.tensor.fz.s32``.

    Scales are stored in float32 for every input dtype, so that ``QuantizationParams`` holds them exactly.

    Raises:
        InvalidProblemError: no QuantizationMethod, bits that the method does not have, an unknown rounding.

    Example:
        >>> str(method_scheme(QuantizationMethod.PER_CHANNEL_AFFINE, 4, "half_away"))
        'uint4.column.away.s32'
    """
    if not isinstance(method, QuantizationMethod):
        known = ", ".join(m.name for m in QuantizationMethod)
        raise InvalidProblemError(f"method must be a QuantizationMethod, got {type(method).__name__} {method!r}; known: {known}"[:400])
    if rounding not in ROUNDINGS:
        raise InvalidProblemError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    bits = method.code_bits(bits)
    if method.is_cast:
        return Scheme.parse({QuantizationMethod.FLOAT16: "fp16", QuantizationMethod.BFLOAT16: "bf16"}[method])
    width = bits if bits <= 4 else 8
    parts = [f"{'int' if method.symmetric else 'uint'}{width}", "column" if method.per_channel else "tensor"]
    parts += ["fz"] * method.float_zero + ["pow2"] * (method is QuantizationMethod.POWER_OF_TWO) + ["away"] * (rounding == "half_away")
    return Scheme.parse(".".join([*parts, "s32"]))


def encoding_scheme(method: QuantizationMethod, bits: int, rounding: str = "half_even") -> Scheme:
    """What to quantize with: :func:`method_scheme`, but for 5, 6 and 7 bits with the range of those codes."""
    scheme = method_scheme(method, bits, rounding)
    width = method.code_bits(bits)
    if width >= scheme.format.bits:
        return scheme
    wide, largest = scheme.format, method.code_range(bits)[1]
    narrow = _ByteFormat(
        name=f"{'int' if wide.signed else 'uint'}{width}", bits=wide.bits, width=width, signed=wide.signed, affine=wide.affine,
        max_abs=float(largest), group=wide.group, scale=wide.scale, source=wide.source,
    )  # fmt: skip
    return replace(scheme, format=narrow, spelling=None)


def check_pair(q: QTensor, params: QuantizationParams, name: str = "q") -> None:
    """Refuse parameters that were not made with ``q``: another method, width, scale or zero point. Reads the scales back from a GPU.

    Raises:
        InvalidProblemError: says which field differs, with both values.
    """
    if not isinstance(q, QTensor):
        raise InvalidProblemError(f"{name} must be a QTensor, got {type(q).__name__}")
    if not isinstance(params, QuantizationParams):
        raise InvalidProblemError(f"the parameters of {name} must be a QuantizationParams, got {type(params).__name__}")
    want = method_scheme(params.method, params.bits, "half_away" if "away" in q.scheme.options else "half_even")
    if q.scheme != want:
        said = f"{params.method.name} with {params.bits} bits, which is {want}"
        raise InvalidProblemError(f"{name} is {q.scheme}, its parameters say {said}; pass those that its quantize call returned")
    stored = stored_fields(q, params.method)
    for field, value in stored.items():
        if (got := getattr(params, field)) != value:
            differs = f"{name} holds {field}={shorten(value)}, its parameters say {shorten(got)}"
            raise InvalidProblemError(f"{differs}; pass those that its quantize call returned")


def stored_fields(q: QTensor, method: QuantizationMethod) -> dict:
    """The fields of ``QuantizationParams`` that the QTensor itself holds."""
    if method.is_cast or not q.scale.numel():
        empty = {"channel_scales": (), "channel_zero_points": ()} if method.per_channel else {}
        return {"scale": 1.0, **empty}
    scales = q.scale.flatten().tolist()
    if method.float_zero:
        return {"scale": scales[0], "min_val": q.zero_point.flatten().tolist()[0]}
    zero_points = [0] * len(scales) if q.zero_point is None else q.zero_point.flatten().tolist()
    if not method.per_channel:
        return {"scale": scales[0], "zero_point": zero_points[0]}
    mean = torch.tensor(math.fsum(scales) / len(scales), dtype=torch.float32).clamp(min=2.0**-149).item()
    return {"scale": mean, "channel_scales": tuple(scales), "channel_zero_points": tuple(zero_points)}
