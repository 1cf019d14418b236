"""A checkpoint opened for reading: names, and lazily a QTensor or a plain tensor for each."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..qtensor import QTensor
from .native import FAMILY, MANIFEST, Record, parse_weights, read_qtensor, read_records, stored_names
from .source import Source, open_source
from .tensorfile import Entry, read_json, shorten


class Checkpoint:
    """The tensors of a checkpoint by name. Iterating gives ``(name, value)``; a value is read when it is asked for.

    Attributes:
        family: ``"tritonq"`` (values of quantized weights are :class:`tritonq.QTensor`), or ``"safetensors"`` (plain tensors).
        source: the validated files.
        records: scheme, shape and dtype of every quantized weight. A weight of rank 3 comes as a QTensor of E*N rows; its
            own shape is ``records[name].shape``.
    """

    def __init__(self, source: Source, family: str, records: dict[str, Record]):
        self.source, self.family, self.records = source, family, records
        inner = {stored for name, record in records.items() for stored in stored_names(name, record)} - set(records)
        self._names = [name for file in source.files for name in file.entries if name not in inner]

    def names(self) -> list[str]:
        """Names of weights and other tensors; the scales of a quantized weight belong to it and have no name of their own."""
        return list(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self.records or name in self._names

    def __getitem__(self, name: str) -> QTensor | torch.Tensor:
        record = self.records.get(name)
        if record is None:
            return self.source.read(name)
        return read_qtensor(self.source.owner[name], name, record)

    def __iter__(self) -> Iterator[tuple[str, QTensor | torch.Tensor]]:
        return ((name, self[name]) for name in self._names)

    def items(self) -> Iterator[tuple[str, QTensor | torch.Tensor]]:
        """The same as iterating."""
        return iter(self)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape that the tensor has, or had before it was quantized."""
        record = self.records.get(name)
        return record.shape if record else self.source.entry(name).shape

    def entries(self, name: str) -> list[Entry]:
        """The stored tensors that make up ``name``."""
        file = self.source.owner[name]
        return [file.entries[stored] for stored in stored_names(name, self.records.get(name)) if stored in file.entries]

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.source.path)!r}, {self.family}, {len(self)} tensors, {len(self.records)} quantized)"


def open(path: str | Path) -> Checkpoint:  # noqa: A001 (the documented name: tritonq.checkpoints.open)
    """Open the checkpoint at ``path``: a ``.safetensors`` file, an index, or a folder.

    Raises:
        CheckpointError: a malformed file, index or description; the text names the file, the rule and the value.
    """
    source = open_source(path)
    described = {file: read_records(file) for file in source.files}
    native = [file for file, records in described.items() if records is not None]
    config = source.config.get("quantization_config")
    method = config.get("quant_method") if isinstance(config, dict) else None
    if not native:
        if method == FAMILY:
            raise CheckpointError(f"{source.path}: config.json says quant_method {FAMILY!r}, but no file describes its quantized weights")
        return Checkpoint(source, "safetensors", {})
    records = {name: record for file in native for name, record in described[file].items()}
    if source.folder is not None and (source.folder / MANIFEST).is_file():
        where = str(source.folder / MANIFEST)
        listed = parse_weights(read_json(source.folder / MANIFEST), where)
        wrong = next((name for name in {**listed, **records} if listed.get(name) != records.get(name)), None)
        if wrong is not None:
            says, truth = shorten(listed.get(wrong)), shorten(records.get(wrong))
            raise CheckpointError(f"{where}: says {says} of weight {wrong!r}, its file says {truth}")
    return Checkpoint(source, FAMILY, records)
