"""Floor 3. Quantize, scale and pack straight into layout ``ksplit``, in one launch: codes of 2, 3, 4 or 8 bits, groups along rows."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..layouts import ksplit
from ..scheme import Scheme
from .constants import carrier, encode_constants, kernel_name
from .parameters import decode_scale, decode_zero, encode_value, group_parameters
from .quantize_runs import load_step, refuses_groups, run_range, spread

ROWS, SPAN = 16, ksplit.BLOCK  # of W per step


def _name(specialization) -> str:
    return f"quantize_ksplit_{specialization.constants['NAME']}"


@jit(repr=_name)
def quantize_ksplit(
    x_ptr, packed_ptr, scale_ptr, zero_ptr, N, K, x_row, x_col, w_row, scale_row, zero_row, groups, columns, padded,
    NAME: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    COMPUTE: tl.constexpr, ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr,
    ENCODE_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr,
):  # fmt: skip
    """Grid (16 rows, runs of ``columns``): program (a, s) writes columns from s * ``columns`` on, up to ``padded``.

    A run is one group, or 256 columns with GROUP < 256 columns per group. Longer groups are read twice, the second time from cache.
    """
    rows = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)
    first = tl.program_id(1) * columns
    PARTS: tl.constexpr = 1 if GROUP == 0 else 256 // GROUP  # groups of a step
    WIDTH: tl.constexpr = 256 // PARTS
    low, high = run_range(x_ptr, rows, first, columns, N, K, x_row, x_col, COMPUTE, PARTS, WIDTH)
    stored, stored_zero = group_parameters(low, high, None, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                           LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
    group = tl.program_id(1) * PARTS + tl.arange(0, PARTS)
    real = (rows < N)[:, None] & (first + tl.arange(0, PARTS) * WIDTH < K)[None, :]
    there = tl.broadcast_to((group < groups)[None, :], (16, PARTS))
    tl.store(scale_ptr + group.to(tl.int64)[None, :] * scale_row + rows[:, None], tl.where(real, stored, 0), mask=there)
    if AFFINE:
        tl.store(zero_ptr + group.to(tl.int64)[None, :] * zero_row + rows[:, None], tl.where(real, stored_zero, 0), mask=there)

    scale = spread(decode_scale(stored, None, COMPUTE, DECODE_SCALE), WIDTH)
    zero_point = spread(decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO), WIDTH)
    for start in range(first, tl.minimum(first + columns, padded), 256):
        x = load_step(x_ptr, rows, start, N, K, x_row, x_col, COMPUTE, 256)
        code = encode_value(x, scale, zero_point, ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO) ^ OFFSET
        code = tl.where((rows < N)[:, None] & (start + tl.arange(0, 256) < K)[None, :], code, 0)
        at = packed_ptr + rows[:, None] * w_row + start * BITS // 16
        if BITS == 3:  # the low two bits of each half of the block, then the high ones of all of it
            store_planes(at, code & 3, rows, N, 2, 2)
            store_planes(at + 32, code >> 2, rows, N, 1, 1)
        else:
            store_planes(at, code, rows, N, BITS, 1)


@jit
def store_planes(at, fields, rows, N, BITS: tl.constexpr, PARTS: tl.constexpr):
    """``[16, 256]`` of BITS each as 16-bit words, in PARTS runs: word j of a run has field j, field j + width, and so on."""
    PLANES: tl.constexpr = 16 // BITS
    WORDS: tl.constexpr = 256 // PARTS // PLANES
    shift = (tl.arange(0, PLANES) * BITS)[None, None, :, None]
    words = tl.sum(fields.reshape(16, PARTS, PLANES, WORDS) << shift, 2).reshape(16, PARTS * WORDS)
    tl.store(at + tl.arange(0, PARTS * WORDS)[None, :], words.to(tl.int16), mask=tl.broadcast_to((rows < N)[:, None], words.shape))


def refuses(scheme: Scheme, dtype: torch.dtype, k: int) -> str | None:
    """Why this kernel cannot write such a matrix, or None."""
    return ksplit.refuses(scheme, dtype) or refuses_groups(scheme, k, SPAN)


def config() -> dict[str, int]:
    return {"num_warps": 4}


def quantize(x: torch.Tensor, scheme: Scheme, config: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x ``[N, K]``, N and K at least 1 -> packed, stored_scale, zero_point as layout ``ksplit`` holds them."""
    n, k = x.shape
    fields = {name: None if want is None else torch.empty(want[0], dtype=want[1], device=x.device)
              for name, want in ksplit.expected(scheme, (n, k), x.dtype).items()}  # fmt: skip
    packed, scale, zero = fields["packed"], fields["stored_scale"], fields["zero_point"]
    padded, columns = ksplit.up(k, SPAN), min(scheme.group_shape(n, k)[1], ksplit.up(k, SPAN))
    whole = columns >= k
    run = padded if whole else max(columns, SPAN)
    grid = (ksplit.up(n, ksplit.N_MULTIPLE) // ROWS, triton.cdiv(padded, run))
    quantize_ksplit[grid](
        x, packed, carrier(scale), carrier(zero), n, k, x.stride(0), x.stride(1), packed.shape[1], scale.shape[1],
        0 if zero is None else zero.shape[1], scale.shape[0], run, padded,
        GROUP=0 if whole or columns >= SPAN else columns, OFFSET=1 << (scheme.format.bits - 1) if scheme.format.signed else 0,
        **encode_constants(scheme, x.dtype) | {"NAME": kernel_name(scheme)}, **config, enable_fp_fusion=False,
    )  # fmt: skip
    return packed, scale, zero
