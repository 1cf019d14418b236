"""Floor 2. Quantize, dequantize and matmul in plain torch: the judge of every kernel, and the CPU backend.

Works through the matrix in chunks of rows that fit a core's cache, so that a large layer needs no large temporaries. A chunk is seen
as tiles ``[row groups, rows, column groups, columns]`` whose groups are all of one size: short last groups make tiles of their own.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..backend import as_computed
from ..dtypes import compute_dtype
from ..formats import Format
from ..formats.integer import encode_integer_ref
from ..formats.numerics import narrow_ref
from ..formats.packing import pack_row, unpack_row
from ..kept import kept
from ..qtensor import QTensor
from ..scheme import Scheme
from .parameters import double_quantize, scale_from_absmax, scale_from_range, tensor_scale

# Elements per chunk: 4 MiB of float32. Measured best of 2**17 to 2**22: near enough to the cache, and few enough parallel regions
# that other work on the machine does not make their barriers wait.
CHUNK = 1 << 20

def swiglu(y: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of ``[..., 2 I]``, the gate in the first half of the columns: ``[..., I]``."""
    gate, up = y.chunk(2, -1)
    return F.silu(gate) * up


ACTIVATIONS = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,  # the erf form
    "swiglu": swiglu,
}


def activation_backward(grad: torch.Tensor, before: torch.Tensor, activation: str) -> torch.Tensor:
    """The gradient of ``before``, the activation's argument, from that of its result; both of one dtype."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, before, 0)
    if activation == "silu":
        return _silu_backward(grad, before)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, before)
    gate, up = before.chunk(2, -1)
    return torch.cat([_silu_backward(grad * up, gate), grad * F.silu(gate)], -1)


def _silu_backward(grad: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """torch's own has no derivative."""
    s = before.sigmoid()
    return grad * (s * (1 + before * (1 - s)))


# Torch types as wide as the float32 levels of one packed byte: one look-up gives all of them (measured: 6 times the speed of one each).
_WIDE = {1: torch.float32, 2: torch.float64, 4: torch.complex128}


