"""The rules of quantization once more, group by group in numpy, written without the library: what the torch reference is judged by.

Numbers of small floats come from tables of all their values, so that "nearest, ties to even" is a search and not bit arithmetic.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

DEFAULT_GRANULARITY = {"int8": "channel", "uint8": "channel", "nf4": "g64", "fp4_bnb": "g64", "fp4_e2m1": "g32"} | {
    fp8: "channel" for fp8 in ("fp8_e4m3", "fp8_e5m2")
}
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip
FP4_BNB = tuple(np.float32(m) / np.float32(12) for m in (0, 0.0625, 8, 12, 4, 6, 2, 3))
# exponent bits, mantissa bits, largest finite value
MINIFLOATS = {
    "fp4_e2m1": (2, 1, 6.0), "fp8_e4m3": (4, 3, 448.0), "fp8_e5m2": (5, 2, 57344.0),
    "fp16": (5, 10, 65504.0), "bf16": (8, 7, 3.3895313892515355e38),
}  # fmt: skip
PRESETS = {"mxfp4": "fp4_e2m1.g32.se8m0", "mxfp8": "fp8_e4m3.g32.se8m0", "nvfp4": "fp4_e2m1.g16.se4m3"}
SCALE_TYPES = {"s16": "fp16", "sbf16": "bf16", "s32": "fp32", "s64": "fp64", "se8m0": "e8m0", "se4m3": "fp8_e4m3"}


def small_float_values(exponent_bits: int, mantissa_bits: int, largest: float) -> np.ndarray:
    """Every non-negative value, float64, in the order of its code."""
    bias = 2 ** (exponent_bits - 1) - 1
    code = np.arange(2 ** (exponent_bits + mantissa_bits))
    exponent, fraction = code >> mantissa_bits, (code & (2**mantissa_bits - 1)) / 2.0**mantissa_bits
    with np.errstate(over="ignore"):
        value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias).astype(np.float64))
    return value[value <= largest]


VALUES = {name: small_float_values(*layout) for name, layout in MINIFLOATS.items()} | {"e8m0": 2.0 ** np.arange(-127.0, 128.0)}


def nearest_even(values: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Code of the nearest value, ties to the even code, saturating."""
    middle = (values[1:] + values[:-1]) / 2  # exact in float64
    below, upto = np.searchsorted(middle, magnitude, "left"), np.searchsorted(middle, magnitude, "right")
    return np.where(below % 2 == 0, below, upto)  # they differ on ties alone


def store(value: np.ndarray, kind: str, positive: bool = True) -> np.ndarray:
    """A scale (or a signed zero point) as it comes back from its storage, float64."""
    value = value.astype(np.float64)
    if kind == "fp64":
        return np.clip(value, -np.finfo(np.float64).max, np.finfo(np.float64).max)
    if kind == "fp32":
        largest = float(np.finfo(np.float32).max)
        stored = np.clip(value, -largest, largest).astype(np.float32).astype(np.float64)
        return np.where((stored == 0) & (value > 0), 2.0**-149, stored)
    code = nearest_even(VALUES[kind], np.abs(value))
    if positive and kind != "e8m0":
        code = np.where((code == 0) & (value > 0), 1, code)
    return np.copysign(VALUES[kind][code], value) if not positive else VALUES[kind][code]


def power_of_two_above(value: np.ndarray) -> np.ndarray:
    info = np.finfo(value.dtype)
    fraction, exponent = np.frexp(value.astype(np.float64))
    exponent = np.where(np.isinf(value), info.maxexp, np.where(fraction == 0.5, exponent - 1, exponent)).clip(info.minexp, info.maxexp - 1)
    return np.where(value > 0, 2.0 ** exponent.astype(np.float64), 0.0).astype(value.dtype)


def round_half(value: np.ndarray, away: bool) -> np.ndarray:
    if not away:
        return np.rint(value)
    magnitude = np.abs(value)
    whole = np.floor(magnitude)
    return np.copysign(whole + (magnitude - whole >= 0.5), value)


@dataclass
class Result:
    """Logical codes, what the scales and zero points decode to (float64), and the decoded matrix in float32 and in float64."""

    codes: np.ndarray
    scale: np.ndarray | None
    zero: np.ndarray | None
    second: np.ndarray | None
    decoded32: np.ndarray
    decoded64: np.ndarray


