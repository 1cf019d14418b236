"""Floor 7. ``torch.ops.tritonq.matmul`` and ``matmul_dx`` on DTensors, for those who hold a weight's tensors as DTensors themselves.

An operator's ``form`` states N and K of the whole weight, and a rank's part has a form of its own. The rules of
``torch.distributed.tensor.experimental.register_sharding`` choose placements and pass every other argument on as it is, so the local call
would be told the whole's sizes; ``torch.library.register_torch_dispatch`` hands over the DTensors and leaves the local call to us.

==================  ===================  ====================
weight              x                    y
==================  ===================  ====================
``Replicate()``     as it lies but not   as x
                    split along K
``Shard(0)``, N     ``Replicate()``      ``Shard(-1)``
``Shard(1)``, K     ``Shard(-1)``        ``Partial()``
==================  ===================  ====================

x is brought into that form; a weight is not moved, and one of plain tensors, which every rank holds whole, counts as ``Replicate()``.
For ``matmul_dx`` the columns of N and K are exchanged.
"""
from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from ..errors import InvalidProblemError, UnsupportedError
from ..qtensor import expected_flat, flat_operands, form_of, operands, parse_form
from .placements import weight_placements

_ops = torch.ops.tritonq


def _matmul_rule(cls, func, types, args, kwargs):
    return _matmul(*args, **(kwargs or {}))


def _matmul(x, packed, scale, zero_point, others, form, bias=None, activation=None, residual=None):
    mesh, last = _mesh(packed, x, bias, residual), x.dim() - 1
    splits, weight = _weight(flat_operands(packed, scale, zero_point, others), form, mesh)
    x = _dtensor(x, mesh, "x")
    if activation == "swiglu" and 0 in splits:
        raise UnsupportedError("swiglu of a weight split along N would pair gate and up of different rows; apply it to the whole y")
    if 1 in splits and (activation is not None or residual is not None):
        raise UnsupportedError("a weight split along K gives partial sums; apply activation and residual after they are added")
    taken, given = _features(x, splits, contracted=1, last=last)
    taken = taken.to_local()
    if residual is not None:
        residual = _dtensor(residual, mesh, "residual").redistribute(placements=given).to_local()
    along_n = [Shard(0) if split == 0 else Replicate() for split in splits]
    bias = None if bias is None else _dtensor(bias, mesh, "bias")
    added = None if bias is None or 1 in splits else bias.redistribute(placements=along_n).to_local()
    y = _wrap(_ops.matmul(taken, *weight, added, activation, residual), mesh, given)
    if bias is None or 1 not in splits:
        return y
    summed = [Replicate() if isinstance(placement, Partial) else placement for placement in given]
    return y.redistribute(placements=summed) + bias.redistribute(placements=along_n)  # to the sum, so once


def _matmul_dx_rule(cls, func, types, args, kwargs):
    return _matmul_dx(*args, **(kwargs or {}))


def _matmul_dx(dy, packed, scale, zero_point, others, form):
    mesh = _mesh(packed, dy)
    splits, weight = _weight(flat_operands(packed, scale, zero_point, others), form, mesh)
    taken, given = _features(_dtensor(dy, mesh, "dy"), splits, contracted=0, last=dy.dim() - 1)
    return _wrap(_ops.matmul_dx(taken.to_local(), *weight), mesh, given)


def _features(x: DTensor, splits: list[int | None], contracted: int, last: int) -> tuple[DTensor, list]:
    """``x`` placed for a weight that is split so, and the placements of the product, in which axis ``contracted`` vanishes."""
    wanted, given = [], []
    for split, lies in zip(splits, x.placements, strict=True):
        if split is None:
            keeps = isinstance(lies, Shard) and lies.dim != last
            wanted.append(lies if keeps else Replicate())
            given.append(lies if keeps else Replicate())
        elif split == contracted:
            wanted.append(Shard(last))
            given.append(Partial())
        else:
            wanted.append(Replicate())
            given.append(Shard(last))
    return x.redistribute(placements=wanted), given


def _mesh(*tensors):
    """That of the first DTensor: the weight's, or of what a plain weight, which every rank holds whole, is multiplied with."""
    return next(tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor))


def _weight(weight: list[torch.Tensor], form: str, mesh) -> tuple[list[int | None], tuple]:
    """(axis split along each mesh dimension, this rank's operands)."""
    scheme, shape, dtype, layout, act_order = parse_form(form)
    if layout != "row":
        raise UnsupportedError(f"the DTensors of a weight are those of layout row, got a form {form!r}; relayout('row') before it is split")
    names = list(expected_flat(scheme, shape, dtype, "row")) + ["column_order"] * act_order
    if len(weight) != len(names):
        raise InvalidProblemError(f"a weight of form {form!r} has the tensors {', '.join(names)}, got {len(weight)}")
    if not any(isinstance(tensor, DTensor) for tensor in weight):
        weight = [DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False) for tensor in weight]
    weight = [_dtensor(tensor, mesh, name) for name, tensor in zip(names, weight, strict=True)]
    splits = [p.dim if isinstance(p, Shard) else None for p in weight[0].placements]
    if len([split for split in splits if split is not None]) > 1:
        raise UnsupportedError(f"a weight is split along one dimension of a mesh, got {weight[0].placements}")
    local_shape = shape
    for d, split in enumerate(splits):
        placed = dict.fromkeys(names, Replicate())
        if split is not None:
            placed = weight_placements(scheme, shape, split, mesh.size(d), act_order=act_order)
            local_shape = tuple(n // mesh.size(d) if i == split else n for i, n in enumerate(shape))
        for name, tensor in zip(names, weight, strict=True):
            if tensor.placements[d] != placed[name]:
                raise InvalidProblemError(f"{name} of {form!r} must be {placed[name]} where packed is {weight[0].placements[d]}, "
                                          f"got {tensor.placements[d]}; tritonq.distributed.distribute_weight places it")  # fmt: skip
    local_form = form_of(scheme, local_shape, dtype, layout, act_order=act_order)
    return splits, operands({name: tensor.to_local() for name, tensor in zip(names, weight, strict=True)}, local_form)


def _dtensor(tensor, mesh, name: str) -> DTensor:
    if not isinstance(tensor, DTensor) or tensor.device_mesh != mesh:
        got = f"one on {tensor.device_mesh}" if isinstance(tensor, DTensor) else type(tensor).__name__
        raise InvalidProblemError(f"{name} must be a DTensor on the mesh of the weight like the other arguments, got {got}")
    return tensor.detach()  # autograd is above; before 2.13 torch cannot move a DTensor that requires grad below it


def _wrap(local: torch.Tensor, mesh, placements) -> DTensor:
    return DTensor.from_local(local, mesh, placements, run_check=False)


torch.library.register_torch_dispatch("tritonq::matmul", DTensor, _matmul_rule)
torch.library.register_torch_dispatch("tritonq::matmul_dx", DTensor, _matmul_dx_rule)
