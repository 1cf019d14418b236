"""Floor 7. Expert parallel: each rank holds some of the experts of a mixture, and the ranks' outputs are added."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle

from ..checkpoints.native import to_tensors
from ..errors import InvalidProblemError, UnsupportedError
from ..nn.experts import QuantExperts
from ..nn.weight import SUFFIXES
from ..qstack import QStack
from .linear import gathered
from .placements import as_dtensor, check_mesh


class ExpertParallel(ParallelStyle):
    """Split a :class:`tritonq.nn.QuantExperts` by experts: rank r of R keeps experts ``r * E / R`` to ``(r + 1) * E / R``.

    Every rank gives the same whole weights, tokens and routing; the sum over the ranks is the whole's result on all of them. Outputs are
    rounded to the tokens' dtype before they are added.

    Raises (from ``parallelize_module``):
        InvalidProblemError: E is no multiple of the number of ranks; names the numbers that are legal.
        UnsupportedError: a module that is not exactly a QuantExperts.
    """

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        if type(module) is not QuantExperts:
            raise UnsupportedError(f"ExpertParallel splits a QuantExperts, got {type(module).__name__}; quantize the model first")
        count, ranks = module.num_experts, check_mesh(device_mesh).size()
        if count % ranks:
            legal = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
            raise InvalidProblemError(f"{count} experts cannot be split into {ranks} equal parts. Legal numbers of parts: {legal}")
        module.mesh, module.num_experts = device_mesh, count // ranks
        module.__class__ = ShardedExperts
        first = device_mesh.get_local_rank() * module.num_experts
        for name, stack in module.quantized.items():
            mine = {field: tensor[first : first + module.num_experts].clone() for field, tensor in _tensors(stack).items()}
            module._hold(name, replace(stack, shape=(module.num_experts, *stack.shape[1:]), **mine))
        return module


class ShardedExperts(QuantExperts):
    """What :class:`ExpertParallel` makes of :class:`tritonq.nn.QuantExperts`.

    ``state_dict`` gives the whole weights as DTensors, ``Shard(0)`` over the experts; loading takes those, and whole plain tensors.
    """

    mesh: DeviceMesh

    @property
    def qtensor(self):
        raise UnsupportedError(f"these experts are one of {self.mesh.size()} parts; tritonq.distributed.gather brings the whole together")

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        mine = top_k_index - self.mesh.get_local_rank() * self.num_experts
        mine = torch.where((mine >= 0) & (mine < self.num_experts), mine, self.num_experts)  # the last: none of these
        x, shares = (DTensor.from_local(t, self.mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])
                     for t in (hidden_states, top_k_weights))  # fmt: skip
        y = DTensor.from_local(super().forward(x, mine, shares), self.mesh, [Partial()], run_check=False)
        return y.redistribute(placements=[Replicate()]).to_local()

    def gather(self, name: str) -> QStack:
        """The experts of all ranks; all ranks call it together."""
        with torch.no_grad():
            whole = {field: gathered(self._dtensor(tensor)) for field, tensor in _tensors(self.quantized[name].relayout("row")).items()}
        stack = self.quantized[name]
        return replace(stack, shape=(len(stack) * self.mesh.size(), *stack.shape[1:]), layout="row", **whole)

    def _dtensor(self, tensor: torch.Tensor) -> DTensor:
        return as_dtensor(tensor, (tensor.shape[0] * self.mesh.size(), *tensor.shape[1:]), self.mesh, Shard(0))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, stack in self.quantized.items():
            destination.update({key: self._dtensor(t) for key, t in to_tensors(prefix + name, stack.relayout("row")).items()})

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        mine, first = dict(state_dict), self.mesh.get_local_rank() * self.num_experts
        for key in [prefix + name + suffix for name in self.quantized for suffix in SUFFIXES.values()]:
            tensor = mine.get(key)
            if isinstance(tensor, DTensor):
                mine[key] = tensor.redistribute(self.mesh, [Shard(0)]).to_local()
            elif tensor is not None:
                mine[key] = tensor.detach()[first : first + self.num_experts]
        super()._load_from_state_dict(mine, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, part={self.mesh.get_local_rank()} of {self.mesh.size()}"


def _tensors(stack: QStack) -> dict[str, torch.Tensor]:
    return {field: tensor for field in SUFFIXES if (tensor := getattr(stack, field, None)) is not None}
