"""Floor 3. Quantize, scale and pack straight into layout ``frag``, in one launch: 4-bit codes, groups along rows."""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..layouts import frag, frag_codes
from ..scheme import Scheme
from .constants import encode_constants, kernel_name
from .parameters import decode_scale, decode_zero, encode_value, group_parameters
from .quantize_runs import load_step, refuses_groups, run_range, spread

ROWS, SPAN = 64, 128  # of W per step: two tiles side by side, the columns that the layout pads to


def _name(specialization) -> str:
    return f"quantize_frag_{specialization.constants['NAME']}"


@jit(repr=_name)
def quantize_frag(
    x_ptr, packed_ptr, scale_ptr, zero_ptr, N, K, x_row, x_col, w_row, scale_row, zero_row, groups, tiles, columns,
    NAME: tl.constexpr, GROUP: tl.constexpr, RELABEL: tl.constexpr, STRIDES: tl.constexpr,
    SCALE: tl.constexpr, ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr, DECODE_SCALE: tl.constexpr,
    COMPUTE: tl.constexpr, ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr,
):  # fmt: skip
    """Grid (tile rows of the scales, runs of ``columns``): program (a, s) writes 64 rows, columns from s * ``columns`` on.

    A run is one group, or SPAN columns with GROUP < SPAN columns per group. Longer groups are read twice, the second time from cache.
    STRIDES: distance in nibbles of the row half h, the column half c and the neighbour e inside a word. RELABEL: the nibble of each code.
    """
    a = tl.program_id(0).to(tl.int64)
    rows = a * 64 + tl.arange(0, 64)
    first = tl.program_id(1) * columns
    PARTS: tl.constexpr = 1 if GROUP == 0 else 128 // GROUP  # groups of a step
    WIDTH: tl.constexpr = 128 // PARTS
    low, high = run_range(x_ptr, rows, first, columns, N, K, x_row, x_col, COMPUTE, PARTS, WIDTH)
    stored, stored_zero = group_parameters(low, high, None, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                           LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
    group = tl.program_id(1) * PARTS + tl.arange(0, PARTS)
    real = (rows < N)[:, None] & (first + tl.arange(0, PARTS) * WIDTH < K)[None, :]
    store_parameters(scale_ptr, stored, real, a, group, groups, scale_row, SCALE, PARTS)
    if AFFINE:
        store_parameters(zero_ptr, stored_zero, real, a, group, groups, zero_row, ZERO, PARTS)

    scale = spread(decode_scale(stored, None, COMPUTE, DECODE_SCALE), WIDTH)
    zero_point = spread(decode_zero(stored_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO), WIDTH)
    for start in range(first, tl.minimum(first + columns, w_row // 8), 128):
        x = load_step(x_ptr, rows, start, N, K, x_row, x_col, COMPUTE, 128)
        code = encode_value(x, scale, zero_point, ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO)
        nibble = (tl.full(code.shape, RELABEL, tl.uint64) >> (4 * code).to(tl.uint64)).to(tl.int32) & 15
        nibble = tl.where((rows < N)[:, None] & (start + tl.arange(0, 128) < K)[None, :], nibble, 0)
        # row = 16 warp + 8 h + g, column = 64 b + 16 w + 8 c + 2 t + e; a word holds the codes of one (warp, g, b, w, t)
        axes = nibble.reshape(4, 2, 8, 2, 4, 2, 4, 2).trans(3, 0, 2, 6, 4, 1, 5, 7)
        h = tl.arange(0, 2)[:, None, None] * STRIDES[0]
        c = tl.arange(0, 2)[None, :, None] * STRIDES[1]
        e = tl.arange(0, 2)[None, None, :] * STRIDES[2]
        shift = (4 * (h + c + e)).reshape(1, 1, 1, 1, 1, 2, 2, 2)
        # axis by axis: of a sum over one axis of eight, Triton 3.6 stores the same constant for half of the words (seen in the simulator)
        words = tl.sum(tl.sum(tl.sum(axes << shift, 7), 6), 5).reshape(1024)
        at = packed_ptr + a * w_row + (start * 8 + tl.arange(0, 1024))
        tl.store(at, words, mask=tl.full((1024,), 1, tl.int1) & (a < tiles))


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
    if scheme.format.bits != 4:
        return f"packs 4-bit codes, {scheme.format.name} has {scheme.format.bits}; they are quantized into 'row' and turned"
    if reason := refuses_groups(scheme, k, SPAN):
        return reason
    names = [scheme.scale_format(dtype).name] + ([scheme.zero_format(dtype).name] if scheme.float_zero else [])
    if wrong := [name for name in names if name not in _PATTERNS]:
        return f"stores scales as fp32, fp16, bf16 or e8m0, {scheme} as {wrong[0]}"
    return None


def config() -> dict[str, int]:
    return {"num_warps": 4}


def _relabel(scheme: Scheme) -> int:
    """Sixteen nibbles: the one that the layout stores for each code."""
    return sum(nibble << 4 * code for code, nibble in enumerate(frag_codes.stored_codes(scheme.format, torch.device("cpu")).tolist()))


def quantize(x: torch.Tensor, scheme: Scheme, config: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x ``[N, K]``, N and K at least 1 -> packed, stored_scale, zero_point as layout ``frag`` holds them."""
    n, k = x.shape
    fields = {name: None if want is None else torch.empty(want[0], dtype=want[1], device=x.device)
              for name, want in frag.expected(scheme, (n, k), x.dtype).items()}  # fmt: skip
    packed, scale, zero = fields["packed"], fields["stored_scale"], fields["zero_point"]
    columns = min(scheme.group_shape(n, k)[1], frag.up(k, SPAN))
    whole = columns >= k
    run = frag.up(k, SPAN) if whole else max(columns, SPAN)
    constants = encode_constants(scheme, x.dtype) | {"NAME": kernel_name(scheme)}
    pattern = _PATTERNS[scheme.scale_format(x.dtype).name]
    zero_pattern = _PATTERNS[scheme.zero_format(x.dtype).name] if scheme.float_zero else "integer"
    grid = (frag.up(n, frag.N_MULTIPLE) // ROWS, triton.cdiv(frag.up(k, SPAN), run))
    quantize_frag[grid](
        x, packed, scale, zero, n, k, x.stride(0), x.stride(1), packed.shape[1], scale.shape[1], 0 if zero is None else zero.shape[1],
        scale.shape[0], packed.shape[0], run,
        GROUP=0 if whole or columns >= SPAN else columns, RELABEL=_relabel(scheme),
        STRIDES=tuple(frag_codes.planes(scheme.format)[0].places[axis] for axis in "hse"),
        SCALE=pattern, ZERO=zero_pattern, **constants, **config, enable_fp_fusion=False,
    )  # fmt: skip
    return packed, scale, zero
