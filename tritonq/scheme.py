"""Floor 1. A scheme: a format plus the choices a user makes. ``Scheme.parse("int4.g64.full")`` and ``str(scheme)`` are inverses."""
from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch

from .dtypes import compute_dtype
from .errors import InvalidProblemError
from .formats import FORMATS, SCALE_FORMATS, Format, ScaleFormat, default_scale_format, get_format, get_scale_format

# bitsandbytes quantizes the scales of a doubly quantized tensor in blocks of 256 (functional.quantize_4bit).
DQ_BLOCK = 256

OPTIONS = {
    "full": "symmetric scale = absmax / (2**(bits-1) - 0.5)",
    "narrow": "symmetric codes clamp to the largest positive code on both sides",
    "fz": "float zero: x = min + scale * code over the data's own range",
    "pow2": "the scale is rounded up to a power of two",
    "away": "round half away from zero instead of half to even",
    "dq": "the scales are quantized too (bitsandbytes double quantization)",
}
_SCALE_OPTIONS = {fmt.option: fmt.name for fmt in SCALE_FORMATS.values()}


@dataclass(frozen=True)
class Granularity:
    """Which elements of ``[N, K]`` share a scale. ``kind`` is tensor, channel, column, token, group, block or none."""

    kind: str
    rows: int = 0
    columns: int = 0

    @classmethod
    def parse(cls, text: str) -> Granularity | None:
        """``"g64"``, ``"b128x128"``, ``"channel"``, ...; None where ``text`` is no granularity."""
        if text in ("tensor", "channel", "column", "token", "none"):
            return cls(text)
        if match := re.fullmatch(r"g([0-9]+)", text):
            return cls("group", 1, int(match[1]))
        if match := re.fullmatch(r"b([0-9]+)x([0-9]+)", text):
            return cls("block", int(match[1]), int(match[2]))
        return None

    def __str__(self) -> str:
        return {"group": f"g{self.columns}", "block": f"b{self.rows}x{self.columns}"}.get(self.kind, self.kind)

    def group_shape(self, n: int, k: int) -> tuple[int, int]:
        """Rows and columns of one group, at most those of the ``[n, k]`` matrix; the last group along each axis may be short."""
        whole = {"tensor": (n, k), "channel": (1, k), "token": (1, k), "column": (n, 1), "none": (n, k)}
        rows, columns = whole.get(self.kind, (self.rows, self.columns))
        return max(min(rows, n), 1), max(min(columns, k), 1)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a matrix is quantized. Build one with :meth:`parse`; two schemes are equal when their parts are, however spelled.

    Attributes:
        format: what a code means.
        granularity: which elements share a scale.
        scale: name of the scale's storage format, None for the default (see :meth:`scale_format`).
        options: any of ``full narrow fz pow2 away dq``.
        recipe: ``"mx"`` (scale = power of two by the floor rule of the OCP specification), ``"nv"`` (e4m3 scales under one
            float32 per tensor), or None.
    """

    format: Format
    granularity: Granularity
    scale: str | None = None
    options: frozenset[str] = frozenset()
    recipe: str | None = None
    spelling: str | None = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, text: str | Scheme) -> Scheme:
        """Read ``<format>[.<granularity>][.<option>]...`` or a preset name such as ``mxfp4`` or ``W4A16``.

        Raises:
            InvalidProblemError: an unknown part (the text lists the known ones), a part given twice, or parts that exclude each other.

        Example:
            >>> str(Scheme.parse("int4.g64.full"))
            'int4.g64.full'
        """
        if isinstance(text, Scheme):
            return text
        if not isinstance(text, str):
            raise InvalidProblemError(f"a scheme is a Scheme or a text such as 'nf4.g64', got {type(text).__name__} {text!r}"[:200])
        if len(text) > 100:
            raise InvalidProblemError(f"scheme {text[:60]!r}... of {len(text)} characters: no scheme has more than 100")
        if text in PRESETS:
            return cls(**PRESETS[text], spelling=text)
        if text in ALIASES:
            return replace(cls.parse(ALIASES[text]), spelling=text)
        name, *parts = text.split(".")
        if name in PRESETS or name in ALIASES:
            added = ".".join(parts)
            raise InvalidProblemError(
                f"scheme {text!r}: {name} fixes its group size, scale and rounding, so {added!r} cannot be added; use {name!r}"
            )
        if name not in FORMATS:
            known = ", ".join([*FORMATS, *PRESETS, *ALIASES])
            raise InvalidProblemError(f"scheme {text!r}: unknown format {name!r}; known formats and presets: {known}")
        fmt = get_format(name)
        granularity, scale, options = None, None, []
        for part in parts:
            found = Granularity.parse(part)
            if found is not None and found.kind != "none":
                if granularity is not None:
                    raise InvalidProblemError(f"scheme {text!r} names two granularities, {granularity} and {part}; keep one")
                granularity = found
            elif part in _SCALE_OPTIONS:
                if scale is not None:
                    raise InvalidProblemError(f"scheme {text!r} names two scale formats; keep one of {', '.join(_SCALE_OPTIONS)}")
                scale = _SCALE_OPTIONS[part]
            elif part in OPTIONS:
                if part in options:
                    raise InvalidProblemError(f"scheme {text!r} names the option {part!r} twice; once is enough")
                options.append(part)
            else:
                raise InvalidProblemError(
                    f"scheme {text!r}: unknown part {part!r}; "
                    f"known granularities: tensor, channel, column, token, g<size>, b<rows>x<columns>; "
                    f"known options: {', '.join([*OPTIONS, *_SCALE_OPTIONS])}"
                )
        granularity = granularity or Granularity.parse(fmt.group)
        return cls(format=fmt, granularity=granularity, scale=scale, options=frozenset(options), spelling=text)

    def __post_init__(self):
        fmt, options, text = self.format, self.options, str(self)
        for option in sorted(options):
            if option not in OPTIONS:
                raise InvalidProblemError(f"scheme {text!r}: unknown option {option!r}; known options: {', '.join(OPTIONS)}")

        def refuse(rule: str) -> NoReturn:
            raise InvalidProblemError(f"scheme {text!r}: {rule}")

        if fmt.max_abs is None and (self.granularity.kind != "none" or options or self.scale):
            refuse(f"{fmt.name} is a plain cast without a scale and takes no granularity or option; use {fmt.name!r}")
        if fmt.max_abs is not None and self.granularity.kind == "none":
            refuse(f"{fmt.name} needs a granularity, such as {fmt.group!r}")
        if self.granularity.kind in ("group", "block") and min(self.granularity.rows, self.granularity.columns) < 1:
            refuse(f"granularity {self.granularity} has a size below 1; sizes start at 1")
        symmetric = fmt.is_integer and fmt.signed
        for option in ("full", "narrow"):
            if option in options and not symmetric:
                refuse(f"option {option!r} is for signed integer formats (int8, int4, int3, int2), not {fmt.name}")
        if "fz" in options and not fmt.affine:
            refuse(f"option 'fz' is for unsigned integer formats (uint8, uint4, uint3, uint2), not {fmt.name}")
        if "away" in options and not fmt.is_integer:
            refuse(f"option 'away' is for integer formats; {fmt.name} fixes its own tie rule")
        if "dq" in options and (self.scale or "pow2" in options):
            refuse("option 'dq' stores scales in its own 8-bit code; leave out pow2 and the scale format")

    def __str__(self) -> str:
        if self.spelling:
            return self.spelling
        scale = [get_scale_format(self.scale).option] if self.scale else []
        kind = [] if self.granularity.kind == "none" else [str(self.granularity)]
        return ".".join([self.format.name, *kind, *(o for o in OPTIONS if o in self.options), *scale])

    def __repr__(self) -> str:
        return f"Scheme({str(self)!r})"

    def __reduce__(self):
        return Scheme.parse, (str(self),)

    @property
    def group_size(self) -> int | None:
        """Columns per scale for ``g<size>`` schemes and the mx and nv presets, else None."""
        return self.granularity.columns if self.granularity.kind == "group" else None

    @property
    def float_zero(self) -> bool:
        """Values are ``zero_point + scale * code`` with a float zero point."""
        return "fz" in self.options

    @property
    def has_scale(self) -> bool:
        return self.format.max_abs is not None

    @property
    def divisor(self) -> float:
        """What absmax, or the extent of an affine range, is divided by to give the scale."""
        return self.format.max_abs + 0.5 if "full" in self.options else self.format.max_abs

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest logical code that quantize writes."""
        low, high = self.format.code_range
        return (-high, high) if "narrow" in self.options else (low, high)

    @property
    def rounds_up(self) -> bool:
        """The scale is rounded up to a power of two before it is stored."""
        return "pow2" in self.options or (self.format.is_integer and self.scale == "e8m0")

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest level, for the floor rule: 2 for e2m1, 8 for e4m3."""
        return int(self.format.max_abs).bit_length() - 1

    def scale_format(self, dtype: torch.dtype) -> ScaleFormat:
        """How scales of a ``dtype`` input are stored. ``dq`` codes are computed with the plain scale, float32."""
        if self.scale or self.format.scale or "dq" in self.options:
            return get_scale_format(self.scale or ("fp32" if "dq" in self.options else self.format.scale))
        return default_scale_format(dtype)

    def decode_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What decoding to ``dtype`` computes in: float64 where the result or the stored scale is, else float32."""
        return torch.float64 if self.scale == "fp64" else compute_dtype(dtype)

    def zero_format(self, dtype: torch.dtype) -> ScaleFormat:
        """How the float zero point of ``fz`` is stored: like the scale, or in the default where the scale is an 8-bit float."""
        fmt = self.scale_format(dtype)
        return default_scale_format(dtype) if fmt.carrier == torch.uint8 else fmt

    def zero_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of the zero points of a ``dtype`` input, as they are stored, where the format has some."""
        return self.zero_format(dtype).dtype if self.float_zero else torch.uint8

    def group_shape(self, n: int, k: int) -> tuple[int, int]:
        """Rows and columns of one group of an ``[n, k]`` matrix."""
        return self.granularity.group_shape(n, k)

    def scale_shape(self, n: int, k: int) -> tuple[int, int]:
        """Shape of the scales of an ``[n, k]`` matrix: groups along each axis."""
        rows, columns = self.group_shape(n, k)
        return -(-n // rows), -(-k // columns)

    def metadata_bits(self, dtype: torch.dtype = torch.float32) -> int:
        """Bits stored per group beside the codes: scale and zero point (``dq``: 8, its own blocks not counted)."""
        if not self.has_scale:
            return 0
        bits = 8 if "dq" in self.options else self.scale_format(dtype).bits
        if self.format.affine:
            bits += self.zero_format(dtype).bits if self.float_zero else 8
        return bits

    def bits_per_weight(self, n: int | None = None, k: int | None = None, dtype: torch.dtype = torch.float32) -> float:
        """Stored bits per weight, metadata counted. Without a shape: of a matrix so large that only per-group metadata counts.

        Example:
            >>> Scheme.parse("nf4.g64").bits_per_weight()
            4.5
        """
        bits = float(self.format.bits)
        if not self.has_scale:
            return bits
        second = 32 / DQ_BLOCK if "dq" in self.options else 0
        if n is None or k is None:
            rows, columns = self.granularity.rows, self.granularity.columns
            return bits + ((self.metadata_bits(dtype) + second) / (rows * columns) if rows else 0)
        if n * k == 0:
            return bits
        groups = self.scale_shape(n, k)[0] * self.scale_shape(n, k)[1]
        total = 8 * n * self.format.row_bytes(k) + groups * self.metadata_bits(dtype)
        if "dq" in self.options:
            total += 32 * (-(-groups // DQ_BLOCK)) + 32
        if self.recipe == "nv":
            total += 32
        return total / (n * k)


PRESETS = {
    "mxfp4": {"format": FORMATS["fp4_e2m1"], "granularity": Granularity("group", 1, 32), "scale": "e8m0", "recipe": "mx"},
    "mxfp8": {"format": FORMATS["fp8_e4m3"], "granularity": Granularity("group", 1, 32), "scale": "e8m0", "recipe": "mx"},
    "nvfp4": {"format": FORMATS["fp4_e2m1"], "granularity": Granularity("group", 1, 16), "scale": "e4m3", "recipe": "nv"},
}
# Weight halves of the presets of compressed-tensors (quant_scheme.py), with its symmetric convention (full).
ALIASES = {
    "W4A16": "int4.g128.full",
    "A16W4": "int4.g128.full",
    "W8A8": "int8.channel.full",
    "W8A16": "int8.g128.full",
    "W4A16_ASYM": "uint4.g128",
    "FP8": "fp8_e4m3.tensor",
    "FP8_BLOCK": "fp8_e4m3.b128x128",
    "MXFP4": "mxfp4",
    "MXFP8": "mxfp8",
    "NVFP4": "nvfp4",
}


def scheme_names() -> list[str]:
    """Every format and preset under its plain name, in registry order."""
    return [*FORMATS, *PRESETS]
