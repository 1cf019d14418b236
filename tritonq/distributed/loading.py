"""Floor 7. A saved checkpoint onto several devices: each rank reads what it keeps, and nothing else."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from ..checkpoints import open as open_checkpoint
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.family import Record
from ..checkpoints.native import FAMILY, from_tensors
from ..errors import CheckpointError, InvalidProblemError, TritonQError
from ..nn.convert import decode_what_is_read, parameters_of, places
from ..nn.experts import WEIGHTS, QuantExperts, is_experts
from ..nn.modules import QuantEmbedding, QuantLinear
from ..nn.weight import SUFFIXES, QuantizedModule, QuantizedWeight
from ..qstack import QStack
from ..qtensor import QTensor
from ..scheme import Scheme
from ..shards import Cut, concatenate, cuts, expand_scales, narrow
from .experts import ShardedExperts
from .linear import ShardedLinear
from .placements import as_dtensor, check_mesh

# The weights of one expert, as checkpoints store them apart, that make its rows in each fused weight.
_STORED_APART = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def load_sharded(model: torch.nn.Module, path: str | Path, mesh: DeviceMesh, plan: dict[str, ParallelStyle]) -> torch.nn.Module:
    """Read a checkpoint into ``model``, split by ``plan``: every rank reads only the bytes that it keeps, weight by weight.

    Args:
        model: on the meta device, with ordinary modules: those whose weight the checkpoint holds quantized are replaced, in place. So are
            fused experts, also where the checkpoint stores each expert by itself (``experts.0.gate_proj``).
        path: of a checkpoint that ``tritonq quantize``, :func:`tritonq.save` or ``save_pretrained`` wrote, or of another family that
            :func:`tritonq.checkpoints.open` knows (then each weight is read whole and cut, one at a time).
        mesh: of one dimension; tensors go to its device type.
        plan: as for ``torch.distributed.tensor.parallel.parallelize_module``: :class:`ColwiseParallel` and :class:`RowwiseParallel` of
            tritonq for quantized layers, torch's own styles for others. What it does not name is kept whole by every rank.

    Returns:
        ``model``.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or held by a module that cannot hold it quantized.
        InvalidProblemError: an illegal split (names the legal ones), or a buffer that no checkpoint holds is still on the meta device.

    Example:
        >>> with torch.device("meta"): model = Model(config)  # doctest: +SKIP
        >>> load_sharded(model, "model-nf4", mesh, {"*.up": ColwiseParallel(), "*.down": RowwiseParallel()})  # doctest: +SKIP
    """
    checkpoint, device = open_checkpoint(path), torch.device(check_mesh(mesh).device_type)
    stored = _stored_names(model, checkpoint)
    _put_quantized(model, checkpoint, stored)
    parallelize_module(model, mesh, plan)
    used: set[str] = set()
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by the identity of the old tensor, which stays alive meanwhile
    for module, (path_, *others) in places(model).items():
        prefix = f"{path_}." if path_ else ""
        used |= _names_of(module, prefix, checkpoint)
        for other in others:  # further places of the same module, which a file may name too
            used |= _names_of(module, f"{other}.", checkpoint) | {f"{other}.{own}" for own in (*module._parameters, *module._buffers)}
        for name in module.quantized if isinstance(module, QuantizedModule) else ():
            try:
                read = _experts if isinstance(module, QuantExperts) else _weight
                module._hold(name, read(module, checkpoint, prefix + name).to(device))
            except TritonQError as error:
                raise CheckpointError(f"{checkpoint.source.path}: weight {prefix + name!r}: {error}") from error
        for wanted in _tensors_of(module, prefix, stored, checkpoint):
            used.add(wanted.stored)
            if id(wanted.tensor) not in made:
                made[id(wanted.tensor)] = wanted.tensor, _filled(wanted, checkpoint, device)
            setattr(module, wanted.own, made[id(wanted.tensor)][1])
    decode_what_is_read(model)
    left = [name for name in checkpoint.names() if name not in used]
    if left:
        raise CheckpointError(f"{checkpoint.source.path}: holds tensors that the model has no place for: {_some(left)}")
    on_meta = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if on_meta:
        raise InvalidProblemError(f"no checkpoint holds these buffers, and they are on the meta device: {_some(on_meta)}; "
                                  "make their modules on a real device before load_sharded")  # fmt: skip
    return model


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A plain parameter or buffer: its name in its module and in the checkpoint."""

    own: str
    stored: str
    tensor: torch.Tensor


