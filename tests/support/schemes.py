"""The schemes that whole-operation tests sweep, and data that provokes every rule."""
import os
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from tritonq import QTensor, reference
from tritonq.formats import FORMATS
from tritonq.scheme import PRESETS, Scheme

from .poison import fenced

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

GRANULARITIES = ("tensor", "channel", "column", "token", "g32", "g96", "g1000", "g7", "g1", "b3x5", "b4x32")
OPTIONS = {
    "int4": ("full", "narrow", "pow2", "away", "dq", "s32", "s16", "sbf16", "se8m0", "se4m3", "full.narrow.away.s16"),
    "uint4": ("fz", "fz.pow2", "pow2", "away", "dq", "s16", "se8m0", "se4m3", "fz.se8m0", "fz.s16"),
    "nf4": ("dq", "pow2", "s16", "sbf16", "se4m3", "se8m0"),
    "fp8_e4m3": ("pow2", "se8m0", "sbf16", "s64"),
    "int3": ("g8.full", "g24", "g5.away"),
    "uint3": ("g64.fz",),
    "int2": ("g16.narrow",),
    "uint2": ("b2x3.fz",),
}
# Every way to write a scheme but for format x granularity, which EVERY_GEOMETRY holds.
SCHEMES = [*FORMATS, *PRESETS, *(f"{fmt}.{option}" for fmt, options in OPTIONS.items() for option in options)]
_FULL = os.environ.get("TRITONQ_TEST_FULL") == "1"
_GEOMETRIES = [f"{fmt.name}.{granularity}" for fmt in FORMATS.values() if fmt.max_abs is not None for granularity in GRANULARITIES]
# The whole product takes most of an hour on two cores; without TRITONQ_TEST_FULL each pair meets one dtype, the dtypes in turn: as there
# is an odd number of granularities, each format and each granularity meets every dtype.
EVERY_GEOMETRY = [
    pytest.param(scheme, dtype, id=f"{scheme}-{str(dtype).removeprefix('torch.')}")
    for i, scheme in enumerate(_GEOMETRIES)
    for j, dtype in enumerate(DTYPES)
    if _FULL or i % len(DTYPES) == j
]
# The same for SCHEMES where a case is a compilation: what EVERY_GEOMETRY lacks meets every dtype, formats and options one each, in turn.
COMPILED_SCHEMES = [
    pytest.param(scheme, dtype, id=f"{scheme}-{str(dtype).removeprefix('torch.')}")
    for i, scheme in enumerate(SCHEMES)
    for j, dtype in enumerate(DTYPES)
    if _FULL or scheme in PRESETS or (scheme in FORMATS and FORMATS[scheme].max_abs is None) or i % len(DTYPES) == j
]


def hostile(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random values with NaN, Inf, zeros, constants, outliers, denormals and non-contiguous memory among them."""
    generator = torch.Generator().manual_seed(seed + 1000 * shape[0] + shape[1])
    x = torch.randn(shape[1], shape[0], generator=generator, dtype=torch.float64).T
    n, k = shape
    finfo = torch.finfo(dtype)
    x = x.clone() if seed % 2 else x
    if n > 2 and k > 8:
        x[0, ::3] = float("nan")
        x[0, 1] = float("inf")
        x[1, : k // 2] = 0.0
        x[1, k // 2 :] = -0.25
        x[2, :] = 0.0
        x[2, ::2] = -0.0
        x[n - 1, ::5] = -float("inf")
    if n > 4 and k > 8:
        x[3] = x[3] * finfo.smallest_normal
        x[3, ::4] *= finfo.eps
        x[4, :4] = finfo.max
        x[4, 4:8] = finfo.min
    return x.to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shape, dtype and bytes: -0.0 differs from 0.0, NaN equals itself."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def same_tensors(a: Iterable[torch.Tensor], b: Iterable[torch.Tensor]) -> bool:
    """As many on both sides, one at least, and each with the :func:`same_bits`: ``all(map(...))`` would end with the shorter side."""
    a, b = list(a), list(b)
    return len(a) == len(b) > 0 and all(map(same_bits, a, b))


def every_code(scheme: str, shape: tuple[int, int], dtype: torch.dtype) -> QTensor:
    """A matrix with every code of the format, also those that quantizing never gives, under scales of every magnitude."""
    q = reference.quantize(hostile(shape, dtype), Scheme.parse(scheme))
    generator = torch.Generator().manual_seed(shape[1])
    codes = torch.randint(0, 256, q.packed.shape, generator=generator).to(torch.uint8)
    codes.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)[: codes.numel()]
    changed = {"packed": fenced(codes)}
    scale, zero_point = q.stored_scale, q.zero_point
    if scale is not None and scale.is_floating_point() and scale.dtype.itemsize > 1:
        limits = torch.finfo(scale.dtype)
        values = (limits.smallest_normal, limits.smallest_normal * limits.eps, limits.max, 0.0, 1.0, 1.5)
        spread = torch.tensor(values, dtype=scale.dtype).repeat(-(-scale.numel() // len(values)))[: scale.numel()]
        changed["stored_scale"] = fenced(spread.view(scale.shape))
    if zero_point is not None and zero_point.dtype == torch.uint8:
        points = torch.randint(0, 2**q.scheme.format.bits, zero_point.shape, generator=generator)
        changed["zero_point"] = fenced(points.to(torch.uint8))
    return replace(q, **changed)
