"""Floor 3. Quantize, scale and pack every geometry that quantize_rows does not take, reading elements twice, the second time from cache."""
from __future__ import annotations

from .._triton import jit, tl
from .parameters import decode_zero, encode_value, finite_or, group_parameters
from .ranges import tensor_range


def _name(specialization) -> str:
    return f"quantize_{specialization.constants['NAME']}"


@jit(repr=_name)
def quantize_area(
    x_ptr, packed_ptr, scale_ptr, zero_point_ptr, low_ptr, high_ptr, N, K, groups, row_bytes, x_row, x_col, partials,
    group_rows, group_columns, area_rows, area_columns,
    NAME: tl.constexpr, REDUCE: tl.constexpr, COMPUTE: tl.constexpr, PARTIALS: tl.constexpr, UNIT: tl.constexpr,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr,
    ENCODE_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x[N, K] -> packed, scale, zero_point; one program per area_rows x area_columns, which holds whole groups and whole bytes.

    REDUCE says what shares a scale inside a tile: ``"row"`` (each row for itself), ``"column"``, ``"block"`` (all of it), ``"tensor"``
    (from the partials) or ``"none"`` (a plain cast). Scales go out first and come back per element: a byte may hold codes of two groups.
    """
    areas_k = tl.cdiv(K, area_columns)
    pid = tl.program_id(0)
    first_row = (pid // areas_k).to(tl.int64) * area_rows
    first_col = (pid % areas_k).to(tl.int64) * area_columns
    last_row = tl.minimum(first_row + area_rows, N)
    last_col = tl.minimum(first_col + area_columns, K)

    if REDUCE == "tensor":
        low, high = tensor_range(low_ptr, high_ptr, partials, COMPUTE, PARTIALS)
        tensor_stored, tensor_zero = group_parameters(low, high, None, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                                      LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
        if pid == 0:
            tl.store(scale_ptr + tl.arange(0, 1), tensor_stored)
            if AFFINE:
                tl.store(zero_point_ptr + tl.arange(0, 1), tensor_zero)
    elif REDUCE != "none":
        start = first_col
        while start < last_col:
            stop = last_col
            if REDUCE != "column":
                stop = tl.minimum(start + group_columns, last_col)
            low = tl.full((BLOCK_N, BLOCK_K), float("inf"), COMPUTE)
            high = tl.full((BLOCK_N, BLOCK_K), -float("inf"), COMPUTE)
            row = first_row
            while row < last_row:
                col = start
                while col < stop:
                    rows = row + tl.arange(0, BLOCK_N)
                    cols = col + tl.arange(0, BLOCK_K)
                    mask = (rows < last_row)[:, None] & (cols < stop)[None, :]
                    x = tl.load(x_ptr + rows[:, None] * x_row + cols[None, :] * x_col, mask=mask, other=float("nan")).to(COMPUTE)
                    low = tl.minimum(low, finite_or(x, float("inf")))
                    high = tl.maximum(high, finite_or(x, -float("inf")))
                    col += BLOCK_K
                row += BLOCK_N
            group = start // group_columns
            if REDUCE == "row":
                group_low = tl.min(low, 1)
                group_high = tl.max(high, 1)
                at = (first_row + tl.arange(0, BLOCK_N)) * groups + group
                at_ok = first_row + tl.arange(0, BLOCK_N) < last_row
            elif REDUCE == "column":
                group_low = tl.min(low, 0)
                group_high = tl.max(high, 0)
                at = (first_row // group_rows) * groups + start + tl.arange(0, BLOCK_K)
                at_ok = start + tl.arange(0, BLOCK_K) < last_col
            else:
                group_low = tl.min(tl.min(low, 1, keep_dims=True), 0)
                group_high = tl.max(tl.max(high, 1, keep_dims=True), 0)
                at = (first_row // group_rows) * groups + group + tl.arange(0, 1)
                at_ok = at >= 0
            stored, stored_zero = group_parameters(group_low, group_high, None, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP,
                                                   MAX_EXPONENT, LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
            tl.store(scale_ptr + at, stored, mask=at_ok)
            if AFFINE:
                tl.store(zero_point_ptr + at, stored_zero, mask=at_ok)
            start = stop
        tl.debug_barrier()  # the scales just stored are read back by other threads of this program

    row = first_row
    while row < last_row:
        col = first_col
        while col < last_col:
            rows = (row + tl.arange(0, BLOCK_N))[:, None]
            units = tl.arange(0, BLOCK_K // UNIT)
            word = tl.zeros((BLOCK_N, BLOCK_K // UNIT), tl.int32)
            for i in tl.static_range(UNIT):
                cols = (col + units * UNIT + i)[None, :]
                mask = (rows < last_row) & (cols < last_col)
                x = tl.load(x_ptr + rows * x_row + cols * x_col, mask=mask, other=0.0).to(COMPUTE)
                zero_point = 0.0
                if REDUCE == "none":
                    scale = None
                elif REDUCE == "tensor":
                    scale = DECODE_SCALE(tensor_stored).to(COMPUTE)[:, None]
                    if AFFINE:
                        zero_point = decode_zero(tensor_zero, COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)[:, None]
                else:
                    at = (rows // group_rows) * groups + cols // group_columns
                    scale = DECODE_SCALE(tl.load(scale_ptr + at, mask=mask, other=1)).to(COMPUTE)
                    if AFFINE:
                        zero_point = decode_zero(tl.load(zero_point_ptr + at, mask=mask, other=0), COMPUTE, AFFINE, FLOAT_ZERO, DECODE_ZERO)
                code = encode_value(x, scale, zero_point, ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO)
                word = word | (tl.where(mask, code, 0) << (i * BITS))
            offset = (col // UNIT + units)[None, :] * (UNIT * BITS // 8)
            for i in tl.static_range(UNIT * BITS // 8):
                mask = (rows < last_row) & (col + units * UNIT < last_col)[None, :] & (offset + i < row_bytes)
                tl.store(packed_ptr + rows * row_bytes + offset + i, ((word >> (8 * i)) & 0xFF).to(tl.uint8), mask=mask)
            col += BLOCK_K
        row += BLOCK_N