def _stored_names(model: torch.nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Name of each parameter -> its name in the checkpoint; of tied ones only one is stored."""
    names: dict[int, list[str]] = {}
    for one in parameters_of(model):
        names.setdefault(id(one.tensor), []).append(one.name)
    first = {same: next((name for name in tied if name in checkpoint), tied[0]) for same, tied in names.items()}
    return {name: name if name in checkpoint else first[same] for same, tied in names.items() for name in tied}


def _names_of(module: torch.nn.Module, prefix: str, checkpoint: Checkpoint) -> set[str]:
    """Names in the checkpoint of a module's quantized weights."""
    if isinstance(module, QuantExperts):
        return {name for name in checkpoint.records if name.startswith(prefix)}
    return {prefix + name for name in module.quantized} if isinstance(module, QuantizedModule) else set()


def _put_quantized(model: torch.nn.Module, checkpoint: Checkpoint, stored: dict[str, str]) -> None:
    """Quantized modules, still empty, for the weights that the checkpoint holds quantized."""
    where, experts = checkpoint.source.path, {}
    for path, module in list(model.named_modules()):
        if is_experts(module) and f"{path}.0.gate_proj.weight" in checkpoint.records:
            _put_experts(model, path, module, [checkpoint.records[f"{path}.0.{names[0]}.weight"] for names in _STORED_APART.values()])
    for one in parameters_of(model):
        record = checkpoint.records.get(stored[one.name])
        if record is None:
            continue
        if not one.is_weight or len(record.shape) != 2 + is_experts(one.module):
            raise CheckpointError(f"{where}: holds {one.name} quantized ({record.scheme} {list(record.shape)}), and "
                                  f"{type(one.module).__name__} cannot; quantize the model with --exclude for it")  # fmt: skip
        if tuple(one.tensor.shape) != record.shape:
            raise CheckpointError(_shapes(checkpoint, one.name, record.shape, one.tensor.shape))
        if stored[one.name] != one.name:
            raise CheckpointError(f"{one.name} is tied to {stored[one.name]}, which is stored quantized; untie them before load_sharded")
        if is_experts(one.module):
            experts.setdefault(one.path, {})[one.own_name] = one
            continue
        act_order = any(entry.name == f"{one.name}_column_order" for entry in checkpoint.entries(one.name))
        q = QTensor.on_meta(Scheme.parse(record.scheme), record.shape, record.dtype, act_order=act_order)
        new = QuantLinear(q, one.module.bias) if type(one.module) is torch.nn.Linear else QuantEmbedding(q)
        one.replace(model, new.train(one.module.training))
    for path, both in experts.items():
        if len(both) < len(WEIGHTS):
            raise CheckpointError(f"{where}: of the experts {path} only {', '.join(both)} is quantized; both must be, or none")
        _put_experts(model, path, both[WEIGHTS[0]].module, [checkpoint.records[both[name].name] for name in WEIGHTS])


def _put_experts(model: torch.nn.Module, path: str, module: torch.nn.Module, records: list[Record]) -> None:
    stacks = [QStack.on_meta(Scheme.parse(record.scheme), tuple(getattr(module, name).shape), record.dtype)
              for name, record in zip(WEIGHTS, records, strict=True)]  # fmt: skip
    model.set_submodule(path, QuantExperts.from_experts(module, *stacks))


def _experts(module: QuantExperts, checkpoint: Checkpoint, name: str) -> QStack:
    """The experts that this rank keeps, stored together or, as the models' own checkpoints have it, one by one."""
    path, _, own = name.rpartition(".")
    count, rows = module.num_experts, module.quantized[own].shape[1]
    first = module.mesh.get_local_rank() * count if isinstance(module, ShardedExperts) else 0
    if name in checkpoint.records:
        return QStack.of(_part(checkpoint, name, 0, first * rows, count * rows), count)
    stored = [f"{path}.{e}.{each}.weight" for e in range(first, first + count) for each in _STORED_APART[own]]
    if missing := [each for each in stored if each not in checkpoint.records]:
        raise CheckpointError(f"lacks {_some(missing)} quantized")
    return QStack.of(concatenate([checkpoint[each] for each in stored]), count)


def _weight(module: QuantizedWeight, checkpoint: Checkpoint, name: str) -> QTensor:
    """The weight, or this rank's part of it."""
    if not isinstance(module, ShardedLinear):
        return checkpoint[name]
    split = module.sharding
    return _part(checkpoint, name, split.axis, split.start, split.length, split.expand_scales)


def _part(checkpoint: Checkpoint, name: str, axis: int, start: int, length: int, expand: bool = False) -> QTensor:
    """Rows or columns of a stored weight, seen as a matrix; no other bytes are read where the family stores it as it is."""
    record = checkpoint.records[name]
    if checkpoint.family != FAMILY or expand:
        whole = checkpoint[name]
        return narrow(expand_scales(whole) if expand else whole, axis, start, length)
    found = {entry.name for entry in checkpoint.entries(name)}
    shape, scheme = record.matrix_shape, Scheme.parse(record.scheme)
    tensors = {}
    for field, cut in cuts(scheme, shape, axis, start, length, act_order=f"{name}_column_order" in found).items():
        stored = name + SUFFIXES[field]
        if stored in found:
            tensors[stored] = _read(checkpoint, stored, cut)
    local = tuple(length if i == axis else n for i, n in enumerate(shape))
    return from_tensors(name, replace(record, shape=local), tensors)


def _tensors_of(module: torch.nn.Module, prefix: str, stored: dict[str, str], checkpoint: Checkpoint) -> list[_Wanted]:
    """The parameters of a module and the buffers that a checkpoint holds; those of a quantized weight are another's matter."""
    own = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    quantized = module.quantized if isinstance(module, QuantizedModule) else ()
    skipped = {name + suffix for name in quantized for suffix in SUFFIXES.values()} | module._non_persistent_buffers_set
    own |= {name: tensor for name, tensor in module._buffers.items() if tensor is not None and name not in skipped}
    found = [_Wanted(own=name, stored=stored.get(prefix + name, prefix + name), tensor=tensor) for name, tensor in own.items()]
    missing = [one.stored for one in found if one.stored not in checkpoint]
    if missing:
        raise CheckpointError(f"{checkpoint.source.path}: lacks {_some(missing)}, which the model needs")
    return found


def _filled(wanted: _Wanted, checkpoint: Checkpoint, device: torch.device) -> torch.Tensor:
    tensor, entry = wanted.tensor, checkpoint.source.entry(wanted.stored)
    if entry.shape != tuple(tensor.shape):
        raise CheckpointError(_shapes(checkpoint, wanted.stored, entry.shape, tensor.shape))
    if not isinstance(tensor, DTensor):
        value = _read(checkpoint, wanted.stored, None).to(device)
    else:
        mesh, placement, cut = tensor.device_mesh, tensor.placements[0], None
        if isinstance(placement, Shard):  # as distribute_tensor splits: the last parts may be short or empty
            size, part = entry.shape[placement.dim], -(-entry.shape[placement.dim] // mesh.size())
            start = min(part * mesh.get_local_rank(), size)
            cut = Cut(entry.shape, placement.dim, start, min(part, size - start))
        value = as_dtensor(_read(checkpoint, wanted.stored, cut).to(device), entry.shape, mesh, placement)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def _read(checkpoint: Checkpoint, stored: str, cut: Cut | None) -> torch.Tensor:
    file = checkpoint.source.owner[stored]
    return file.read(stored) if cut is None else file.read_cut(stored, cut)


def _shapes(checkpoint: Checkpoint, name: str, got, wanted) -> str:
    return f"{checkpoint.source.path}: {name} has shape {list(got)}, the model needs {list(wanted)}"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
