"""Floor 7. A QuantLinear of which this rank holds one part."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from ..checkpoints.family import Record
from ..checkpoints.native import from_tensors
from ..errors import UnsupportedError
from ..nn.modules import QuantLinear
from ..nn.weight import SUFFIXES, QuantizedModule
from ..ops import matmul
from ..qstack import QStack
from ..qtensor import QTensor, as_bytes
from ..shards import cuts, expand_scales
from .placements import as_dtensor, local_part, weight_placements

_is_compiling = torch.compiler.is_compiling


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a layer is split: along which axis over which mesh, the whole weight's shape, and where each of its tensors goes."""

    mesh: DeviceMesh
    axis: int
    shape: tuple[int, int]
    placements: dict[str, Placement]
    input_layouts: tuple[Placement, ...]
    output_layouts: tuple[Placement, ...]
    use_local_output: bool
    expand_scales: bool

    @property
    def start(self) -> int:
        return self.mesh.get_local_rank() * self.length

    @property
    def length(self) -> int:
        return self.shape[self.axis] // self.mesh.size()


def shard_(module: QuantLinear, mesh: DeviceMesh, style) -> QuantLinear:
    """Make ``module`` keep this rank's part alone. In place, because ``parallelize_module`` has no use for another module."""
    q = module.qtensor
    if isinstance(style.output_layouts[0], Partial) and (style.axis == 0 or module.bias is not None):
        raise UnsupportedError("output_layouts=Partial() is what RowwiseParallel gives of a layer without bias; take Replicate() or Shard")
    whole = expand_scales(q) if style.expand_scales else q
    scheme = f"QuantLinear(in_features={q.shape[1]}, out_features={q.shape[0]})"
    part = local_part(whole, mesh, style.axis, scheme)
    placed = weight_placements(whole.scheme, q.shape, style.axis, mesh.size(), act_order=q.column_order is not None, name=scheme)
    module.sharding = Sharding(
        mesh=mesh, axis=style.axis, shape=q.shape, placements=placed, input_layouts=style.input_layouts,
        output_layouts=style.output_layouts, use_local_output=style.use_local_output, expand_scales=style.expand_scales)  # fmt: skip
    if module.bias is not None:
        split = Shard(0) if style.axis == 0 else Replicate()
        bias = distribute_tensor(module.bias.detach(), mesh, [split], src_data_rank=None)
        module.bias = torch.nn.Parameter(bias, requires_grad=module.bias.requires_grad)
    module.__class__ = ShardedLinear
    module._hold("weight", part)
    return module


