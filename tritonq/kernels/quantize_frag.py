"""Floor 3. Quantize, scale and pack straight into layout ``frag``, in one launch: codes of 2, 4 or 8 bits, groups along rows."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..layouts import frag, frag_codes
from ..scheme import Scheme
from .constants import encode_constants
from .fragment_words import fields_of_floats, fields_of_integers, label_table, load_fragments, store_fragments
from .parameters import decode_scale, decode_zero, encode_value, group_parameters
from .quantize_runs import load_step, refuses_groups, run_columns, run_range, short_way, spans, spread
from .short_cuts import cells_tensor, short_cuts

ROWS, SPAN = 64, 128  # of W per step: tiles side by side, the columns that the layout pads to


def _name(specialization) -> str:
    return f"quantize_frag_{specialization.constants['NAME']}"


@jit(repr=_name)
def quantize_frag(
    x_ptr, packed_ptr, scale_ptr, zero_ptr, cells_ptr, N, K, x_row, x_col, w_row, scale_row, zero_row, groups, tiles, columns,
    NAME: tl.constexpr, GROUP: tl.constexpr, SPANS: tl.constexpr, STRIDES: tl.constexpr, MARKS: tl.constexpr, WIDE: tl.constexpr,
    FLIP: tl.constexpr, FIELDS: tl.constexpr, LABELS: tl.constexpr,
    FAST: tl.constexpr, QUOTIENT: tl.constexpr, IN_RANGE: tl.constexpr, PAIRS: tl.constexpr,
    CELLS: tl.constexpr, CROWDED: tl.constexpr, RECODE: tl.constexpr, E2M1: tl.constexpr,
    SCALE_MIN: tl.constexpr, SCALE_MAX: tl.constexpr,
    SCALE: tl.constexpr, ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr, DECODE_SCALE: tl.constexpr,
    COMPUTE: tl.constexpr, ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr,
):  # fmt: skip
    """Grid (tile rows of the scales, runs of ``columns``): program (a, s) writes 64 rows, columns from s * ``columns`` on.

    A run is one group, or SPAN columns with GROUP <= SPAN columns per group; GROUP 0 stands for longer groups, which are read twice, the
    second time from cache, SPANS * SPAN columns at a time. STRIDES: distance in codes of the row half h, the column part u and the
    neighbour e inside a word. LABELS: the nibbles of levels, of label_table. FLIP: the bits in which a word of integers differs from its
    codes. MARKS: scales end in a row of marks, 0 because no number is coded as NaN or Inf. WIDE: offsets within a step need 64 bits.
    Runs inside the matrix take the short way where their values and scales do.
    """
    a = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * columns
    group = tl.program_id(1) * (128 // GROUP if GROUP > 0 else 1)
    if MARKS:  # of each tile row the first program alone
        row, zeros = groups + tl.program_id(1) + tl.arange(0, 1), tl.zeros((64, 1), tl.int32)
        store_parameters(scale_ptr, zeros, zeros != 0, a, row, groups + 1, scale_row, "float32" if SCALE == "float32" else "integer", 1)
    done = False
    if FAST and (GROUP == 0 or GROUP * BITS >= 64):  # noqa: SIM102 - the second is known when it runs
        if (a * 64 + 64 <= N) & (first + columns <= K):
            done = short_way(
                x_ptr + (a * 64 * x_row + first.to(tl.int64) * x_col), packed_ptr + (a * w_row + first * (2 * BITS)),
                scale_ptr, zero_ptr, cells_ptr, x_row, x_col, w_row, scale_row, zero_row, groups, columns, a, group,
                load_fragments, FIELDS, store_fragments, store_parameters, GROUP, 128, SPANS, 256 * BITS, WIDE, FLIP, LABELS,
                QUOTIENT, IN_RANGE, PAIRS, CELLS, CROWDED, RECODE, E2M1, SCALE_MIN, SCALE_MAX, SCALE, ZERO, DECODE_ZERO, DECODE_SCALE,
                COMPUTE, ENCODE, BITS, LOW, HIGH, AWAY, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                ENCODE_SCALE, ENCODE_ZERO,
            )  # fmt: skip
    if not done:
        long_way(
            x_ptr, packed_ptr, scale_ptr, zero_ptr, N, K, x_row, x_col, w_row, scale_row, zero_row, groups, tiles, columns, a, first, group,
            GROUP, STRIDES, FLIP, LABELS, SCALE, ZERO, DECODE_ZERO, DECODE_SCALE, COMPUTE, ENCODE, BITS, LOW, HIGH, AWAY, AFFINE,
            FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, ENCODE_SCALE, ENCODE_ZERO,
        )  # fmt: skip


@jit
def long_way(
    x_ptr, packed_ptr, scale_ptr, zero_ptr, N, K, x_row, x_col, w_row, scale_row, zero_row, groups, tiles, columns, a, first, group,
    GROUP: tl.constexpr, STRIDES: tl.constexpr, FLIP: tl.constexpr, LABELS: tl.constexpr,
    SCALE: tl.constexpr, ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr, DECODE_SCALE: tl.constexpr,
    COMPUTE: tl.constexpr, ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr,
):  # fmt: skip
    """A run of anything, also where the matrix ends."""
    PARTS: tl.constexpr = 128 // GROUP if GROUP > 0 else 1  # groups of a step
    WIDTH: tl.constexpr = 128 // PARTS
    rows = a * 64 + tl.arange(0, 64)
    low, high = run_range(x_ptr, rows, first, columns, N, K, x_row, x_col, COMPUTE, PARTS, WIDTH)
    stored, stored_zero = group_parameters(low, high, None, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                           LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
    group = group + tl.arange(0, PARTS)
    real = (rows < N)[:, None] & (first + tl.arange(0, PARTS) * WIDTH < K)[None, :]
    store_parameters(scale_ptr, stored, real, a, group, groups, scale_row, SCALE, PARTS)
    if AFFINE:
        store_parameters(zero_ptr, stored_zero, real, a, group, groups, zero_row, ZERO, PARTS)

    scale = spread(decode_scale(stored, None, COMPUTE, DECODE_SCALE), WIDTH)
    zero_point = spread(decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO), WIDTH)
    U: tl.constexpr = 8 // BITS
    for start in range(first, tl.minimum(first + columns, w_row // (2 * BITS)), 128):
        x = load_step(x_ptr, rows, start, N, K, x_row, x_col, COMPUTE, 128)
        code = encode_value(x, scale, zero_point, ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO)
        if LABELS is not None:
            code = (tl.full(code.shape, LABELS[0], tl.uint64) >> (4 * code).to(tl.uint64)).to(tl.int32) & 15
        code = code ^ (FLIP & (2**BITS - 1))
        code = tl.where((rows < N)[:, None] & (start + tl.arange(0, 128) < K)[None, :], code, 0)
        # axes warp h g b w u t e of rows and columns (fragment_words.py); a word holds the codes of one (b, warp, g, t, w)
        axes = code.reshape(4, 2, 8, 4 // U, 4, U, 4, 2).trans(3, 0, 2, 6, 4, 1, 5, 7)
        h = tl.arange(0, 2)[:, None, None] * STRIDES[0]
        u = tl.arange(0, U)[None, :, None] * STRIDES[1]
        e = tl.arange(0, 2)[None, None, :] * STRIDES[2]
        shift = (BITS * (h + u + e)).reshape(1, 1, 1, 1, 1, 2, U, 2)
        # axis by axis: of a sum over one axis of eight, Triton 3.6 stores the same constant for half of the words (seen in the simulator)
        words = tl.sum(tl.sum(tl.sum(axes << shift, 7), 6), 5).reshape(256 * BITS)
        at = packed_ptr + a * w_row + (start * (2 * BITS) + tl.arange(0, 256 * BITS))
        tl.store(at, words, mask=tl.full((256 * BITS,), 1, tl.int1) & (a < tiles))


@jit
def store_parameters(at_ptr, stored, real, a, group, groups, row_length, PATTERN: tl.constexpr, PARTS: tl.constexpr):
    """``[64, PARTS]`` as the layout holds them: float32 rows, or words of two 16-bit patterns of rows 8 apart; 0 beyond the matrix."""
    if PATTERN == "float32":
        values = tl.where(real, stored.to(tl.float32), 0.0)
        at = at_ptr + group.to(tl.int64)[None, :] * row_length + (a * 64 + tl.arange(0, 64))[:, None]
        tl.store(at, values, mask=(group < groups)[None, :])
    else:
        if PATTERN == "e8m0":  # as a bfloat16; 2**-127 is its subnormal
            bits = tl.where(stored == 0, 0x40, stored.to(tl.int32) << 7)
        elif PATTERN == "integer":
            bits = stored.to(tl.int32)
        else:
            bits = stored.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        bits = tl.where(real, bits, 0)
        halves = bits.reshape(4, 2, 8, PARTS) << (tl.arange(0, 2) * 16)[None, :, None, None]
        words = tl.sum(halves, 1).reshape(32, PARTS)
        at = at_ptr + group.to(tl.int64)[None, :] * row_length + (a * 32 + tl.arange(0, 32))[:, None]
        tl.store(at, words, mask=(group < groups)[None, :])


_PATTERNS = {"fp32": "float32", "fp16": "bits", "bf16": "bits", "e8m0": "e8m0"}


def refuses(scheme: Scheme, dtype: torch.dtype, k: int) -> str | None:
    """Why this kernel cannot write such a matrix, or None."""
    if reason := frag.refuses(scheme, dtype):
        return reason
    if scheme.format.bits == 3:
        return f"packs codes of 2, 4 or 8 bits, {scheme.format.name} has 3; they are quantized into 'row' and turned"
    if reason := refuses_groups(scheme, k, SPAN):
        return reason
    names = [scheme.scale_format(dtype).name] + ([scheme.zero_format(dtype).name] if scheme.float_zero else [])
    if wrong := [name for name in names if name not in _PATTERNS]:
        return f"stores scales as fp32, fp16, bf16 or e8m0, {scheme} as {wrong[0]}"
    return None


def config(scheme: Scheme, n: int, k: int) -> dict[str, int]:
    return {"num_warps": 4 * spans(run_columns(scheme, n, k, SPAN), SPAN)}


def quantize(x: torch.Tensor, scheme: Scheme, config: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x ``[N, K]``, N and K at least 1 -> packed, stored_scale, zero_point as layout ``frag`` holds them."""
    n, k = x.shape
    fields = {name: None if want is None else torch.empty(want[0], dtype=want[1], device=x.device)
              for name, want in frag.expected(scheme, (n, k), x.dtype).items()}  # fmt: skip
    packed, scale, zero = fields["packed"], fields["stored_scale"], fields["zero_point"]
    columns, run = scheme.group_shape(n, k)[1], run_columns(scheme, n, k, SPAN)
    constants = encode_constants(scheme, x.dtype)
    pattern = _PATTERNS[scheme.scale_format(x.dtype).name]
    zero_pattern = _PATTERNS[scheme.zero_format(x.dtype).name] if scheme.float_zero else "integer"
    cuts, fmt, book = short_cuts(scheme, x.dtype), scheme.format, frag_codes.is_book(scheme.format)
    stored = frag_codes.stored_codes(fmt, torch.device("cpu")).tolist()
    marks = frag.marks_rows(fmt)
    grid = (frag.up(n, frag.N_MULTIPLE) // ROWS, triton.cdiv(frag.up(k, SPAN), run))
    quantize_frag[grid](
        x, packed, scale, zero, cuts["CELLS"] and cells_tensor(scheme, x.dtype, x.device), n, k, x.stride(0), x.stride(1),
        packed.shape[1], scale.shape[1], 0 if zero is None else zero.shape[1], scale.shape[0] - marks, packed.shape[0], run,
        GROUP=0 if run > SPAN else SPAN if columns >= k else columns, SPANS=config["num_warps"] // 4,
        STRIDES=tuple(frag_codes.planes(fmt)[0].places[axis] for axis in "hse"),
        MARKS=marks, WIDE=ROWS * x.stride(0) + 2 * SPAN * x.stride(1) >= 2**31,
        FLIP=0 if book else stored[0] * ((2**32 - 1) // (2**fmt.bits - 1)), LABELS=label_table(stored) if book else None,
        FIELDS=fields_of_integers if fmt.is_integer else fields_of_floats,
        SCALE=pattern, ZERO=zero_pattern, **cuts, **constants, **config, enable_fp_fusion=False,
    )  # fmt: skip
    return packed, scale, zero
