"""A checkpoint opened for reading: names, and lazily a QTensor or a plain tensor for each."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import CheckpointError, TritonQError
from ..qtensor import QTensor
from .families import FAMILIES
from .family import Family, Record
from .source import Source, open_source
from .tensorfile import Entry


class Checkpoint:
    """The tensors of a checkpoint by name. Iterating gives ``(name, value)``; a value is read when it is asked for.

    Attributes:
        family: ``"tritonq"``, ``"bitsandbytes"`` (values of quantized weights are :class:`tritonq.QTensor`), or ``"safetensors"``
            (plain tensors).
        source: the validated files.
        records: scheme, shape and dtype of every quantized weight. A weight of rank 3 comes as a QTensor of E*N rows; its
            own shape is ``records[name].shape``.
    """

    def __init__(self, source: Source, family: Family | None, records: dict[str, Record]):
        self.source, self.records = source, records
        self.family = family.name if family else "safetensors"
        self._family = family
        weight_of = {stored: name for name in records for stored in family.stored_names(name)} if family else {}
        self._names = list(dict.fromkeys(weight_of.get(name, name) for file in source.files for name in file.entries))

    def names(self) -> list[str]:
        """Names of weights and other tensors; the scales of a quantized weight belong to it and have no name of their own."""
        return list(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self.records or name in self._names

    def __getitem__(self, name: str) -> QTensor | torch.Tensor:
        if name not in self.records:
            return self.source.read(name)
        return self.assemble(name, {stored: self.source.read(stored) for stored in self.stored_names(name)})

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
        return [self.source.entry(stored) for stored in self.stored_names(name)]

    def assemble(self, name: str, tensors: dict[str, torch.Tensor]) -> QTensor:
        """Quantized weight ``name`` from its stored tensors, read by whomever; what ``self[name]`` does."""
        try:
            return self._family.assemble(name, self.records[name], tensors)
        except TritonQError as error:
            where = self.source.owner[self.stored_names(name)[0]].path
            raise CheckpointError(f"{where}: weight {name!r}: {error}") from error

    def stored_names(self, name: str) -> list[str]:
        """Names of the stored tensors that make up ``name``."""
        if name not in self.records:
            return [name]
        return [stored for stored in self._family.stored_names(name) if stored in self.source]

    def act_order(self, name: str) -> bool:
        """Whether the columns of quantized weight ``name`` are packed in another order than its own."""
        return self._family.act_order(name, self.source)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.source.path)!r}, {self.family}, {len(self)} tensors, {len(self.records)} quantized)"


def open(path: str | Path) -> Checkpoint:  # noqa: A001 (the documented name: tritonq.checkpoints.open)
    """Open the checkpoint at ``path``: a ``.safetensors`` file, an index, or a folder.

    Raises:
        CheckpointError: a malformed file, index or description; the text names the file, the rule and the value.
    """
    return of_source(open_source(path))


def of_source(source: Source) -> Checkpoint:
    """The checkpoint in files that were opened, of the first family that knows it."""
    for family in FAMILIES:
        records = family.read_records(source)
        if records is not None:
            return Checkpoint(source, family, records)
    return Checkpoint(source, None, {})
