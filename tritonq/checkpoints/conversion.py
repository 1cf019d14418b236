"""The convert job: quantized weights from one family's files into another's, or decoded; no value changes."""
from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, InvalidProblemError
from .checkpoint import Checkpoint
from .checkpoint import open as open_checkpoint
from .families import TARGETS
from .family import Record, Target
from .job import Task, keep, put, run
from .native import FAMILY
from .source import Progress
from .tensorfile import Entry, TensorFile
from .writer import FileWriter, Stored


def convert(src: str | Path, dst: str | Path, *, to: str = FAMILY, overwrite: bool = False, progress: Progress | None = None) -> dict:
    """Write the quantized checkpoint ``src`` into the folder ``dst`` as family ``to``; returns the report.

    Args:
        src: a ``.safetensors`` file, an index or a folder, of any family that :func:`tritonq.checkpoints.open` reads; it is only read.
        dst: a folder, not ``src``, inside it, or where its links lead.
        to: ``"tritonq"``; ``"bitsandbytes"``, which holds nf4 and fp4_bnb; ``"safetensors"``, the decoded weights in the shape and dtype
            that they had, for any reader.
        overwrite: write into a ``dst`` that holds something else.
        progress: called with bytes of the source: (done, total, name).

    Codes and scales keep their values, and so do the decoded weights; tensors that are not quantized are copied byte by byte. Files keep
    their names, other small files are carried along, and ``quantization_config`` in config.json becomes that of the new family. A job
    that is killed leaves no half-written file; the same call finishes it.

    Raises:
        CheckpointError: a malformed source, one without quantized weights or of this family already, a weight that the family cannot
            hold, or a ``dst`` that holds something else.
        InvalidProblemError: an unknown family.

    Example:
        >>> import tritonq.checkpoints
        >>> tritonq.checkpoints.convert("llama-bnb-4bit", "llama-nf4")["totals"]["quantized"]  # doctest: +SKIP
        225
    """
    target = next((target for target in TARGETS if target.name == to), None)
    if target is None:
        raise InvalidProblemError(f"to must be one of {', '.join(target.name for target in TARGETS)}, got {to!r}"[:300])
    checkpoint = open_checkpoint(src)
    if not checkpoint.records:
        raise CheckpointError(f"{src}: holds no quantized weights; tritonq quantize makes some")
    if checkpoint.family == to:
        raise CheckpointError(f"{src}: is a {to} checkpoint already; convert to {' or '.join(t.name for t in TARGETS if t.name != to)}")
    return run(checkpoint.source, dst, Convert(checkpoint, target), overwrite=overwrite, progress=progress)


class Convert(Task):
    """Quantized weights as another family stores them, all else as it is. A weight goes where its codes were."""

    def __init__(self, checkpoint: Checkpoint, target: Target):
        self.checkpoint, self.target, self.choices = checkpoint, target, {"to": target.name}
        self.part_of = {stored: name for name in checkpoint.records for stored in checkpoint.stored_names(name)}

    def layout(self, file: TensorFile) -> tuple[dict[str, Record], Stored]:
        records, stored, source = {}, {}, self.checkpoint.source
        for entry in file.entries.values():
            if entry.name not in self.part_of:
                stored[entry.name] = entry.dtype, entry.shape
            elif entry.name in self.checkpoint.records:
                record = self.checkpoint.records[entry.name]
                try:
                    parts = self.target.stored(entry.name, record, act_order=self.checkpoint.act_order(entry.name))
                except CheckpointError as error:
                    raise CheckpointError(f"{file.path}: weight {entry.name!r}: {error}") from error
                clash = next((part for part in parts if part in source and self.part_of.get(part) != entry.name), None)
                if clash is not None:
                    what = f"weight {entry.name!r} would be stored as {clash!r} too, another tensor's name"
                    raise CheckpointError(f"{file.path}: {what}; rename that one")
                stored |= parts
                if (becomes := self.target.record(record)) is not None:
                    records[entry.name] = becomes
        return records, stored

    def write(self, file: TensorFile, entry: Entry, writer: FileWriter) -> dict | None:
        if entry.name not in self.part_of:
            return keep(file, entry, writer, "as it is")
        if entry.name not in self.checkpoint.records:
            return None
        record, before = self.checkpoint.records[entry.name], self.checkpoint.entries(entry.name)
        tensors = self.target.tensors(entry.name, record, self.checkpoint[entry.name])
        return put(entry.name, tensors, record, self.target.record(record), sum(part.nbytes for part in before), writer)
