"""``tritonq.save`` and ``tritonq.load``: a model's or a dict's tensors, quantized ones included, as one safetensors file."""
from __future__ import annotations

from pathlib import Path

import torch

from ..errors import CheckpointError, InvalidProblemError
from ..qstack import QStack
from ..qtensor import QTensor
from .checkpoint import open as open_checkpoint
from .native import MANIFEST, Record, header_metadata, manifest, stored_names, to_tensors
from .source import INDEX_SUFFIX, JOURNAL
from .tensorfile import checked_path
from .writer import write_json, write_tensors


def save(model_or_tensors, path: str | Path) -> None:
    """Write ``{name: QTensor | QStack | Tensor}`` or a module to ``path``: a ``.safetensors`` file, or a folder (``model.safetensors``).

    Of a module the state dict is written; a submodule with a dict ``quantized`` gives those weights, one with an attribute (or method)
    ``qtensor`` its ``weight`` as that QTensor. A QStack is stored as the rows of all its matrices. The file appears whole or not at all.

    Raises:
        CheckpointError: a folder with other weights, an index or an unfinished job, which it would open as; a name that a folder or file of
            the other kind has; a tensor that safetensors cannot hold (meta, sparse, complex128).
        InvalidProblemError: values that are no tensors, names that clash.

    Example:
        >>> import torch, tritonq
        >>> tritonq.save({"w": tritonq.quantize(torch.randn(64, 64), "nf4")}, "w.safetensors")  # doctest: +SKIP
    """
    path, named = checked_path(path), _named_tensors(model_or_tensors)
    folder = None if path.suffix == ".safetensors" else path
    file = folder / "model.safetensors" if folder else path
    _refuse_to_replace(folder, file)
    records, tensors = {}, {}
    for name, value in named.items():
        if not isinstance(name, str) or not isinstance(value, (QTensor, QStack, torch.Tensor)):
            raise InvalidProblemError(f"save takes text -> QTensor, QStack or torch.Tensor, got {name!r} -> {type(value).__name__}"[:300])
        if name == "__metadata__":
            raise InvalidProblemError("a tensor is called '__metadata__', which safetensors files keep for themselves; rename it")
        if isinstance(value, (QTensor, QStack)):
            records[name] = Record.of(value)
            parts = to_tensors(name, value.matrix() if isinstance(value, QStack) else value)
        else:
            parts = {name: value}
        taken = stored_names(name) if name in records else [name]
        clash = next((part for part in taken if part in tensors or (part != name and part in named)), None)
        if clash is not None:
            raise InvalidProblemError(f"weight {name!r} is stored as {clash!r} too, and another tensor has that name; rename one")
        tensors |= parts
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, tensors, header_metadata({}, records))
    if folder:
        write_json(folder / MANIFEST, manifest(records))


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, QTensor | torch.Tensor]:
    """All of the checkpoint at ``path`` as ``{name: QTensor | Tensor}`` on ``device``; :func:`tritonq.checkpoints.open` reads lazily."""
    return {name: value.to(device) for name, value in open_checkpoint(path)}


def _refuse_to_replace(folder: Path | None, file: Path) -> None:
    """Opening ``folder`` must give what is saved into it, and a name that is taken must be of the same kind."""
    if file.is_dir():
        raise CheckpointError(f"{file}: is a folder, and a file is saved under this name; choose another name")
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file, and without .safetensors this names a folder; choose another name")
    weights = {*folder.glob("*.safetensors"), *folder.glob(f"*{INDEX_SUFFIX}"), *folder.glob(JOURNAL)} - {file}
    if weights:
        rule = f"holds other weights or their index ({min(weights).name}), which would be opened with or in place of what is saved"
        raise CheckpointError(f"{folder}: {rule}; choose another folder")


def _named_tensors(model_or_tensors) -> dict:
    if isinstance(model_or_tensors, dict):
        return model_or_tensors
    if not isinstance(model_or_tensors, torch.nn.Module):
        raise InvalidProblemError(f"save takes a module or a dict of tensors, got {type(model_or_tensors).__name__}")
    named = dict(model_or_tensors.state_dict())
    for prefix, module in model_or_tensors.named_modules(remove_duplicate=False):  # as state_dict names them
        for own, q in _weights(module).items():
            name = f"{prefix}.{own}" if prefix else own
            for stored in stored_names(name):
                named.pop(stored, None)
            named[name] = q
    return named


def _weights(module: torch.nn.Module) -> dict[str, QTensor | QStack]:
    """The quantized weights of a module by their own names."""
    q = getattr(module, "qtensor", None)
    q = q() if callable(q) else q
    return getattr(module, "quantized", None) or ({"weight": q} if isinstance(q, QTensor) else {})
