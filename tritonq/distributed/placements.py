"""Floor 7. Where each tensor of a sharded weight goes: split along N or K, or kept by every part."""
from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from ..errors import InvalidProblemError, UnsupportedError
from ..qtensor import QTensor, operands
from ..scheme import Scheme
from ..shards import check_parts, cuts, narrow


def weight_placements(scheme: Scheme, shape: tuple[int, int], axis: int, parts: int, *, act_order: bool = False,
                      name: str = "weight") -> dict[str, Placement]:  # fmt: skip
    """For each tensor of a ``[N, K]`` weight in layout ``row``, by its field of QTensor: ``Shard(0)``, ``Shard(1)`` or ``Replicate()``.

    Raises:
        InvalidProblemError: ``parts`` equal parts along ``axis`` (0: N, 1: K) would cut a group, a byte or a ``dq`` block.
        UnsupportedError: ``dq`` along K of a matrix of several rows, whose second scales no placement describes.

    Example:
        >>> from tritonq import Scheme
        >>> weight_placements(Scheme.parse("int8"), (64, 64), 1, 2)
        {'packed': Shard(dim=1), 'stored_scale': Replicate(), 'column_order': Replicate()}
    """
    check_parts(scheme, shape, axis, parts, name=name, act_order=act_order)
    found = cuts(scheme, shape, axis, 0, shape[axis] // parts, act_order=act_order)
    second = found.get("second_scale")
    if second is not None and len(second.view) > 1:
        rule = "no placement of torch.distributed describes the second scales of a dq matrix that is cut along K"
        raise UnsupportedError(f"{name}: {scheme} {list(shape)}: {rule}; give each scale its own float32 with tritonq.shards.expand_scales")
    return {field: Replicate() if cut is None else Shard(cut.axis) for field, cut in found.items()}


def local_part(q: QTensor, mesh: DeviceMesh, axis: int, name: str = "weight") -> QTensor:
    """The part of ``q`` that this rank holds, in layout ``row``."""
    check_mesh(mesh)
    parts = mesh.size()
    check_parts(q.scheme, q.shape, axis, parts, name=name, act_order=q.column_order is not None)
    length = q.shape[axis] // parts
    return narrow(q, axis, mesh.get_local_rank() * length, length)


def check_mesh(mesh: DeviceMesh) -> DeviceMesh:
    if not isinstance(mesh, DeviceMesh):
        raise InvalidProblemError(f"the mesh must be a torch.distributed DeviceMesh, got {type(mesh).__name__}")
    if mesh.ndim != 1:
        raise InvalidProblemError(f"a weight is split over a mesh of one dimension, got {mesh.ndim}; take one of it, such as mesh['tp']")
    return mesh


def distribute_weight(q: QTensor, mesh: DeviceMesh, axis: int) -> tuple:
    """``q.operands`` with DTensors split along ``axis`` (0: N, 1: K): what ``torch.ops.tritonq.matmul`` takes.

    Every rank gives the same ``q``; nothing is sent.

    Raises:
        InvalidProblemError: an illegal split, a mesh of several dimensions, a layout other than ``row``.
    """
    if not isinstance(q, QTensor) or q.layout != "row":
        raise InvalidProblemError(f"distribute_weight takes a QTensor in layout row, got {q!r}"[:200] + "; relayout('row') makes it one")
    part = local_part(q, mesh, axis)
    placed = weight_placements(q.scheme, q.shape, axis, mesh.size(), act_order=q.column_order is not None)
    split = {field: as_dtensor(getattr(part, field), getattr(q, field).shape, mesh, placement) for field, placement in placed.items()
             if getattr(q, field) is not None}  # fmt: skip
    return operands(split, q.form)


def as_dtensor(local, shape, mesh: DeviceMesh, placement: Placement) -> DTensor:
    """A DTensor of global ``shape`` from this rank's contiguous part."""
    stride, size = [], 1
    for n in reversed(shape):
        stride.insert(0, size)
        size *= n
    return DTensor.from_local(local, mesh, [placement], run_check=False, shape=shape, stride=tuple(stride))
