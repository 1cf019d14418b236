"""Floor 1. Pieces of a quantized matrix that are quantized matrices themselves: what tensor parallelism cuts and fused layers join.

Nothing is decoded or rounded: ``dequantize(narrow(q, ...))`` holds the bits of that part of ``dequantize(q)``. K is cut where groups and
whole bytes of the packed row end (3-bit codes fill whole bytes every 8); N anywhere, or between the rows of 2-D blocks. Scales that
several pieces share are kept by each. Double quantization (``dq``) scales 256 neighbouring scales together: a cut must fall between those.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm

import torch

from .errors import InvalidProblemError
from .qtensor import QTensor, as_bytes, expected_flat
from .scheme import DQ_BLOCK, Scheme

_AXES = {0: "N", 1: "K"}


@dataclass(frozen=True)
class Cut:
    """Which part of a stored tensor a piece takes: that tensor seen as ``view``, from ``start`` on, ``length`` long along ``axis``."""

    view: tuple[int, ...]
    axis: int
    start: int
    length: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(self.view).narrow(self.axis, self.start, self.length)

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of that part: contiguous, and the whole need not live on."""
        return as_bytes(self.of(tensor)).clone(memory_format=torch.contiguous_format).view(tensor.dtype)


def narrow(q: QTensor, axis: int, start: int, length: int) -> QTensor:
    """Rows (``axis`` 0) or columns (1) ``start`` to ``start + length`` of ``q``, without loss, in layout ``row``.

    What is cut is copied, so that a piece does not keep the whole alive; what every piece needs is shared with ``q``.

    Raises:
        InvalidProblemError: a part outside of the matrix, or one that begins or ends inside of a group, a byte or a ``dq`` block; columns
            of a matrix with act-order, which lie scattered.

    Example:
        >>> import torch, tritonq
        >>> q = tritonq.quantize(torch.randn(8, 256), "nf4")
        >>> half = narrow(q, 1, 128, 128)
        >>> half.shape, torch.equal(half.dequantize(), q.dequantize()[:, 128:])
        ((8, 128), True)
    """
    _check_qtensor(q)
    row, shape = q.relayout("row"), _resized(q.shape, axis, length)
    taken = {}
    for name, cut in cuts(q.scheme, q.shape, axis, start, length, act_order=q.column_order is not None).items():
        tensor = getattr(row, name)
        taken[name] = tensor if tensor is None or cut is None else cut.take(tensor)
    return replace(row, shape=shape, **_in_shape(taken, q.scheme, shape, q.dtype))


def concatenate(parts: Sequence[QTensor], axis: int = 0) -> QTensor:
    """The matrix whose pieces ``parts`` are, in layout ``row``: the inverse of :func:`narrow`, and what fuses Q, K and V.

    Raises:
        InvalidProblemError: no parts; another scheme, dtype, device, act-order or length of the other axis; a part that ends inside of a
            group, a byte or a ``dq`` block; parts that would have to share a scale (one per tensor or row, nvfp4's second, ``dq``'s
            offset) and do not.

    Example:
        >>> import torch, tritonq
        >>> q, k = (tritonq.quantize(torch.randn(64, 128), "int4.g32") for _ in range(2))
        >>> both = concatenate([q, k])
        >>> both.shape, torch.equal(both.dequantize()[64:], k.dequantize())
        ((128, 128), True)
    """
    parts = list(parts)
    if not parts:
        raise InvalidProblemError("concatenate needs at least one part, got none")
    for part in parts:
        _check_qtensor(part)
    rows = [part.relayout("row") for part in parts]
    first = rows[0]
    for i, part in enumerate(rows):
        for what, one, other in (("scheme", part.scheme, first.scheme), ("dtype", part.dtype, first.dtype),
                                 ("device", part.device, first.device),
                                 (_AXES[1 - _axis(axis)], part.shape[1 - axis], first.shape[1 - axis])):  # fmt: skip
            if one != other:
                raise InvalidProblemError(f"parts must have one {what} to be joined along {_AXES[axis]}; part 0 has {other}, "
                                          f"part {i} {one}")  # fmt: skip
    filled = [part for part in rows if part.shape[axis]] or rows[:1]
    shape = _resized(first.shape, axis, sum(part.shape[axis] for part in filled))
    joined, start = {}, 0
    pieces: dict[str, list[tuple[Cut | None, torch.Tensor | None]]] = {}
    for part in filled:
        act_order = part.column_order is not None
        for name, cut in cuts(part.scheme, shape, axis, start, part.shape[axis], act_order=act_order).items():
            pieces.setdefault(name, []).append((cut, getattr(part, name)))
        start += part.shape[axis]
    for name, found in pieces.items():
        cut, tensor = found[0]
        if len({other is None for _, other in found}) > 1:
            raise InvalidProblemError("parts with and without act-order cannot be joined; their columns lie in different orders")
        if tensor is None or cut is None:
            unlike = next((i for i, (_, other) in enumerate(found) if tensor is not None and not _same_bytes(tensor, other)), None)
            if unlike is not None:
                raise InvalidProblemError(
                    f"parts of {first.scheme} joined along {_AXES[axis]} share one {name}, and part {unlike} has another than part 0; "
                    "keep them apart, or quantize them as one matrix or with a group size")  # fmt: skip
            joined[name] = tensor
        else:
            views = [as_bytes(other.view(_resized(cut.view, cut.axis, c.length))) for c, other in found]
            joined[name] = torch.cat(views, cut.axis).view(tensor.dtype)
    return replace(first, shape=shape, **_in_shape(joined, first.scheme, shape, first.dtype))


