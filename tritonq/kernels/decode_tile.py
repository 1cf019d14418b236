"""Floor 3. A tile of the decoded weight as numbers, whatever the layout: what dequantize to a range and the backward are made of.

Values are those of ``reference.dequantize`` in COMPUTE: the exact level times the scale, two roundings at most. Portable: no inline
assembly, so it also runs in the interpreter and on AMD.
"""
from __future__ import annotations

import torch

from .._triton import jit, tl
from ..formats import Format
from ..formats.packing import load_code
from ..kept import kept
from ..layouts import frag, frag_codes
from ..qtensor import QTensor
from .constants import decode_constants
from .dequantize import load_parameters, weight_arguments
from .parameters import decode_value

LAYOUTS = ("row", "frag")


@jit
def decode_tile(
    packed_ptr, scale_ptr, zero_point_ptr, levels_ptr, second_ptr, first_row, first_column, N, K,
    packed_row, scale_row, zero_row, group_rows, group_columns,
    LAYOUT: tl.constexpr, COMPUTE: tl.constexpr, DECODE: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr, HAS_SCALE: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, PLACES: tl.constexpr, UPPER_PLACES: tl.constexpr, SCALE: tl.constexpr,
    ZERO: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LOOK_UP: tl.constexpr,
):  # fmt: skip
    """Rows from first_row (int64) and columns from first_column on, multiples of 64 and of BLOCK_K; COMPUTE ``[BLOCK_N, BLOCK_K]``.

    LOOK_UP finds levels of a code book: :func:`load_levels` in a loop, which copies them ahead, :func:`gather_levels` elsewhere.
    Beyond N and K: 1 times the level of code 0, or what the layout pads with; finite, and for the caller to mask.
    """
    if LAYOUT == "row":
        rows = (first_row + tl.arange(0, BLOCK_N))[:, None]
        columns = (first_column + tl.arange(0, BLOCK_K))[None, :]
        mask = (rows < N) & (columns < K)
        code = load_code(packed_ptr + rows * packed_row, columns, mask, BITS)
        scale, zero_point = load_parameters(scale_ptr, zero_point_ptr, rows, columns, mask, scale_row, group_rows, group_columns,
                                            COMPUTE, HAS_SCALE, AFFINE)  # fmt: skip
        value = decode_value(code, scale, zero_point, COMPUTE, DECODE, BITS, SIGNED, AFFINE, FLOAT_ZERO)
    else:
        stored = plane_codes(packed_ptr, first_row // 64, first_column, (N + 63) // 64, packed_row, BITS - (BITS == 3), PLACES,
                             BLOCK_N // 64, BLOCK_K)  # fmt: skip
        if BITS == 3:
            upper = plane_codes(packed_ptr + packed_row // 3 * 2, first_row // 64, first_column, (N + 63) // 64, packed_row,
                                1, UPPER_PLACES, BLOCK_N // 64, BLOCK_K)  # fmt: skip
            stored = stored | upper << 2
        if levels_ptr is not None:
            level = LOOK_UP(levels_ptr, stored)
        elif DECODE is not None:
            level = DECODE(stored)
        else:  # a code is the low bits of a float near 2**23, and one subtraction takes away both that and the offset
            number = (stored | 0x4B000000).to(tl.float32, bitcast=True)
            if SIGNED:
                level = number - (8388608.0 + 2.0 ** (BITS - 1))
            else:
                level = number - 8388608.0
        rows = (first_row + tl.arange(0, BLOCK_N))[:, None]
        group = ((first_column + UNIT * tl.arange(0, BLOCK_K // UNIT)) // group_columns).to(tl.int64)[None, :]
        scale = frag_parameter(scale_ptr, group, rows, scale_row, SCALE)
        if second_ptr is not None:
            scale = scale * tl.load(second_ptr)
        scale = spread_units(scale.to(COMPUTE), BLOCK_N, BLOCK_K, UNIT)
        zero_point = 0.0
        if AFFINE:
            zero_point = spread_units(frag_parameter(zero_point_ptr, group, rows, zero_row, ZERO).to(COMPUTE), BLOCK_N, BLOCK_K, UNIT)
        value = decode_value(level, scale, zero_point, COMPUTE, as_is, BITS, SIGNED, AFFINE, FLOAT_ZERO)
    return value


@jit
def as_is(level):
    return level


@jit
def load_levels(levels_ptr, stored):
    """One load per element, whose layout later operations must take over."""
    return tl.load(levels_ptr + stored)


@jit
def gather_levels(levels_ptr, stored):
    """From the sixteen levels that a program holds; ``stored`` keeps its layout."""
    levels = tl.load(levels_ptr + tl.arange(0, 16))
    return tl.gather(levels, stored.reshape(stored.shape[0] * stored.shape[1]), 0).reshape(stored.shape)


@jit
def plane_codes(
    w_ptr, tile_n, first_column, tiles, w_row, BITS: tl.constexpr, PLACES: tl.constexpr, A: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Bits that one plane holds of the codes, int32 ``[A * 64, BLOCK_K]``; tiles beyond the last row of tiles repeat it.

    PLACES: how far apart in a word the codes are along axes h, s, v and e.
    """
    U: tl.constexpr = 8 // BITS  # half fragments, of 8 columns, in a word
    WORDS: tl.constexpr = BLOCK_K // (8 * U)
    V: tl.constexpr = WORDS if WORDS < 4 else 4  # neighbours in memory; a tile has four
    a = tl.minimum(tile_n + tl.arange(0, A), tiles - 1).to(tl.int64)
    word = first_column // (8 * U)
    i = tl.arange(0, 128 * WORDS)
    if V < 4:  # part of a tile
        i = word % 4 + i // V * 4 + i % V
    w = tl.load(w_ptr + a[:, None] * w_row + ((word // 4).to(tl.int64) * 512 + i)[None, :])
    j = tl.arange(0, 4 * U)  # 4 (2 v + s) + 2 h + e
    place = (j >> 1 & 1) * PLACES[0] + (j >> 2 & 1) * PLACES[1] + (j >> 3) * PLACES[2] + (j & 1) * PLACES[3]
    code = (w[:, :, None] >> (place * BITS)[None, None, :]) & (2**BITS - 1)
    code = code.reshape(A, WORDS // V, 4, 8, 4, V, U, 2, 2)  # a b warp g t w u h e
    return code.trans(0, 2, 7, 3, 1, 5, 6, 4, 8).reshape(A * 64, BLOCK_K)


@jit
def frag_parameter(ptr, group, rows, words, PATTERN: tl.constexpr):
    """float32 scale or zero point of each (row, group). PATTERN: "rows" for float32 by row; else the 16-bit type of pairs of rows."""
    if PATTERN == "rows":
        value = tl.load(ptr + group * words + rows)
    else:
        pair = tl.load(ptr + group * words + rows // 16 * 8 + rows % 8)
        half = (pair >> (2 * (rows & 8)).to(tl.int32)) & 0xFFFF
        if PATTERN == "integer":
            value = half.to(tl.float32)
        elif tl.float16 == PATTERN:
            value = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        else:
            value = (half << 16).to(tl.float32, bitcast=True)
    return value


@jit
def spread_units(t, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, UNIT: tl.constexpr):
    """``[BLOCK_N, BLOCK_K / UNIT]``, each value UNIT times side by side."""
    return tl.broadcast_to(t[:, :, None], (BLOCK_N, BLOCK_K // UNIT, UNIT)).reshape(BLOCK_N, BLOCK_K)


@kept
def stored_levels(fmt: Format, device: torch.device) -> torch.Tensor:
    """float32 level of each code as layout ``frag`` stores it."""
    levels = torch.empty_like(fmt.levels)
    levels[frag_codes.stored_codes(fmt, torch.device("cpu")).int()] = fmt.levels
    return levels.to(device)


_PATTERN = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: "rows", torch.uint8: "integer"}


def tile_arguments(q: QTensor, dtype: torch.dtype, block_k: int) -> dict:
    """What :func:`decode_tile` takes for ``q`` but positions and rows per block; values are computed as for a result of ``dtype``."""
    n, k = q.shape
    constants = decode_constants(q.scheme, dtype)
    if q.layout != "frag":
        weight = weight_arguments(q)
        return constants | {
            "packed_ptr": weight["packed_ptr"], "scale_ptr": weight["scale_ptr"], "zero_point_ptr": weight["zero_point_ptr"],
            "levels_ptr": None, "second_ptr": None, "N": n, "K": k, "packed_row": weight["row_bytes"], "scale_row": weight["groups"],
            "zero_row": 0, "group_rows": weight["group_rows"], "group_columns": weight["group_columns"],
            "LAYOUT": "row", "PLACES": None, "UPPER_PLACES": None, "SCALE": None, "ZERO": None, "UNIT": 1, "BLOCK_K": block_k,
        }  # fmt: skip
    scale = q.stored_scale if q.expanded_scale is None else q.expanded_scale
    fmt, columns = q.scheme.format, q.scheme.group_shape(n, k)[1]
    if columns >= k:
        columns = frag.wide(q.scheme, q.shape)
    places = [tuple(plane.places[axis] for axis in "hsve") for plane in frag_codes.planes(fmt)]
    zero = frag.loaded_dtype(q.scheme.zero_dtype(q.dtype)) if fmt.affine else None
    return constants | {
        "packed_ptr": q.packed, "scale_ptr": scale, "zero_point_ptr": q.zero_point,
        "levels_ptr": stored_levels(fmt, q.device) if frag_codes.is_book(fmt) else None,
        "second_ptr": q.second_scale if q.scheme.recipe == "nv" else None, "N": n, "K": k, "packed_row": q.packed.shape[1],
        "scale_row": scale.shape[1], "zero_row": 0 if q.zero_point is None else q.zero_point.shape[1],
        "group_rows": 1, "group_columns": columns,
        "LAYOUT": "frag", "PLACES": places[0], "UPPER_PLACES": places[-1],
        "SCALE": _PATTERN[frag.scale_dtype(q.scheme, q.dtype)], "ZERO": _PATTERN.get(zero),
        "UNIT": min(columns & -columns, block_k), "BLOCK_K": block_k,
    }  # fmt: skip
