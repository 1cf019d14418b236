"""Floor 3. Quantize, scale and pack straight into layout ``ksplit``, in one launch: codes of 2, 3, 4 or 8 bits, groups along rows."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..layouts import ksplit
from ..scheme import Scheme
from .constants import carrier, encode_constants
from .parameters import decode_scale, decode_zero, encode_value, group_parameters
from .plane_words import fields_of_planes, load_planes, store_planes
from .quantize_runs import load_step, refuses_groups, run_columns, run_range, short_way, spans, spread
from .short_cuts import cells_tensor, short_cuts

ROWS, SPAN = 32, ksplit.BLOCK  # of W per step


def _name(specialization) -> str:
    return f"quantize_ksplit_{specialization.constants['NAME']}"


@jit(repr=_name)
def quantize_ksplit(
    x_ptr, packed_ptr, words_ptr, scale_ptr, zero_ptr, cells_ptr, N, K, x_row, x_col, w_row, scale_row, zero_row, groups, columns, padded,
    NAME: tl.constexpr, GROUP: tl.constexpr, SPANS: tl.constexpr, OFFSET: tl.constexpr, FLIP: tl.constexpr, WIDE: tl.constexpr,
    FAST: tl.constexpr, QUOTIENT: tl.constexpr, IN_RANGE: tl.constexpr, PAIRS: tl.constexpr,
    CELLS: tl.constexpr, CROWDED: tl.constexpr, RECODE: tl.constexpr, E2M1: tl.constexpr,
    SCALE_MIN: tl.constexpr, SCALE_MAX: tl.constexpr,
    COMPUTE: tl.constexpr, ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr,
    ENCODE_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr,
):  # fmt: skip
    """Grid (32 rows, runs of ``columns``): program (a, s) writes columns from s * ``columns`` on, up to ``padded``.

    A run is one group, or 256 columns with GROUP <= 256 columns per group; GROUP 0 stands for longer groups, which are read twice, the
    second time from cache, SPANS * 256 columns at a time. packed_ptr and words_ptr are one address, of words of 16 and of 32 bits; OFFSET
    and FLIP the bits in which a stored code, and 32 bits of them, differ from the scheme's. WIDE: offsets within a step need 64 bits. Runs
    inside the matrix take the short way where their values and scales do; not those of 3 bits, whose codes have two words each.
    """
    a = tl.program_id(0).to(tl.int64)
    rows = a * 32 + tl.arange(0, 32)
    first = tl.program_id(1) * columns
    PARTS: tl.constexpr = 1 if GROUP == 0 else 256 // GROUP  # groups of a step
    WIDTH: tl.constexpr = 256 // PARTS
    done = False
    if FAST and BITS != 3 and (GROUP == 0 or GROUP >= 8):  # noqa: SIM102 - the second is known when it runs
        if (a * 32 + 32 <= N) & (first + columns <= K):
            done = short_way(
                x_ptr + (a * 32 * x_row + first.to(tl.int64) * x_col), words_ptr + (a * 16 * w_row + first * BITS // 32),
                scale_ptr, zero_ptr, cells_ptr, x_row, x_col, w_row // 2, scale_row, zero_row, groups, columns, a, tl.program_id(1) * PARTS,
                load_planes, fields_of_planes, store_planes, store_parameters, GROUP, 256, SPANS, 8 * BITS, WIDE, FLIP, None,
                QUOTIENT, IN_RANGE, PAIRS, CELLS, CROWDED, RECODE, E2M1, SCALE_MIN, SCALE_MAX, None, None, DECODE_ZERO, DECODE_SCALE,
                COMPUTE, ENCODE, BITS, LOW, HIGH, AWAY, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                ENCODE_SCALE, ENCODE_ZERO,
            )  # fmt: skip
    if not done:
        low, high = run_range(x_ptr, rows, first, columns, N, K, x_row, x_col, COMPUTE, PARTS, WIDTH)
        stored, stored_zero = group_parameters(low, high, None, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                               LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
        group = tl.program_id(1) * PARTS + tl.arange(0, PARTS)
        real = (rows < N)[:, None] & (first + tl.arange(0, PARTS) * WIDTH < K)[None, :]
        store_parameters(scale_ptr, stored, real, a, group, groups, scale_row, None, PARTS)
        if AFFINE:
            store_parameters(zero_ptr, stored_zero, real, a, group, groups, zero_row, None, PARTS)

        scale = spread(decode_scale(stored, None, COMPUTE, DECODE_SCALE), WIDTH)
        zero_point = spread(decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO), WIDTH)
        for start in range(first, tl.minimum(first + columns, padded), 256):
            x = load_step(x_ptr, rows, start, N, K, x_row, x_col, COMPUTE, 256)
            code = encode_value(x, scale, zero_point, ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO) ^ OFFSET
            code = tl.where((rows < N)[:, None] & (start + tl.arange(0, 256) < K)[None, :], code, 0)
            at = packed_ptr + rows[:, None] * w_row + start * BITS // 16
            if BITS == 3:  # the low two bits of each half of the block, then the high ones of all of it
                fold_planes(at, code & 3, rows, N, 2, 2)
                fold_planes(at + 32, code >> 2, rows, N, 1, 1)
            else:
                fold_planes(at, code, rows, N, BITS, 1)


@jit
def store_parameters(at_ptr, stored, real, a, group, groups, row_length, PATTERN: tl.constexpr, PARTS: tl.constexpr):
    """``[32, PARTS]`` as they are, by group; 0 beyond the matrix. PATTERN: of the other layout."""
    at = at_ptr + group.to(tl.int64)[None, :] * row_length + (a * 32 + tl.arange(0, 32))[:, None]
    tl.store(at, tl.where(real, stored, 0), mask=tl.broadcast_to((group < groups)[None, :], (32, PARTS)))


@jit
def fold_planes(at, fields, rows, N, BITS: tl.constexpr, PARTS: tl.constexpr):
    """``[32, 256]`` of BITS each as 16-bit words, in PARTS runs: word j of a run has field j, field j + width, and so on."""
    PLANES: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = 256 // PARTS // PLANES
    shift = (tl.arange(0, PLANES) * BITS)[None, None, :, None]
    words = tl.sum(fields.reshape(32, PARTS, PLANES, WORDS) << shift, 2).reshape(32, PARTS * WORDS)
    tl.store(at + tl.arange(0, PARTS * WORDS)[None, :], words.to(tl.int16), mask=tl.broadcast_to((rows < N)[:, None], words.shape))


def refuses(scheme: Scheme, dtype: torch.dtype, k: int) -> str | None:
    """Why this kernel cannot write such a matrix, or None."""
    return ksplit.refuses(scheme, dtype) or refuses_groups(scheme, k, SPAN)


def config(scheme: Scheme, n: int, k: int) -> dict[str, int]:
    return {"num_warps": 4 * spans(run_columns(scheme, n, k, SPAN), SPAN)}


def quantize(x: torch.Tensor, scheme: Scheme, config: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x ``[N, K]``, N and K at least 1 -> packed, stored_scale, zero_point as layout ``ksplit`` holds them."""
    n, k = x.shape
    fields = {name: None if want is None else torch.empty(want[0], dtype=want[1], device=x.device)
              for name, want in ksplit.expected(scheme, (n, k), x.dtype).items()}  # fmt: skip
    packed, scale, zero = fields["packed"], fields["stored_scale"], fields["zero_point"]
    columns, run, padded = scheme.group_shape(n, k)[1], run_columns(scheme, n, k, SPAN), ksplit.up(k, SPAN)
    bits, offset = scheme.format.bits, 1 << (scheme.format.bits - 1) if scheme.format.signed else 0
    cuts = short_cuts(scheme, x.dtype)
    grid = (ksplit.up(n, ksplit.N_MULTIPLE) // ROWS, triton.cdiv(padded, run))
    quantize_ksplit[grid](
        x, packed, packed.view(torch.int32), carrier(scale), carrier(zero), cuts["CELLS"] and cells_tensor(scheme, x.dtype, x.device),
        n, k, x.stride(0), x.stride(1), packed.shape[1], scale.shape[1], 0 if zero is None else zero.shape[1], scale.shape[0], run, padded,
        GROUP=0 if run > SPAN else SPAN if columns >= k else columns, SPANS=config["num_warps"] // 4,
        OFFSET=offset, FLIP=offset * ((2**32 - 1) // (2**bits - 1)), WIDE=ROWS * x.stride(0) + 2 * SPAN * x.stride(1) >= 2**31,
        **cuts, **encode_constants(scheme, x.dtype), **config, enable_fp_fusion=False,
    )  # fmt: skip
    return packed, scale, zero
