"""Floor 7. What a serving engine needs of a quantized checkpoint, without the engine: adapters for vLLM and SGLang are thin around this.

An engine builds a layer from a rank's share of one or several weights (Q, K and V in one), hands out parameters of the shapes that
:meth:`Layer.tensors` gives, fills them from a stream of named tensors (:meth:`ServedCheckpoint.stream`), and asks for the matrix
(:meth:`Layer.assemble`). Weights are held in tritonq's own form whatever family the checkpoint is of, and never quantized again. ``dq``
scales are expanded to float32 while they are read, because neither fused layers nor tensor parallelism can share them.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import torch_ops  # noqa: F401 (defines torch.ops.tritonq)
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.checkpoint import open as open_checkpoint
from ..checkpoints.family import Record
from ..checkpoints.native import FAMILY, from_tensors, to_tensors
from ..errors import CheckpointError, UnsupportedError
from ..nn.weight import SUFFIXES, best_layout
from ..qtensor import QTensor, expected_flat, operands
from ..scheme import Scheme
from ..shards import check_parts, cuts, expand_scales, expanded_scheme, step

# Fields of a QTensor, in its order -> parameters of a layer.
PARAMETERS = {field: f"weight{suffix}" for field, suffix in SUFFIXES.items()}
_MADE = "_tritonq_made"  # on tensors that a stream put together
# What engines call layers that they fuse from several, where a model's class does not say it.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One parameter of a layer: a rank's share of a stored tensor.

    ``output_axis`` and ``input_axis`` are the axes along which the shares of N and of K lie (0 and 1); None: every rank and every part has
    the whole tensor. ``rows``: rows of the matrix for one row of this tensor (more than 1 for the scales of 2-D blocks).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    output_axis: int | None
    input_axis: int | None
    rows: int


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer's quantized weight: one or several weights of a checkpoint under each other, all of one scheme."""

    name: str
    scheme: Scheme
    dtype: torch.dtype
    sizes: dict[str, tuple[int, int]]  # of each whole weight, by name

    def tensors(self, rows: Sequence[int], columns: int) -> dict[str, TensorSpec]:
        """The parameters for a rank's share: ``rows`` of each weight in turn, ``columns`` of all; named ``weight``, ``weight_scale``, ...

        Raises:
            InvalidProblemError: a share that cuts a group, a block or a byte; names the weight and the legal numbers of parts.
            UnsupportedError: weights that one layer cannot hold together, because each has a scale for all of it.
        """
        for name, shape in self.sizes.items():
            if shape[1] != columns:
                check_parts(self.scheme, shape, 1, max(2, round(shape[1] / max(columns, 1))), name=name)
        names = list(self.sizes) if len(self.sizes) == len(rows) else list(self.sizes) * len(rows)  # several, or one that was fused before
        for name, share in zip(names, rows):
            shape, every = self.sizes[name], step(self.scheme, self.sizes[name], 0)
            if share < shape[0] and (every is None or share % every):
                check_parts(self.scheme, shape, 0, max(2, round(shape[0] / max(share, 1))), name=name)
        shape, whole = (sum(rows), columns), next(iter(self.sizes.values()))
        cut_n, cut_k = (cuts(self.scheme, whole, axis, 0, whole[axis]) for axis in (0, 1))
        per_row = self.scheme.group_shape(*whole)[0] if self.scheme.has_scale else 1
        specs = {}
        for field, (size, dtype) in expected_flat(self.scheme, shape, self.dtype, "row").items():
            spec = TensorSpec(shape=size, dtype=dtype, output_axis=None if cut_n[field] is None else 0,
                              input_axis=None if cut_k[field] is None else 1, rows=1 if field == "packed" else per_row)  # fmt: skip
            if spec.output_axis is None and len(self.sizes) > 1:
                rule = f"{self.scheme} has one {PARAMETERS[field]} for a whole weight, and these share one layer"
                raise UnsupportedError(f"{self.name}: {', '.join(self.sizes)}: {rule}; quantize them with a group size or 'channel'")
            specs[PARAMETERS[field]] = spec
        return specs

    def assemble(self, tensors: dict[str, torch.Tensor], rows: int, columns: int) -> QTensor:
        """The matrix of loaded parameters, in the layout of the fastest kernel on their device."""
        record = Record(scheme=str(self.scheme), shape=(rows, columns), dtype=self.dtype)
        q = from_tensors("weight", record, tensors)
        return q.relayout(best_layout(q.scheme, q.dtype, q.device))