def cuts(scheme: Scheme, shape: tuple[int, int], axis: int, start: int, length: int, *, act_order: bool = False) -> dict[str, Cut | None]:
    """For each tensor of a ``[N, K]`` matrix in layout ``row``, by its field of QTensor, what a piece takes of it; None: all of it.

    For readers that fetch a piece from a file without the rest. Raises as :func:`narrow` does.
    """
    size, stop = shape[_axis(axis)], start + length
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in (start, length)) or not 0 <= start <= stop <= size:
        raise InvalidProblemError(f"a part of {length} from {start} on lies outside of {_AXES[axis]} = {size}")
    every, why = _rule(scheme, shape, axis, act_order)
    for at in (start, stop):
        if at not in (0, size) and (every is None or at % every):
            where = "nowhere" if every is None else f"at multiples of {every}"
            raise InvalidProblemError(f"{scheme} {list(shape)} is cut along {_AXES[axis]} {where}, not at {at}: {why}")
    bits, (n, k) = scheme.format.bits, shape
    codes = (start, length) if axis == 0 else (start * bits // 8, scheme.format.row_bytes(stop) - start * bits // 8)
    taken: dict[str, Cut | None] = {"packed": Cut((n, scheme.format.row_bytes(k)), axis, *codes)}
    if scheme.has_scale:
        groups, per = scheme.scale_shape(n, k), scheme.group_shape(n, k)[axis]
        shared = groups[axis] == 1 and length > 0
        kept = Cut(groups, axis, start // per, -(-stop // per) - start // per if length else 0)
        taken["stored_scale"] = None if shared else kept
        if scheme.format.affine:
            taken["zero_point"] = taken["stored_scale"]
        if "dq" in scheme.options:
            taken["second_scale"], taken["scale_offset"] = _second_cut(groups, kept), None
        if scheme.recipe == "nv":
            taken["second_scale"] = None
    taken["column_order"] = None
    return taken


def step(scheme: Scheme, shape: tuple[int, int], axis: int, *, act_order: bool = False) -> int | None:
    """A ``[N, K]`` matrix may be cut along ``axis`` at multiples of this, and at its end. None: nowhere."""
    return _rule(scheme, shape, axis, act_order)[0]


def legal_parts(scheme: Scheme, shape: tuple[int, int], axis: int, most: int = 64, *, act_order: bool = False) -> tuple[int, ...]:
    """The numbers of equal parts, at most ``most``, into which a ``[N, K]`` matrix may be cut along ``axis``; 1 is always one.

    Example:
        >>> legal_parts(Scheme.parse("int4.g128"), (4096, 11008), 1)
        (1, 2, 43)
    """
    size, every = shape[_axis(axis)], step(scheme, shape, axis, act_order=act_order)
    whole = [parts for parts in range(2, min(most, size) + 1) if size % parts == 0]
    return (1, *(parts for parts in whole if every is not None and size // parts % every == 0))


def check_parts(scheme: Scheme, shape: tuple[int, int], axis: int, parts: int, *, name: str = "weight", act_order: bool = False) -> None:
    """Refuse a number of equal parts that would cut ``[N, K]`` where it must not be cut.

    Raises:
        InvalidProblemError: names the weight, what was asked, the rule, the numbers that are legal, and the way out.

    Example:
        >>> check_parts(Scheme.parse("nf4"), (64, 192), 1, 2, name="down_proj.weight")
        Traceback (most recent call last):
        ...
        tritonq.errors.InvalidProblemError: down_proj.weight: nf4 [64, 192] cannot be cut into 2 equal parts along K: parts of 96 are \
no multiple of 64 (groups of 64 columns). Legal numbers of parts: 1, 3; or take a smaller group size
    """
    size = shape[_axis(axis)]
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise InvalidProblemError(f"{name}: the number of parts must be a whole number >= 1, got {parts!r}")
    legal = legal_parts(scheme, shape, axis, max(parts, 64), act_order=act_order)
    if parts in legal:
        return
    every, why = _rule(scheme, shape, axis, act_order)
    if every is None:
        rule = why
    elif size % parts:
        rule = f"{size} is no multiple of {parts}"
    else:
        rule = f"parts of {size // parts} are no multiple of {every} ({why})"
    way_out = ""
    if "dq" in scheme.options:
        way_out = "; or give each scale its own float32 with tritonq.shards.expand_scales"
    elif every is not None and axis == 1 and scheme.group_size:
        way_out = "; or take a smaller group size"
    elif every is None or scheme.granularity.kind == "block":
        way_out = f"; or cut along {_AXES[1 - axis]}"
    numbers = ", ".join(map(str, legal))
    raise InvalidProblemError(f"{name}: {scheme} {list(shape)} cannot be cut into {parts} equal parts along {_AXES[axis]}: {rule}. "
                              f"Legal numbers of parts: {numbers}{way_out}")  # fmt: skip


def expand_scales(q: QTensor) -> QTensor:
    """A ``dq`` matrix with float32 scales of its own instead, the same values bit for bit: it can be cut at every group.

    ``nf4.g64.dq`` becomes ``nf4.g64``, ``int4.g128.dq`` becomes ``int4.g128.s32``; a group costs 24 bits more. Others are returned as they
    are.

    Example:
        >>> import torch, tritonq
        >>> q = tritonq.quantize(torch.randn(16, 128), "nf4.dq")
        >>> plain = expand_scales(q)
        >>> str(plain.scheme), torch.equal(plain.dequantize(), q.dequantize())
        ('nf4.g64', True)
    """
    _check_qtensor(q)
    if "dq" not in q.scheme.options:
        return q
    row = q.relayout("row")
    return replace(row, scheme=expanded_scheme(q.scheme), stored_scale=row.scale, second_scale=None, scale_offset=None)


def expanded_scheme(scheme: Scheme) -> Scheme:
    """The scheme that :func:`expand_scales` gives."""
    if "dq" not in scheme.options:
        return scheme
    scale = None if scheme.format.scale == "fp32" else "fp32"
    return replace(scheme, options=scheme.options - {"dq"}, scale=scale, spelling=None)


def _rule(scheme: Scheme, shape: tuple[int, int], axis: int, act_order: bool) -> tuple[int | None, str]:
    """(:func:`step`, why)."""
    axis = _axis(axis)
    if act_order and axis == 1:
        return None, "with act-order the columns of a group lie scattered over K"
    every, why = (scheme.format.unit, f"{scheme.format.unit} codes of {scheme.format.bits} bits fill whole bytes") if axis else (1, "rows")
    if not scheme.has_scale:
        return every, why
    groups, per = scheme.scale_shape(*shape), scheme.group_shape(*shape)[axis]
    size = scheme.granularity.rows if axis == 0 else scheme.granularity.columns
    if scheme.granularity.kind in ("group", "block") and size > 1:
        every, unit = lcm(every, size), every
        why = f"groups of {size} {'columns' if axis else 'rows'}" + (f", {unit} codes to whole bytes" if size % unit else "")
    if "dq" not in scheme.options or groups[0] * groups[1] <= DQ_BLOCK:
        return every, why
    if groups[axis] == 1:  # every piece has all of the scales
        return every, why
    why = f"dq scales {DQ_BLOCK} neighbouring scales of {groups[0]} x {groups[1]} together"
    if axis == 1 and groups[0] > 1:
        return (None, why) if groups[1] % DQ_BLOCK else (lcm(every, per * DQ_BLOCK), why)
    neighbours = groups[1] if axis == 0 else 1  # per group along the axis
    return lcm(every, per * (DQ_BLOCK // gcd(DQ_BLOCK, neighbours))), why


def _second_cut(groups: tuple[int, int], kept: Cut) -> Cut | None:
    """What a piece takes of dq's second scales, one for 256 neighbours in memory; ``kept``: what it takes of the scales."""
    blocks = -(-groups[0] * groups[1] // DQ_BLOCK)
    if kept.length == 0:
        return Cut((blocks,), 0, 0, 0)
    if blocks == 1 or kept.length == groups[kept.axis]:
        return None
    if kept.axis == 1 and groups[0] > 1:
        return Cut((groups[0], groups[1] // DQ_BLOCK), 1, kept.start // DQ_BLOCK, kept.length // DQ_BLOCK)
    neighbours = groups[1] if kept.axis == 0 else 1
    first = kept.start * neighbours // DQ_BLOCK
    return Cut((blocks,), 0, first, -(-(kept.start + kept.length) * neighbours // DQ_BLOCK) - first)


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if i == axis else n for i, n in enumerate(shape))


def _in_shape(tensors: dict[str, torch.Tensor | None], scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype) -> dict:
    wanted = expected_flat(scheme, shape, dtype, "row")
    return {name: tensor.view(wanted[name][0]) if name in wanted else tensor for name, tensor in tensors.items()}


def _axis(axis: int) -> int:
    if isinstance(axis, bool) or axis not in _AXES:
        raise InvalidProblemError(f"axis must be 0 (N) or 1 (K), got {axis!r}")
    return axis


def _check_qtensor(q) -> None:
    if not isinstance(q, QTensor):
        raise InvalidProblemError(f"a piece is one of a QTensor, got {type(q).__name__}")


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