class BruteForce:
    """``BruteForce("int4.g32.full", "float16").quantize(x)`` with x as float32 (float64 where the dtype is)."""

    def __init__(self, scheme: str, dtype: str):
        self.recipe = {"mxfp4": "mx", "mxfp8": "mx", "nvfp4": "nv"}.get(scheme)
        name, *parts = PRESETS.get(scheme, scheme).split(".")
        self.format, self.compute = name, np.float64 if dtype == "float64" else np.float32
        integer = re.fullmatch(r"(u?)int(\d)", name)
        self.bits = int(integer[2]) if integer else None
        self.affine, self.signed = bool(integer and integer[1]), bool(integer and not integer[1])
        self.options = {p for p in parts if p in ("full", "narrow", "fz", "pow2", "away", "dq")}
        geometry = [p for p in parts if re.fullmatch(r"tensor|channel|column|token|g\d+|b\d+x\d+", p)]
        self.granularity = geometry[0] if geometry else DEFAULT_GRANULARITY.get(name, "g128")
        own = {"float16": "fp16", "bfloat16": "bf16"}.get(dtype, "fp32")
        default = own if integer and "dq" not in self.options else "fp32"
        self.storage = next((SCALE_TYPES[p] for p in parts if p in SCALE_TYPES), default)
        self.zero_storage = own if self.storage in ("e8m0", "fp8_e4m3") else self.storage

    def groups(self, n: int, k: int) -> tuple[list[tuple[slice, slice]], tuple[int, int]]:
        rows, columns = {"tensor": (n, k), "channel": (1, k), "token": (1, k), "column": (n, 1)}.get(self.granularity, (0, 0))
        if match := re.fullmatch(r"g(\d+)", self.granularity):
            rows, columns = 1, int(match[1])
        if match := re.fullmatch(r"b(\d+)x(\d+)", self.granularity):
            rows, columns = int(match[1]), int(match[2])
        starts = [(r, c) for r in range(0, n, rows) for c in range(0, k, columns)]
        return [(slice(r, min(r + rows, n)), slice(c, min(c + columns, k))) for r, c in starts], (-(-n // rows), -(-k // columns))

    def quantize(self, x: np.ndarray) -> Result:
        with np.errstate(all="ignore"):
            return self._cast(x) if self.format in ("fp16", "bf16") else self._quantize(x)

    def _cast(self, x: np.ndarray) -> Result:
        code, level = self.level_code(np.where(np.isnan(x), 0, x))
        return Result(code, None, None, None, level.astype(np.float32), level)

    def _quantize(self, x: np.ndarray) -> Result:
        assert x.dtype == self.compute
        places, shape = self.groups(*x.shape)
        clean = np.where(np.isnan(x), self.compute(0), x)
        second = None
        if self.recipe == "nv":
            absmax = self.finite(x, lambda v: np.abs(v).max(), 0)
            limit = np.finfo(np.float32).max / np.float64(512)
            second = np.float32(np.clip(absmax / self.compute(448 * 6), 2.0**-149, limit)) if absmax > 0 else np.float32(1)
        codes, level = np.zeros(x.shape, np.int64), np.zeros(x.shape)
        scales, zeros = np.zeros(len(places)), np.zeros(len(places))
        spread_scale, spread_zero = np.zeros(x.shape), np.zeros(x.shape)
        for i, at in enumerate(places):
            scales[i], zeros[i] = self.parameters(x[at], second)
            divisor = self.compute(np.float32(scales[i]) * second if second is not None else scales[i])
            codes[at], level[at] = self.encode(clean[at], divisor, self.compute(zeros[i]))
            spread_scale[at], spread_zero[at] = scales[i], zeros[i]
        if "dq" in self.options:
            expanded = double_quantized(scales.astype(np.float32))
            for i, at in enumerate(places):
                spread_scale[at] = expanded[i]
        decoded = []
        for dtype in (np.float32, np.float64):
            work = np.float64 if self.storage == "fp64" else dtype
            scale = spread_scale.astype(work)
            if second is not None:
                scale = (spread_scale.astype(np.float32) * second).astype(work)
            zero = spread_zero.astype(work)
            value = zero + scale * level.astype(work) if "fz" in self.options else scale * (level.astype(work) - zero)
            decoded.append(value.astype(dtype))
        return Result(codes, scales.reshape(shape), zeros.reshape(shape) if self.affine else None, second, *decoded)

    def finite(self, group: np.ndarray, statistic, otherwise):
        values = group[np.isfinite(group)]
        return statistic(values) if values.size else self.compute(otherwise)

    def parameters(self, group: np.ndarray, second: np.float32 | None) -> tuple[float, float]:
        """Scale and zero point of one group, as they come back from storage."""
        low, high = self.finite(group, np.min, 0), self.finite(group, np.max, 0)
        absmax = max(abs(low), abs(high))
        if self.recipe == "mx":
            top = {"fp4_e2m1": 2, "fp8_e4m3": 8}[self.format]
            exponent = np.frexp(np.float64(absmax))[1] - 1 - top if absmax > 0 else -127
            return 2.0 ** float(np.clip(exponent, -127, 127)), 0.0
        if self.affine:
            if "fz" not in self.options:
                low, high = min(low, self.compute(0)), max(high, self.compute(0))
            extent, divisor = high - low, 2**self.bits - 1
        else:
            extent = self.compute(absmax)
            if self.bits:
                divisor = 2 ** (self.bits - 1) - (0.5 if "full" in self.options else 1)
            else:
                divisor = MINIFLOATS[self.format][2] if self.format in MINIFLOATS else 1
        scale = self.compute(extent) / self.compute(divisor)
        if second is not None:
            scale = scale / self.compute(second)
        if extent == 0:
            scale = self.compute(0 if self.format in ("nf4", "fp4_bnb") else 1)
        elif scale == 0:
            scale = np.nextafter(self.compute(0), self.compute(1))
        if "pow2" in self.options or (self.bits and self.storage == "e8m0"):
            scale = power_of_two_above(np.array(scale))[()]
        stored = store(np.array(scale), self.storage)[()]
        if not self.affine:
            return stored, 0.0
        if "fz" in self.options:
            return stored, store(np.array(low), self.zero_storage, positive=False)[()]
        zero = round_half(-low / self.compute(stored), "away" in self.options)
        return stored, float(np.clip(zero, 0, 2**self.bits - 1))

    def encode(self, x: np.ndarray, scale: np.floating, zero: np.floating) -> tuple[np.ndarray, np.ndarray]:
        """Codes and levels of one group."""
        scale = scale if scale != 0 else self.compute(1)
        if not self.bits:
            return self.level_code(x / scale)
        quotient = (x - zero) / scale if "fz" in self.options else x / scale
        code = round_half(quotient, "away" in self.options) + (0 if "fz" in self.options else zero)
        top = 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
        bottom = 0 if self.affine else -top if "narrow" in self.options else -top - 1
        code = np.clip(code, bottom, top).astype(np.int64)
        return code, code.astype(np.float64)

    def level_code(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = u.astype(np.float64)
        if self.format in MINIFLOATS:
            exponent_bits, mantissa_bits, _ = MINIFLOATS[self.format]
            magnitude = nearest_even(VALUES[self.format], np.abs(u))
            sign = np.signbit(u).astype(np.int64) << (exponent_bits + mantissa_bits)
            return magnitude + sign, np.copysign(VALUES[self.format][magnitude], u)
        table = np.array(NF4 if self.format == "nf4" else [*FP4_BNB, *(-m for m in FP4_BNB)], np.float32).astype(np.float64)
        order = np.argsort(table, kind="stable")
        middle = ((table[order][1:] + table[order][:-1]) / 2).astype(np.float32).astype(np.float64)
        code = order[np.searchsorted(middle, u, "left")]
        return code, table[code]


def double_quantized(scales: np.ndarray) -> np.ndarray:
    """float32 scales after bitsandbytes' double quantization: less their mean, blocks of 256, dynamic 8-bit map."""
    steps = [torch.linspace(0.1, 1, 2**i + 1).numpy() for i in range(7)]  # numpy's own differs in the last bit
    positive = [np.float32(10.0 ** (i - 6)) * ((edges[1:] + edges[:-1]) / np.float32(2)) for i, edges in enumerate(steps)]
    table = np.sort(np.concatenate([np.float32([0, 1]), *positive, *(-p for p in positive)]))
    middle = (table[1:] + table[:-1]) / np.float32(2)
    offset = np.float32(scales.astype(np.float64).mean())
    expanded = np.empty_like(scales)
    for start in range(0, scales.size, 256):
        centred = scales[start : start + 256] - offset
        absmax = np.abs(centred).max()
        code = np.searchsorted(middle, centred / (absmax if absmax > 0 else np.float32(1)), "left")
        expanded[start : start + 256] = np.nan_to_num(table[code] * absmax + offset)
    return expanded