class ServedCheckpoint:
    """A checkpoint as an engine asks for it; can be pickled, since engines hand it to their workers.

    Attributes:
        records: of every quantized weight by the engine's name of it, with the scheme under which it is held.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.records = {name: replace(record, scheme=str(expanded_scheme(Scheme.parse(record.scheme))))
                        for name, record in checkpoint.records.items()}  # fmt: skip
        if not self.records:
            raise CheckpointError(f"{checkpoint.source.path}: holds no quantized weight that is known here")

    @classmethod
    def open(cls, path: str | Path) -> ServedCheckpoint:
        return cls(open_checkpoint(path))

    def rename(self, name_of: Callable[[str], str | None]) -> None:
        """Call weights by an engine's names from now on; None: the engine drops it."""
        self.records = {new: record for name, record in self.records.items() if (new := name_of(name)) is not None}

    def layer(self, name: str, fused: Mapping[str, Sequence[str]] | None = None) -> Layer | None:
        """The quantized weight of module ``name``; None where it was kept.

        ``fused``: last part of a module's name -> those of the modules that an engine fused into it; what it leaves out is as usual
        (``qkv_proj``, ``gate_up_proj``). A weight that is stored under the module's own name comes first.

        Raises:
            UnsupportedError: some parts are quantized and some are not, or under different schemes.
        """
        path, _, own = name.rpartition(".")
        siblings = {**FUSED, **(fused or {})}.get(own, ()) if f"{name}.weight" not in self.records else ()
        names = [f"{path}.{part}" if path else part for part in siblings] or [name]
        found = {part: self.records.get(f"{part}.weight") for part in names}
        if not any(found.values()):
            return None
        held = {part: (record.scheme, record.dtype) if record else ("not quantized", None) for part, record in found.items()}
        if len(set(held.values())) > 1:
            said = ", ".join(f"{part}: {scheme}{f' of {dtype}' if dtype else ''}" for part, (scheme, dtype) in held.items())
            raise UnsupportedError(f"{name} is one layer of {said}; quantize all of its parts under one scheme")
        record = found[names[0]]
        sizes = {f"{part}.weight": one.matrix_shape for part, one in found.items()}
        return Layer(name=name, scheme=Scheme.parse(record.scheme), dtype=record.dtype, sizes=sizes)

    def quantized_below(self, name: str) -> list[str]:
        """Quantized weights of ``name`` and of the modules in it."""
        return [weight for weight in self.records if weight.startswith(f"{name}.")]

    def stream(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """A checkpoint's tensors in any order, by their stored names, as tensors that layers hold; others pass as they are.

        A weight that has to be put together first waits until all of its tensors have come. What this gave passes when it comes again:
        an engine may send tensors through once for a model and once for the model in it.

        Raises:
            CheckpointError: tensors that do not fit together, or a weight of which some never came.
        """
        checkpoint = self.checkpoint
        put_together = [name for name, record in checkpoint.records.items()
                        if checkpoint.family != FAMILY or "dq" in Scheme.parse(record.scheme).options]  # fmt: skip
        weight_of = {stored: name for name in put_together for stored in checkpoint.stored_names(name)}
        waiting: dict[str, dict[str, torch.Tensor]] = {}
        for stored, tensor in weights:
            name = weight_of.get(stored)
            if name is None or hasattr(tensor, _MADE):
                yield stored, tensor
                continue
            tensors = waiting.setdefault(name, {})
            tensors[stored] = tensor
            if len(tensors) == len(checkpoint.stored_names(name)):
                for own, made in to_tensors(name, expand_scales(checkpoint.assemble(name, waiting.pop(name)))).items():
                    setattr(made, _MADE, True)
                    yield own, made
        for name, tensors in waiting.items():
            lacking = [stored for stored in checkpoint.stored_names(name) if stored not in tensors]
            raise CheckpointError(f"{checkpoint.source.path}: weight {name!r} came without {', '.join(lacking)}")


def hold(module: torch.nn.Module, layer: Layer, specs: dict[str, TensorSpec], shape: tuple[int, int]) -> None:
    """Put the matrix in place of the parameters that were loaded into ``module``: plain parameters in the layout of the fastest kernel."""
    if hasattr(module, "tritonq_weight"):  # engines may finish a layer twice
        return
    q = layer.assemble({name: getattr(module, name).data.reshape(spec.shape) for name, spec in specs.items()}, *shape)
    for name in specs:
        delattr(module, name)
    held = {field: torch.nn.Parameter(tensor, requires_grad=False) for field in PARAMETERS if (tensor := getattr(q, field)) is not None}
    for field, parameter in held.items():
        module.register_parameter(PARAMETERS[field], parameter)
    # The operator finds what was prepared for a weight by its very tensors, as long as the weight is alive.
    module.tritonq_weight, module.tritonq_form = replace(q, **held), q.form
    module.tritonq_names = {field: PARAMETERS[field] for field in held}


def product(module: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x @ w_hat.T + bias`` with the weight that :func:`hold` put into ``module``; one operator in a compiled graph."""
    weight = operands({field: getattr(module, name) for field, name in module.tritonq_names.items()}, module.tritonq_form)
    return torch.ops.tritonq.matmul(x, *weight, bias)
