"""Floor 2. Quantize, dequantize and matmul in plain torch: the judge of every kernel, and the CPU backend.

Works through the matrix in chunks of rows that fit a core's cache, so that a large layer needs no large temporaries.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..formats.integer import encode_integer_ref
from ..formats.packing import pack_row, unpack_row
from ..qtensor import QTensor
from ..scheme import Scheme
from .parameters import double_quantize, scale_from_absmax, scale_from_range, tensor_scale

# Elements per chunk: 1 MiB of float32, which stays in a core's second-level cache.
CHUNK = 1 << 18

ACTIVATIONS = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,  # the erf form
}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 is computed in float64, everything else in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def quantize(x: torch.Tensor, scheme: Scheme) -> QTensor:
    """x ``[N, K]`` -> QTensor. See :func:`tritonq.quantize` for the rules."""
    n, k = x.shape
    fmt = scheme.format
    packed = torch.empty(n, fmt.row_bytes(k), dtype=torch.uint8, device=x.device)
    if not scheme.has_scale:
        for rows in _chunks(0, n, k):
            packed[rows] = pack_row(fmt.encode_ref(_clean(x[rows].to(compute_dtype(x.dtype)))), fmt.bits)
        return QTensor(scheme, (n, k), x.dtype, packed)

    group_rows, group_columns = scheme.group_shape(n, k)
    groups = scheme.scale_shape(n, k)
    storage = scheme.scale_format(x.dtype)
    scale = torch.empty(groups, dtype=storage.dtype, device=x.device)
    zero_point = None
    if fmt.affine:
        zero_point = torch.empty(groups, dtype=scheme.zero_format(x.dtype).dtype if scheme.float_zero else torch.uint8, device=x.device)
    second = tensor_scale(_absmax(x)) if scheme.recipe == "nv" else None

    def encode(rows: slice, values: torch.Tensor) -> None:
        of_group = slice(rows.start // group_rows, -(-rows.stop // group_rows))
        decoded = storage.decode_ref(scale[of_group])
        if second is not None:
            decoded = decoded * second
        zero = None if zero_point is None else zero_point[of_group].to(values.dtype)
        packed[rows] = pack_row(_codes(values, decoded.to(values.dtype), zero, scheme, group_rows, group_columns), fmt.bits)

    for panel in _panels(n, k, group_rows):
        chunks = list(_chunks(panel.start, panel.stop, k)) if panel.stop - panel.start <= group_rows else [panel]
        values, low, high = None, None, None
        for rows in chunks:
            values = x[rows].to(compute_dtype(x.dtype))
            chunk_low, chunk_high = _range(values, group_rows, group_columns, fmt.affine)
            low = chunk_low if low is None else torch.minimum(low, chunk_low)
            high = chunk_high if high is None else torch.maximum(high, chunk_high)
        of_group = slice(panel.start // group_rows, -(-panel.stop // group_rows))
        if fmt.affine:
            scale[of_group], zero_point[of_group] = scale_from_range(low, high, scheme, x.dtype)
        else:
            scale[of_group] = scale_from_absmax(high, scheme, x.dtype, second)
        for rows in chunks:
            encode(rows, values if len(chunks) == 1 else x[rows].to(compute_dtype(x.dtype)))

    if "dq" in scheme.options:
        codes, absmax, offset = double_quantize(scale)
        return QTensor(scheme, (n, k), x.dtype, packed, codes, zero_point, absmax, offset)
    return QTensor(scheme, (n, k), x.dtype, packed, scale, zero_point, second)


def dequantize(q: QTensor, dtype: torch.dtype) -> torch.Tensor:
    """Decoded values ``[N, K]``, computed in float32 (float64 where ``dtype`` is) and cast once."""
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    for rows in _chunks(0, *q.shape):
        out[rows] = decode_rows(q, rows, compute_dtype(dtype))
    return out


def matmul(x: torch.Tensor, q: QTensor, bias: torch.Tensor | None = None, activation: str | None = None,
           residual: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    """activation(x ``[M, K]`` @ w_hat ``[N, K]``.T + bias) + residual, computed in float32 (float64 for float64 x), cast once."""
    compute = compute_dtype(x.dtype)
    y = torch.empty(x.shape[0], q.shape[0], dtype=compute, device=x.device)
    wide = x.to(compute)
    for rows in _chunks(0, *q.shape, size=16 * CHUNK):
        y[:, rows] = wide @ decode_rows(q, rows, compute).T
    if bias is not None:
        y += bias.to(compute)
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    if residual is not None:
        y += residual.to(compute)
    return y.to(x.dtype)


def decode_rows(q: QTensor, rows: slice, compute: torch.dtype) -> torch.Tensor:
    """The rows ``rows`` of the decoded matrix: scale * (code - zero_point), or zero_point + scale * code; two roundings."""
    scheme, fmt, k = q.scheme, q.scheme.format, q.shape[1]
    codes = unpack_row(q.packed[rows], fmt.bits, k)
    if fmt.is_integer:
        if fmt.signed:
            codes = (codes << (8 - fmt.bits)).view(torch.int8) >> (8 - fmt.bits)
        levels = codes.to(compute)
    elif fmt.bits > 8:
        levels = fmt.decode_ref(codes).to(compute)
    else:
        levels = fmt.levels.to(q.device).index_select(0, codes.int().flatten()).view(codes.shape).to(compute)
    if not scheme.has_scale:
        return levels
    if q.zero_point is not None and not scheme.float_zero:
        levels -= _per_element(q.zero_point, q, rows, compute)
    levels *= _per_element(q.group_scale, q, rows, compute)
    if scheme.float_zero:
        levels += _per_element(q.zero_point, q, rows, compute)
    return levels


def _per_element(per_group: torch.Tensor, q: QTensor, rows: slice, compute: torch.dtype) -> torch.Tensor:
    group_rows, group_columns = q.scheme.group_shape(*q.shape)
    first = rows.start // group_rows
    values = per_group[first : -(-rows.stop // group_rows)].to(compute)
    if group_rows > 1:
        values = values.repeat_interleave(group_rows, 0)[rows.start - first * group_rows :][: rows.stop - rows.start]
    if values.shape[1] > 1 and group_columns > 1:
        values = values.repeat_interleave(group_columns, 1)[:, : q.shape[1]]
    return values


def _chunks(start: int, stop: int, k: int, size: int | None = None) -> Iterator[slice]:
    step = max((size or CHUNK) // max(k, 1), 1)
    return (slice(i, min(i + step, stop)) for i in range(start, stop, step))


def _panels(n: int, k: int, group_rows: int) -> Iterator[slice]:
    """Runs of whole row groups: as many as fill a chunk, at least one."""
    step = max(CHUNK // max(k, 1) // group_rows, 1) * group_rows
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def _absmax(x: torch.Tensor) -> torch.Tensor:
    """Largest finite magnitude of the whole matrix; 0 where there is none."""
    compute = compute_dtype(x.dtype)
    absmax = torch.zeros((), dtype=compute, device=x.device)
    if x.numel() == 0:
        return absmax
    for rows in _chunks(0, *x.shape):
        absmax = torch.maximum(absmax, _range(x[rows].to(compute), x.shape[0], x.shape[1], False)[1].amax())
    return absmax


def _grouped(values: torch.Tensor, group_rows: int, group_columns: int) -> torch.Tensor:
    """``[rows, K]`` as ``[row groups, rows per group, column groups, columns per group]``; short groups repeat their last element."""
    rows, k = values.shape
    group_rows, group_columns = min(group_rows, rows), min(group_columns, k)
    short_rows, short_columns = -rows % group_rows, -k % group_columns
    if short_columns:
        values = torch.cat([values, values[:, -1:].expand(rows, short_columns)], 1)
    if short_rows:
        values = torch.cat([values, values[-1:].expand(short_rows, values.shape[1])])
    return values.view(values.shape[0] // group_rows, group_rows, values.shape[1] // group_columns, group_columns)


def _range(values: torch.Tensor, group_rows: int, group_columns: int, both_ends: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(least, greatest) finite value per group, or (-absmax, absmax). A group without finite values: low > high, or absmax 0."""
    if values.shape[1] == 0:
        empty = values.new_zeros(-(-values.shape[0] // group_rows), 0)
        return empty, empty
    grouped = _grouped(values, group_rows, group_columns)
    if grouped.shape[1] == 1:
        low, high = (end[:, 0] for end in torch.aminmax(grouped, dim=3))
    else:
        low, high = grouped.amin((1, 3)), grouped.amax((1, 3))
    if not bool((low.isfinite() & high.isfinite()).all()):  # NaN and Inf reach the ends, so finite ends mean finite values
        finite = grouped.isfinite()
        low = torch.where(finite, grouped, torch.inf).amin((1, 3))
        high = torch.where(finite, grouped, -torch.inf).amax((1, 3))
    if both_ends:
        return low, high
    absmax = torch.maximum(-low, high).clamp_(min=0)
    return -absmax, absmax


def _clean(values: torch.Tensor) -> torch.Tensor:
    """NaN is coded as zero."""
    return torch.where(values.isnan(), 0.0, values)


def _codes(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme,
           group_rows: int, group_columns: int) -> torch.Tensor:  # fmt: skip
    """Stored codes ``[rows, K]`` of one chunk."""
    rows, k = values.shape
    fmt = scheme.format
    if k == 0:
        return values.to(torch.uint8)
    grouped = _grouped(values, group_rows, group_columns)
    scale = torch.where(scale == 0, 1.0, scale)[:, None, :, None]
    zero = None if zero is None else zero[:, None, :, None]
    quotient = (grouped - zero if scheme.float_zero else grouped) / scale
    if bool(quotient.sum().isnan()):
        quotient = ((_clean(grouped) - zero) if scheme.float_zero else _clean(grouped)) / scale
    if fmt.is_integer:
        offset = 0 if zero is None or scheme.float_zero else zero
        codes = encode_integer_ref(quotient, offset, *scheme.code_range, "away" in scheme.options)
        codes = codes.to(torch.int8 if fmt.signed else torch.uint8).view(torch.uint8)
        if fmt.signed and fmt.bits < 8:
            codes &= 2**fmt.bits - 1
    else:
        codes = fmt.encode_ref(quotient).to(torch.uint8)
    return codes.view(-1, grouped.shape[2] * grouped.shape[3])[:rows, :k]