def quantize(x: torch.Tensor, scheme: Scheme) -> QTensor:
    """x ``[N, K]`` -> QTensor. See :func:`tritonq.quantize` for the rules."""
    n, k = x.shape
    fmt, compute = scheme.format, compute_dtype(x.dtype)
    packed = torch.empty(n, fmt.row_bytes(k), dtype=torch.uint8, device=x.device)
    if not scheme.has_scale:
        for rows in _chunks(0, n, k):
            packed[rows] = pack_row(fmt.encode_ref(_nan_to_zero(x[rows].to(compute))), fmt.bits)
        return QTensor(scheme, (n, k), x.dtype, packed)

    group_rows, group_columns = scheme.group_shape(n, k)
    groups = scheme.scale_shape(n, k)
    storage = scheme.scale_format(x.dtype)
    scale = torch.empty(groups, dtype=storage.dtype, device=x.device)
    zero_point = None
    if fmt.affine:
        zero_point = torch.empty(groups, dtype=scheme.zero_dtype(x.dtype), device=x.device)
    second = tensor_scale(_absmax(x)) if scheme.recipe == "nv" else None

    for panel in _panels(n, k, group_rows):
        of_group = slice(panel.start // group_rows, -(-panel.stop // group_rows))
        chunks = list(_chunks(panel.start, panel.stop, k)) if of_group.stop - of_group.start == 1 else [panel]
        low, high = _range(x, chunks, group_rows, group_columns)
        if fmt.affine:
            scale[of_group], zero_point[of_group] = scale_from_range(low, high, scheme, x.dtype)
        else:
            absmax = torch.maximum(-low, high).clamp_(min=0)  # a group without finite values has low = inf, high = -inf
            scale[of_group] = scale_from_absmax(absmax, scheme, x.dtype, second)
        divisor = storage.decode_ref(scale[of_group])
        divisor = (divisor if second is None else divisor * second).to(compute)
        divisor = torch.where(divisor == 0, 1, divisor)
        zero = None if zero_point is None else zero_point[of_group].to(compute)
        for rows in chunks:
            packed[rows] = pack_row(_codes(x[rows].to(compute), divisor, zero, scheme, group_rows, group_columns), fmt.bits)

    if "dq" in scheme.options:
        codes, absmax, offset = double_quantize(scale)
        return QTensor(scheme, (n, k), x.dtype, packed, codes, zero_point, absmax, offset)
    return QTensor(scheme, (n, k), x.dtype, packed, scale, zero_point, second)


def quantize_scaled(x: torch.Tensor, scheme: Scheme, scale: torch.Tensor, zero_point: torch.Tensor | None = None) -> QTensor:
    """x ``[N, K]`` under scales and zero points that are given, as stored, instead of taken from x."""
    n, k = x.shape
    compute, (group_rows, group_columns) = compute_dtype(x.dtype), scheme.group_shape(n, k)
    packed = torch.empty(n, scheme.format.row_bytes(k), dtype=torch.uint8, device=x.device)
    divisor = scheme.scale_format(x.dtype).decode_ref(scale).to(compute)
    divisor = torch.where(divisor == 0, 1, divisor)
    zero = None if zero_point is None else zero_point.to(compute)
    for panel in _panels(n, k, group_rows):
        at = slice(panel.start // group_rows, -(-panel.stop // group_rows))
        for rows in _chunks(panel.start, panel.stop, k) if at.stop - at.start == 1 else [panel]:
            codes = _codes(x[rows].to(compute), divisor[at], None if zero is None else zero[at], scheme, group_rows, group_columns)
            packed[rows] = pack_row(codes, scheme.format.bits)
    return QTensor(scheme, (n, k), x.dtype, packed, scale, zero_point)


def dequantize(q: QTensor, dtype: torch.dtype) -> torch.Tensor:
    """Decoded values ``[N, K]``, computed in the scheme's decode dtype and cast once."""
    q = q.relayout("row")
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    compute = q.scheme.decode_dtype(dtype)
    for rows in _chunks(0, *q.shape):
        values = decode_rows(q, rows, compute)
        values = values if q.column_order is None else values.index_select(1, q.column_rank)
        out[rows] = narrow_ref(values) if dtype.itemsize == 2 else values  # torch would round float64 twice on the way to 16 bits
    return out


def matmul(x: torch.Tensor, q: QTensor, bias: torch.Tensor | None = None, activation: str | None = None,
           residual: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    """activation(x ``[M, K]`` @ w_hat ``[N, K]``.T + bias) + residual, computed in the scheme's decode dtype, cast once."""
    q = q.relayout("row")
    compute = q.scheme.decode_dtype(x.dtype)
    y = torch.empty(x.shape[0], q.shape[0], dtype=compute, device=x.device)
    wide = (x if q.column_order is None else x.index_select(1, q.column_order)).to(compute)
    with as_computed(x.device):
        for rows in _chunks(0, *q.shape, size=16 * CHUNK):
            y[:, rows] = wide @ decode_rows(q, rows, compute).T
    if bias is not None:
        y += bias.to(compute)
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    if residual is not None:
        y += residual.to(compute)
    return (narrow_ref(y) if x.dtype.itemsize == 2 else y).to(x.dtype)


def matmul_backward(dy: torch.Tensor, q: QTensor) -> torch.Tensor:
    """dy ``[M, N]`` @ w_hat ``[N, K]``, computed in the scheme's decode dtype, cast once. The weight is decoded some rows at a time."""
    q = q.relayout("row")
    compute = q.scheme.decode_dtype(dy.dtype)
    dx = torch.zeros(dy.shape[0], q.shape[1], dtype=compute, device=dy.device)
    for rows in _chunks(0, *q.shape, size=16 * CHUNK):  # in place, which autocast leaves alone
        dx.addmm_(dy[:, rows].to(compute), decode_rows(q, rows, compute))
    return (narrow_ref(dx) if dy.dtype.itemsize == 2 else dx).to(dy.dtype)


def decode_rows(q: QTensor, rows: slice, compute: torch.dtype) -> torch.Tensor:
    """The rows ``rows`` of the decoded matrix, columns as packed: scale * (code - zero_point), or zero_point + scale * code; two roundings.
    """
    scheme = q.scheme
    levels = _levels(q.packed[rows], scheme.format, q.shape[1]).to(compute)
    if not scheme.has_scale or levels.numel() == 0:
        return levels
    group_rows, group_columns = scheme.group_shape(*q.shape)
    first = rows.start // group_rows
    of_group = slice(first, -(-rows.stop // group_rows))
    scale = q.group_scale[of_group].to(compute)
    zero = None if q.zero_point is None else q.zero_point[of_group].to(compute)
    if group_rows > 1:  # one row of scales per row, because a slice of rows may start or end inside a group
        inside = torch.arange(rows.start, rows.stop, device=q.device) // group_rows - first
        scale, zero, group_rows = scale[inside], None if zero is None else zero[inside], 1
    for tile, at in _tiles(levels, group_rows, group_columns):
        if zero is not None and not scheme.float_zero:
            tile -= _spread(zero[at])
        tile *= _spread(scale[at])
        if scheme.float_zero:
            tile += _spread(zero[at])
    return levels


@kept
def _levels_of_byte(fmt: Format) -> torch.Tensor:
    """256 elements, each the float32 levels of all codes of one packed byte."""
    codes = unpack_row(torch.arange(256, dtype=torch.uint8)[:, None], fmt.bits, 8 // fmt.bits)
    return fmt.levels[codes.long()].view(_WIDE[codes.shape[1]]).flatten()


def _levels(packed: torch.Tensor, fmt: Format, k: int) -> torch.Tensor:
    """The float32 level of every code, ``[rows, K]``, writable."""
    if fmt.is_integer and fmt.bits == 8:
        return packed.view(torch.int8 if fmt.signed else torch.uint8).float()
    if 8 % fmt.bits == 0 and packed.numel():
        levels = _levels_of_byte(fmt).to(packed.device).index_select(0, packed.int().flatten())
        return levels.view(torch.float32).view(packed.shape[0], -1)[:, :k]
    codes = unpack_row(packed, fmt.bits, k)
    if fmt.bits > 8:
        return fmt.decode_ref(codes)
    return fmt.levels.to(packed.device).index_select(0, codes.int().flatten()).view(codes.shape)


def _chunks(start: int, stop: int, k: int, size: int | None = None) -> Iterator[slice]:
    step = max((size or CHUNK) // max(k, 1), 1)
    return (slice(i, min(i + step, stop)) for i in range(start, stop, step))


def _panels(n: int, k: int, group_rows: int) -> Iterator[slice]:
    """Runs of whole row groups: as many as fill a chunk, at least one."""
    step = max(CHUNK // max(k, 1) // group_rows, 1) * group_rows
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def _tiles(matrix: torch.Tensor, group_rows: int, group_columns: int) -> Iterator[tuple[torch.Tensor, tuple[slice, slice]]]:
    """Views ``[row groups, rows, column groups, columns]`` of ``matrix``, each with the index of its groups among all groups."""
    for rows, height, row_groups in _runs(matrix.shape[0], group_rows):
        for columns, width, column_groups in _runs(matrix.shape[1], group_columns):
            yield matrix[rows, columns].unflatten(1, (-1, width)).unflatten(0, (-1, height)), (row_groups, column_groups)


def _runs(size: int, group: int) -> Iterator[tuple[slice, int, slice]]:
    """``range(size)`` as its whole groups and the short last one: elements, length of a group, groups."""
    count = size // group
    if count:
        yield slice(0, count * group), group, slice(0, count)
    if size % group:
        yield slice(count * group, size), size % group, slice(count, count + 1)


def _spread(per_group: torch.Tensor) -> torch.Tensor:
    """``[row groups, column groups]`` against a tile."""
    return per_group[:, None, :, None]


def _absmax(x: torch.Tensor) -> torch.Tensor:
    """Largest finite magnitude of the whole matrix; 0 where there is none."""
    if x.numel() == 0:
        return x.new_zeros((), dtype=compute_dtype(x.dtype))
    low, high = _range(x, _chunks(0, *x.shape), *x.shape)
    return torch.maximum(-low, high).clamp_(min=0).squeeze()


def _range(x: torch.Tensor, chunks: Iterator[slice], group_rows: int, group_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(least, greatest) finite value of each group of the rows in ``chunks``; (inf, -inf) where a group has none."""
    low = high = None
    for rows in chunks:
        values = x[rows].to(compute_dtype(x.dtype))
        shape = -(-values.shape[0] // group_rows), -(-values.shape[1] // group_columns)
        chunk_low, chunk_high = values.new_full(shape, torch.inf), values.new_full(shape, -torch.inf)
        for tile, at in _tiles(values, group_rows, group_columns):
            tile_low, tile_high = tile.amin((1, 3)), tile.amax((1, 3))
            if not bool((tile_low.isfinite() & tile_high.isfinite()).all()):
                finite = tile.isfinite()  # NaN and Inf reach the ends, so where these are finite, everything is
                tile_low = torch.where(finite, tile, torch.inf).amin((1, 3))
                tile_high = torch.where(finite, tile, -torch.inf).amax((1, 3))
            chunk_low[at], chunk_high[at] = tile_low, tile_high
        low = chunk_low if low is None else torch.minimum(low, chunk_low)
        high = chunk_high if high is None else torch.maximum(high, chunk_high)
    return low, high


def _nan_to_zero(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.isnan(), 0.0, values)


def _codes(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme,
           group_rows: int, group_columns: int) -> torch.Tensor:  # fmt: skip
    """Stored codes ``[rows, K]`` of one chunk, uint8."""
    fmt = scheme.format
    if bool(values.sum().isnan()):  # also where +Inf meets -Inf, which does no harm
        values = _nan_to_zero(values)
    codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    for (tile, at), (codes_tile, _) in zip(_tiles(values, group_rows, group_columns), _tiles(codes, group_rows, group_columns)):
        quotient = tile / _spread(scale[at]) if not scheme.float_zero else (tile - _spread(zero[at])).div_(_spread(scale[at]))
        if fmt.is_integer:
            offset = 0 if zero is None or scheme.float_zero else _spread(zero[at])
            quotient = encode_integer_ref(quotient, offset, *scheme.code_range, "away" in scheme.options).to(torch.int16)
        else:
            quotient = fmt.encode_ref(quotient)
        codes_tile.copy_(quotient)
    if fmt.signed and fmt.bits < 8:
        codes &= 2**fmt.bits - 1
    return codes