class ShardedLinear(QuantLinear):
    """What :class:`ColwiseParallel` and :class:`RowwiseParallel` make of a :class:`tritonq.nn.QuantLinear`.

    The buffers hold this rank's part in the layout of the device's fastest kernel, and the forward runs on them. ``state_dict`` gives the
    whole weight as DTensors in layout ``row`` (``Shard(0)``, ``Shard(1)``, or ``Replicate()`` for scales that every part needs), so
    ``torch.distributed.checkpoint`` saves it and loads it onto any number of ranks; ``load_state_dict`` takes those, and whole plain
    tensors. ``in_features`` and ``out_features`` are those of the whole; the bias is a DTensor parameter.
    """

    sharding: Sharding

    @property
    def part(self) -> QTensor:
        """What this rank holds."""
        return self._current("weight")

    @property
    def qtensor(self) -> QTensor:
        whole = "tritonq.distributed.gather brings the whole together, .part is this rank's"
        raise UnsupportedError(f"this layer holds one of {self.sharding.mesh.size()} parts of its weight; {whole}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split, row = self.sharding, self.sharding.axis == 1
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, split.mesh, split.input_layouts, run_check=False)
        x = x.redistribute(placements=[Shard(x.dim() - 1) if row else Replicate()])
        # each rank's share of N gives its own share of the gradient of x
        local = x.to_local(grad_placements=[Shard(x.dim() - 1) if row else Partial()])
        bias = None if row or self.bias is None else self.bias.to_local()
        if _is_compiling() or self._is_swapped():
            y = torch.ops.tritonq.matmul(local, *self._operands(), bias)
        else:
            y = matmul(local, self._q, bias)
        out = DTensor.from_local(y, split.mesh, [Partial() if row else Shard(y.dim() - 1)], run_check=False)
        if row and self.bias is not None:  # added to the sum, so once
            out = out.redistribute(placements=split.output_layouts) + self.bias
        else:
            out = out.redistribute(placements=split.output_layouts)
        return out.to_local() if split.use_local_output else out

    def to_linear(self, dtype: torch.dtype | None = None) -> torch.nn.Linear:
        """The rank's part is no Linear of these features; :func:`gather` gives the whole."""
        return self.qtensor  # refuses

    def gather(self, name: str = "weight") -> QTensor:
        """The whole weight, on every rank; all ranks of the mesh must call it together."""
        with torch.no_grad():
            whole = {name: gathered(tensor) for name, tensor in self._dtensors(name).items()}
        return from_tensors(name, self._record(), whole)

    def _record(self) -> Record:
        return replace(Record.of(self._q), shape=self.sharding.shape)

    def _dtensors(self, name: str) -> dict[str, DTensor]:
        """The whole weight's tensors by their names in a file."""
        split, row = self.sharding, self.part.relayout("row")
        found = {}
        for field, placement in split.placements.items():
            local = getattr(row, field)
            if local is not None:
                times = split.mesh.size() if isinstance(placement, Shard) else 1
                whole = tuple(n * times if isinstance(placement, Shard) and i == placement.dim else n for i, n in enumerate(local.shape))
                found[name + SUFFIXES[field]] = as_dtensor(local, whole, split.mesh, placement)
        return found

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(self._dtensors(prefix + "weight"))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        split, mine = self.sharding, dict(state_dict)
        taken = cuts(self._q.scheme, split.shape, split.axis, split.start, split.length, act_order=self._q.column_order is not None)
        for field, cut in taken.items():
            key = f"{prefix}weight{SUFFIXES[field]}"
            if key not in mine:
                continue
            try:
                mine[key] = _local(mine[key], cut, split.mesh, split.placements[field])
            except (RuntimeError, ValueError) as error:
                errors.append(f"{key}: is not that tensor of a whole {self._q.scheme} {list(split.shape)}: {error}")
                return
        bias = mine.get(prefix + "bias")
        if self.bias is not None and bias is not None and not isinstance(bias, DTensor) and bias.shape == self.bias.shape:
            mine[prefix + "bias"] = distribute_tensor(bias.detach(), split.mesh, self.bias.placements, src_data_rank=None)
        super()._load_from_state_dict(mine, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        split = self.sharding
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        part = f"part={split.mesh.get_local_rank()} of {split.mesh.size()} along {'NK'[split.axis]}"
        return f"{sizes}, scheme={self.scheme}, layout={self._q.layout}, {part}"


def _local(tensor: torch.Tensor, cut, mesh: DeviceMesh, placement: Placement) -> torch.Tensor:
    """This rank's part of a tensor of a state dict: a DTensor, or a whole plain one."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():
            return tensor.redistribute(mesh, [placement]).to_local()
    return tensor if cut is None else cut.take(tensor.detach())


def gathered(tensor: DTensor) -> torch.Tensor:
    """The whole tensor; 8-bit floats travel as bytes, which every backend sends."""
    sent = as_dtensor(as_bytes(tensor.to_local()), tensor.shape, tensor.device_mesh, tensor.placements[0])
    return sent.full_tensor().view(tensor.dtype)


def gather(model: torch.nn.Module) -> dict[str, QTensor | QStack | torch.Tensor]:
    """The whole model on every rank as ``{name: QTensor | QStack | Tensor}``, for :func:`tritonq.save`; all ranks call it together.

    Example:
        >>> tensors = gather(model)  # doctest: +SKIP
        >>> if torch.distributed.get_rank() == 0: tritonq.save(tensors, "model.safetensors")  # doctest: +SKIP
    """
    named = dict(model.state_dict())
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizedModule):
            for own, q in module.quantized.items():
                name = f"{path}.{own}" if path else own
                for suffix in SUFFIXES.values():
                    named.pop(name + suffix, None)
                named[name] = module.gather(own) if hasattr(module, "gather") else q
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in named.items()}
