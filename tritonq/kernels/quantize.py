"""Floor 3. Quantize, scale and pack in one launch.

Two bodies. ``quantize_rows``: groups of 2**i columns, each read once and held in registers. ``quantize_area``: every other
geometry (2-D blocks, columns, long or odd groups), read twice, the second time from cache.
A scale over the whole tensor (``tensor``, nvfp4's second level) needs the range of all elements before the first code:
programs of one launch cannot wait for each other without a grid-wide barrier, so ``range_partials`` runs first.
"""
from __future__ import annotations

import torch

from .._triton import jit, tl, triton
from ..qtensor import QTensor
from ..reference.parameters import double_quantize
from ..scheme import Scheme
from .constants import carrier, encode_constants
from .parameters import encode_value, finite_absmax, finite_or, scale_from_absmax, scale_from_range, tensor_scale_from_absmax

# Columns of a group that quantize_rows holds in registers: 64 per thread of 128.
LONGEST_ROW_GROUP = 8192
# Most programs of range_partials: each of them is read again by every program of the second launch.
MAX_PARTIALS = 1024


def _name(specialization) -> str:
    constants = specialization.constants
    return f"quantize_{constants['NAME']}"


@jit
def range_partials(
    x_ptr, low_ptr, high_ptr, N, K, x_row, x_col, programs_k,
    COMPUTE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """low[p], high[p] = least and greatest finite value of what program p reads: every PROGRAMS-th tile of x[N, K]."""
    pid = tl.program_id(0)
    low = tl.full((BLOCK_N, BLOCK_K), float("inf"), COMPUTE)
    high = tl.full((BLOCK_N, BLOCK_K), -float("inf"), COMPUTE)
    tiles_k = tl.cdiv(K, BLOCK_K)
    tile = pid.to(tl.int64)
    while tile < tl.cdiv(N, BLOCK_N).to(tl.int64) * tiles_k:
        rows = (tile // tiles_k) * BLOCK_N + tl.arange(0, BLOCK_N)
        cols = (tile % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_row + cols[None, :] * x_col, mask=mask, other=float("nan")).to(COMPUTE)
        low = tl.minimum(low, finite_or(x, float("inf")))
        high = tl.maximum(high, finite_or(x, -float("inf")))
        tile += programs_k
    tl.store(low_ptr + pid, tl.min(tl.min(low, 1), 0))
    tl.store(high_ptr + pid, tl.max(tl.max(high, 1), 0))


@jit
def tensor_range(low_ptr, high_ptr, partials, COMPUTE: tl.constexpr, PARTIALS: tl.constexpr):
    """The range of the whole tensor from the partials, as two tensors of one element."""
    index = tl.arange(0, PARTIALS)
    low = tl.load(low_ptr + index, mask=index < partials, other=float("inf"))
    high = tl.load(high_ptr + index, mask=index < partials, other=-float("inf"))
    return tl.min(low, 0, keep_dims=True), tl.max(high, 0, keep_dims=True)


@jit(repr=_name)
def quantize_rows(
    x_ptr, packed_ptr, scale_ptr, zero_point_ptr, low_ptr, high_ptr, second_ptr, N, K, groups, row_words, x_row, x_col, partials,
    NAME: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr, WORD: tl.constexpr, COMPUTE: tl.constexpr, TWO_LEVEL: tl.constexpr, PARTIALS: tl.constexpr,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """x[N, K] -> packed, scale[N, groups], zero_point; one program per BLOCK_N rows x BLOCK_G groups of COLUMNS, padded to GROUP = 2**i.

    The tile is [BLOCK_N, BLOCK_G, GROUP / WORD, WORD]: a thread holds the WORD codes that one stored word takes, so packing stays in registers.
    """
    tiles_g = tl.cdiv(groups, BLOCK_G)
    pid = tl.program_id(0)
    rows = (pid // tiles_g).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = (pid % tiles_g) * BLOCK_G + tl.arange(0, BLOCK_G)
    word = tl.arange(0, GROUP // WORD)
    lane = tl.arange(0, WORD)
    row_ok = (rows < N)[:, None, None, None]
    within = (word * WORD)[None, None, :, None] + lane[None, None, None, :]
    cols = group.to(tl.int64)[None, :, None, None] * COLUMNS + within
    col_ok = cols < K
    if COLUMNS < GROUP:
        col_ok = col_ok & (within < COLUMNS)
    x = tl.load(x_ptr + rows[:, None, None, None] * x_row + cols * x_col, mask=row_ok & col_ok, other=float("nan")).to(COMPUTE)
    at = rows[:, None] * groups + group[None, :]
    at_ok = (rows < N)[:, None] & (group < groups)[None, :]
    if AFFINE:
        low = tl.min(tl.min(finite_or(x, float("inf")), 3), 2)
        high = tl.max(tl.max(finite_or(x, -float("inf")), 3), 2)
        stored, stored_zero = scale_from_range(low, high, DIVISOR, EMPTY_SCALE, ROUND_UP, FLOAT_ZERO, LOW, HIGH, AWAY,
                                               ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
        tl.store(zero_point_ptr + at, stored_zero, mask=at_ok)
        if FLOAT_ZERO:
            zero_point = DECODE_ZERO(stored_zero).to(COMPUTE)[:, :, None, None]
        else:
            zero_point = stored_zero.to(COMPUTE)[:, :, None, None]
        scale = DECODE_SCALE(stored).to(COMPUTE)
    else:
        absmax = tl.max(tl.max(finite_absmax(x), 3), 2)
        zero_point = 0.0
        if TWO_LEVEL:
            whole_low, whole_high = tensor_range(low_ptr, high_ptr, partials, COMPUTE, PARTIALS)
            second = tensor_scale_from_absmax(tl.maximum(tl.maximum(-whole_low, whole_high), 0.0))
            if pid == 0:
                tl.store(second_ptr + tl.arange(0, 1), second)
            stored = scale_from_absmax(absmax, second[:, None], DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, ENCODE_SCALE)
            scale = (DECODE_SCALE(stored) * second[:, None]).to(COMPUTE)
        else:
            stored = scale_from_absmax(absmax, None, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, ENCODE_SCALE)
            scale = DECODE_SCALE(stored).to(COMPUTE)
    tl.store(scale_ptr + at, stored, mask=at_ok)
    code = encode_value(x, scale[:, :, None, None], zero_point, ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO)
    if WORD == 1:
        packed = tl.reshape(code, (BLOCK_N, BLOCK_G, GROUP))
    else:
        packed = tl.sum(tl.where(col_ok, code, 0) << (lane * BITS)[None, None, None, :], 3)
    # A 3-bit unit of 8 codes fills three bytes, everything else one machine word.
    STORES: tl.constexpr = 3 if WORD * BITS == 24 else 1
    words = group.to(tl.int64)[None, :, None] * (COLUMNS // WORD * STORES) + (word * STORES)[None, None, :]
    word_ok = (rows < N)[:, None, None] & (word * WORD < COLUMNS)[None, None, :]
    for i in tl.static_range(STORES):
        mask = word_ok & (words + i < row_words)
        tl.store(packed_ptr + rows[:, None, None] * row_words + words + i, (packed >> (8 * i)).to(packed_ptr.dtype.element_ty), mask=mask)


@jit(repr=_name)
def quantize_area(
    x_ptr, packed_ptr, scale_ptr, zero_point_ptr, low_ptr, high_ptr, N, K, groups, row_bytes, x_row, x_col, partials,
    group_rows, group_columns, area_rows, area_columns,
    NAME: tl.constexpr, REDUCE: tl.constexpr, COMPUTE: tl.constexpr, PARTIALS: tl.constexpr, UNIT: tl.constexpr,
    ENCODE: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x[N, K] -> packed, scale, zero_point; one program per area_rows x area_columns, which holds whole groups and whole bytes.

    REDUCE says what shares a scale inside a tile: ``"row"`` (each row for itself), ``"column"``, ``"block"`` (all of it), ``"tensor"``
    (from the partials) or ``"none"`` (a plain cast). Scales go out first and come back per element, so that a byte may hold codes of two groups.
    """
    areas_k = tl.cdiv(K, area_columns)
    pid = tl.program_id(0)
    first_row = (pid // areas_k).to(tl.int64) * area_rows
    first_col = (pid % areas_k).to(tl.int64) * area_columns
    last_row = tl.minimum(first_row + area_rows, N)
    last_col = tl.minimum(first_col + area_columns, K)

    if REDUCE == "tensor":
        low, high = tensor_range(low_ptr, high_ptr, partials, COMPUTE, PARTIALS)
        tensor_stored, tensor_zero = group_parameters(low, high, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, LOW, HIGH, AWAY,
                                                      ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
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
            stored, stored_zero = group_parameters(group_low, group_high, AFFINE, FLOAT_ZERO, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT,
                                                   LOW, HIGH, AWAY, ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
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
                        zero_point = decode_zero(tensor_zero, COMPUTE, FLOAT_ZERO, DECODE_ZERO)[:, None]
                else:
                    at = (rows // group_rows) * groups + cols // group_columns
                    scale = DECODE_SCALE(tl.load(scale_ptr + at, mask=mask, other=1)).to(COMPUTE)
                    if AFFINE:
                        zero_point = decode_zero(tl.load(zero_point_ptr + at, mask=mask, other=0), COMPUTE, FLOAT_ZERO, DECODE_ZERO)
                code = encode_value(x, scale, zero_point, ENCODE, BITS, LOW, HIGH, AWAY, FLOAT_ZERO)
                word = word | (tl.where(mask, code, 0) << (i * BITS))
            offset = (col // UNIT + units)[None, :] * (UNIT * BITS // 8)
            for i in tl.static_range(UNIT * BITS // 8):
                mask = (rows < last_row) & (col + units * UNIT < last_col)[None, :] & (offset + i < row_bytes)
                tl.store(packed_ptr + rows * row_bytes + offset + i, ((word >> (8 * i)) & 0xFF).to(tl.uint8), mask=mask)
            col += BLOCK_K
        row += BLOCK_N


@jit
def group_parameters(
    low, high,
    AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DIVISOR: tl.constexpr, EMPTY_SCALE: tl.constexpr, ROUND_UP: tl.constexpr,
    MAX_EXPONENT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, AWAY: tl.constexpr,
    ENCODE_SCALE: tl.constexpr, DECODE_SCALE: tl.constexpr, ENCODE_ZERO: tl.constexpr,
):  # fmt: skip
    """Scale and zero point as stored; a symmetric scheme gives its scale twice."""
    if AFFINE:
        stored, stored_zero = scale_from_range(low, high, DIVISOR, EMPTY_SCALE, ROUND_UP, FLOAT_ZERO, LOW, HIGH, AWAY,
                                               ENCODE_SCALE, DECODE_SCALE, ENCODE_ZERO)  # fmt: skip
    else:
        absmax = tl.maximum(tl.maximum(-low, high), 0.0)
        stored = scale_from_absmax(absmax, None, DIVISOR, EMPTY_SCALE, ROUND_UP, MAX_EXPONENT, ENCODE_SCALE)
        stored_zero = stored
    return stored, stored_zero


@jit
def decode_zero(stored, COMPUTE: tl.constexpr, FLOAT_ZERO: tl.constexpr, DECODE_ZERO: tl.constexpr):
    """A stored zero point as a number in COMPUTE."""
    if FLOAT_ZERO:
        zero_point = DECODE_ZERO(stored).to(COMPUTE)
    else:
        zero_point = stored.to(COMPUTE)
    return zero_point


def next_power_of_two(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def word_codes(scheme: Scheme, n: int, k: int) -> int:
    """Codes per stored word: 32 bits where rows and groups hold whole ones, else the fewest codes that fill bytes."""
    fmt = scheme.format
    wide = 32 // fmt.bits
    columns = scheme.group_shape(n, k)[1]
    whole = fmt.row_bytes(k) % 4 == 0 and (columns % wide == 0 or columns >= k)
    return wide if whole and fmt.bits in (2, 4) else fmt.unit


def row_group(scheme: Scheme, n: int, k: int) -> int | None:
    """The power of two that quantize_rows holds per group, None where the geometry needs quantize_area."""
    if not scheme.has_scale or k == 0 or scheme.granularity.kind == "tensor":
        return None
    group_rows, columns = scheme.group_shape(n, k)
    columns = min(columns, k)
    group = max(next_power_of_two(columns), word_codes(scheme, n, k))
    if group_rows > 1 or group > LONGEST_ROW_GROUP or (columns < k and columns % scheme.format.unit):
        return None
    return group


def config(scheme: Scheme, n: int, k: int) -> dict[str, int]:
    """Tile sizes. 4096 elements for 128 threads: 32 each, four 16-byte loads of a 16-bit dtype."""
    columns = min(scheme.group_shape(n, k)[1], k)
    if group := row_group(scheme, n, k):
        block_g = min(next_power_of_two(-(-k // columns)), max(4096 // group, 1))
        block_n = min(next_power_of_two(n), max(4096 // (group * block_g), 1))
        return {"BLOCK_N": block_n, "BLOCK_G": block_g, "num_warps": 4 if group <= 4096 else 8}
    if scheme.has_scale and columns == 1 and scheme.group_shape(n, k)[0] > 1:
        return {"BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4}
    block_k = min(max(next_power_of_two(columns), scheme.format.unit, 16), 512)
    return {"BLOCK_N": min(next_power_of_two(n), 2048 // block_k), "BLOCK_K": block_k, "num_warps": 4}


def launch(x: torch.Tensor, scheme: Scheme, config: dict[str, int]) -> tuple[torch.Tensor, ...]:
    """Quantize ``x`` ``[N, K]``, N and K at least 1: (packed, scale, zero_point or None, second_scale or None), scales plain for ``dq``."""
    n, k = x.shape
    fmt, device = scheme.format, x.device
    row_bytes = fmt.row_bytes(k)
    packed = torch.empty(n, row_bytes, dtype=torch.uint8, device=device)
    scale = zero_point = second = None
    groups = 1
    if scheme.has_scale:
        shape = scheme.scale_shape(n, k)
        groups = shape[1]
        scale = torch.empty(shape, dtype=scheme.scale_format(x.dtype).dtype, device=device)
        if fmt.affine:
            zero_point = torch.empty(shape, dtype=scheme.zero_format(x.dtype).dtype if scheme.float_zero else torch.uint8, device=device)
    constants = encode_constants(scheme, x.dtype)
    low = high = None
    partials = 0
    if scheme.recipe == "nv" or scheme.granularity.kind == "tensor":
        partials = min(triton.cdiv(n, 16) * triton.cdiv(k, 256), MAX_PARTIALS)
        low, high = torch.empty(2, partials, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=device)
        range_partials[(partials,)](x, low, high, n, k, x.stride(0), x.stride(1), partials, COMPUTE=constants["COMPUTE"],
                                    BLOCK_N=16, BLOCK_K=256, enable_fp_fusion=False)  # fmt: skip
    if group := row_group(scheme, n, k):
        word = word_codes(scheme, n, k)
        words = packed.view(torch.int32) if word * fmt.bits == 32 else packed
        if scheme.recipe == "nv":
            second = torch.empty((), dtype=torch.float32, device=device)
        grid = (triton.cdiv(n, config["BLOCK_N"]) * triton.cdiv(groups, config["BLOCK_G"]),)
        quantize_rows[grid](
            x, words, carrier(scale), zero_point, low, high, second, n, k, groups, words.shape[1], x.stride(0), x.stride(1), partials,
            GROUP=group, COLUMNS=min(scheme.group_shape(n, k)[1], k) if groups > 1 else group, WORD=word, TWO_LEVEL=scheme.recipe == "nv", PARTIALS=next_power_of_two(partials), **constants, **config,
            enable_fp_fusion=False,
        )  # fmt: skip
        return packed, scale, zero_point, second
    group_rows, group_columns = scheme.group_shape(n, k) if scheme.has_scale else (n, k)
    if not scheme.has_scale or scheme.granularity.kind == "tensor":
        reduce, area_rows, area_columns = "tensor" if scheme.has_scale else "none", config["BLOCK_N"], config["BLOCK_K"]
    elif group_rows == 1:
        reduce, area_rows, area_columns = "row", config["BLOCK_N"], group_columns * fmt.unit
    elif group_columns == 1:
        reduce, area_rows, area_columns = "column", group_rows, config["BLOCK_K"]
    else:
        reduce, area_rows, area_columns = "block", group_rows, group_columns * fmt.unit
    grid = (triton.cdiv(n, area_rows) * triton.cdiv(k, area_columns),)
    quantize_area[grid](
        x, packed, carrier(scale), zero_point, low, high, n, k, groups, row_bytes, x.stride(0), x.stride(1), partials,
        group_rows, group_columns, area_rows, area_columns, REDUCE=reduce, PARTIALS=next_power_of_two(partials), UNIT=fmt.unit,
        **constants, **config, enable_fp_fusion=False,
    )  # fmt: skip
    return packed, scale, zero_point, second


def quantize(x: torch.Tensor, scheme: Scheme, config: dict[str, int]) -> QTensor:
    """``x`` as a QTensor; empty matrices launch nothing (their tensors have no elements to write, or the reference's defaults)."""
    packed, scale, zero_point, second = launch(x, scheme, config)
    if "dq" in scheme.options:
        codes, absmax, offset = double_quantize(scale)
        return QTensor(scheme, tuple(x.shape), x.dtype, packed, codes, zero_point, absmax, offset)
    return QTensor(scheme, tuple(x.shape), x.dtype, packed, scale, zero_point, second)
