"""Jobs on checkpoints: one in, another out, tensor by tensor.

Memory holds one tensor at a time. Every output file is written beside its final name, synced and renamed, and then recorded: a job
killed at any moment leaves the source untouched and no half-written file, and the same call finishes it without redoing files.
"""
from __future__ import annotations

import time
from abc import ABC, abstractmethod
from math import prod
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..files import write_atomic
from .family import Record, Target
from .journal import Journal, identity, locked
from .quality import Quality
from .source import Progress, Source
from .tensorfile import DTYPE_NAMES, DTYPES, Entry, TensorFile, checked_path
from .writer import FileWriter, Stored, header_room, write_json


class Task(ABC):
    """What a job does with each tensor.

    Attributes:
        target: how weights are stored that come out quantized.
        choices: what was asked for, in JSON; jobs with other choices do not go on where this one stopped.
        tied: whether lm_head is tied to an embedding, where that counts.
    """

    target: Target
    choices: dict
    tied: bool = False

    @abstractmethod
    def layout(self, file: TensorFile) -> tuple[dict[str, Record], Stored]:
        """Of the output for ``file``: its quantized weights, and all tensors that it will hold.

        Raises:
            CheckpointError: a tensor that cannot be written.
        """

    @abstractmethod
    def write(self, file: TensorFile, entry: Entry, writer: FileWriter) -> dict | None:
        """Write what comes of one tensor; returns its row of the report, None for one that belongs to another."""


def run(source: Source, dst: str | Path, task: Task, *, overwrite: bool, progress: Progress | None) -> dict:
    """Do ``task`` with every tensor of ``source`` into the folder ``dst``; returns the report (also ``dst/tritonq_report.json``).

    ``progress(done, total, name)`` is called with bytes of the source. Configuration and tokenizer files are carried along.

    Raises:
        CheckpointError: more tensors than a file's header can name, or a ``dst`` that holds something else, is the source's folder, lies in
            it, or is where its links lead.
    """
    started, dst = time.monotonic(), checked_path(dst)
    for file in source.files:
        records, stored = task.layout(file)
        header_room(file.path, stored, task.target.metadata(file.metadata, records))
    carried, left_out = source.carried()
    dst = _destination(source, dst, carried)
    with locked(dst):
        job = identity(source, task.choices, tied=task.tied)
        journal = Journal.open(dst, job, [str(path) for path in carried], overwrite=overwrite)
        report = _write(source, dst, task, journal, progress or (lambda *_: None))
        report |= {"left_out": [str(path) for path in left_out], "seconds": round(time.monotonic() - started, 3)}
        journal.close(report)
    return report


def _write(source: Source, dst: Path, task: Task, journal: Journal, progress: Progress) -> dict:
    total, done = source.nbytes, 0
    rows, resumed = [], 0
    for file in source.files:
        finished = journal.rows(file.path.name)
        if finished is None:
            finished, written = _write_file(file, dst, task, lambda extra, name, base=done: progress(base + extra, total, name))
            journal.finish(file.path.name, written, finished)
        else:
            resumed += 1
        rows += finished
        done += sum(entry.nbytes for entry in file.entries.values())
        progress(done, total, file.path.name)
    for name in journal.carried:
        if name != "config.json":
            _copy(source.folder / name, dst / name)
    if source.index is not None:
        names = {name: out for row in rows for name, out in ((stored, row["file"]) for stored in row["stored"])}
        write_json(dst / source.index.name, {"metadata": {"total_size": sum(r["bytes_after"] for r in rows)}, "weight_map": names})
    records = {
        name: Record(scheme=row["scheme"], shape=tuple(row["shape"]), dtype=DTYPES[row["dtype"]][1])
        for name, row in ((row["name"], row) for row in rows)
        if row["scheme"]
    }
    for name, content in task.target.beside(records).items():
        write_json(dst / name, content)
    if source.folder is not None and (source.folder / "config.json").is_file():
        kept = [row["name"] for row in rows if not row["scheme"] and len(row["shape"]) > 1]
        config = {key: value for key, value in source.config.items() if key != "quantization_config"} | task.target.config(records, kept)
        write_json(dst / "config.json", config, allow_nan=True)
    return {
        "job": journal.job,
        "files": journal.finished,
        "totals": totals(rows),
        "resumed_files": resumed,
        "carried": journal.carried,
    }


def _write_file(file: TensorFile, dst: Path, task: Task, progress) -> tuple[list[dict], dict]:
    """Write the output for ``file`` into ``dst``; returns its report rows and the writer's record."""
    records, stored = task.layout(file)
    rows, done = [], 0
    with FileWriter(dst / file.path.name, stored, task.target.metadata(file.metadata, records)) as writer:
        for entry in file.entries.values():
            progress(done, entry.name)
            row = task.write(file, entry, writer)
            if row is not None:
                rows.append({**row, "file": file.path.name})
            done += entry.nbytes
        return rows, writer.finish()


def keep(file: TensorFile, entry: Entry, writer: FileWriter, reason: str) -> dict:
    """Copy a tensor as it is; returns its row."""
    writer.add_bytes(entry.name, entry.dtype, entry.shape, file.chunks(entry.name))
    return {
        "name": entry.name,
        "scheme": None,
        "reason": reason,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "bytes_before": entry.nbytes,
        "bytes_after": entry.nbytes,
        "bits_per_weight": DTYPES[entry.dtype][0],
        "quality": None,
        "stored": [entry.name],
    }


def put(name: str, tensors: dict[str, torch.Tensor], record: Record, becomes: Record | None, before: int, writer: FileWriter,
        quality: Quality | None = None) -> dict:  # fmt: skip
    """Write the tensors of weight ``name``; returns its row.

    Args:
        record: of the weight: shape, dtype and, where it was quantized before, the scheme.
        becomes: its record in the output; None where it is quantized no more.
        before: bytes that it had.
    """
    for stored, tensor in tensors.items():
        writer.add(stored, tensor)
    size, numel = sum(tensor.nbytes for tensor in tensors.values()), prod(record.shape)
    return {
        "name": name,
        "scheme": becomes.scheme if becomes else None,
        "reason": None if becomes else f"decoded from {record.scheme}",
        "shape": list(record.shape),
        "dtype": DTYPE_NAMES[record.dtype],
        "bytes_before": before,
        "bytes_after": size,
        "bits_per_weight": round(8 * size / numel, 4) if numel else None,
        "quality": None if quality is None else quality.row(),
        "stored": list(tensors),
    }


def report_rows(report: dict) -> list[dict]:
    """The rows of all tensors in a report."""
    return [row for record in report["files"].values() for row in record["tensors"]]


def totals(rows: list[dict]) -> dict:
    """Sums over the rows of a report: sizes, bits per weight of what is quantized, and the quality of all that was compared together."""
    quantized = [row for row in rows if row["scheme"]]
    weights = sum(prod(row["shape"]) for row in quantized)
    quality = sum((Quality.from_row(row["quality"]) for row in quantized if row["quality"]), Quality())
    return {
        "tensors": len(rows),
        "quantized": len(quantized),
        "kept": len(rows) - len(quantized),
        "weights_quantized": weights,
        "bits_per_weight": round(8 * sum(row["bytes_after"] for row in quantized) / weights, 4) if weights else None,
        "bytes_before": sum(row["bytes_before"] for row in rows),
        "bytes_after": sum(row["bytes_after"] for row in rows),
        "quality": quality.row(),
    }


def _destination(source: Source, dst: Path, carried: list[Path]) -> Path:
    """The folder ``dst``, made. No folder that the job writes into may be one where files of the source lie, links followed."""
    if dst.exists() and not dst.is_dir():
        raise CheckpointError(f"{dst}: the output is a folder, and this is a file; choose another name")
    if dst.suffix == ".safetensors":
        raise CheckpointError(f"{dst}: the output is a folder; leave out .safetensors")
    read = [file.path for file in source.files] + [source.folder / path for path in carried] + [source.index] * (source.index is not None)
    homes = {source.files[0].path.parent.resolve(), *(path.resolve().parent for path in read)}
    inside = source.folder and source.folder.resolve()
    for folder in dict.fromkeys((dst, *((dst / path).parent for path in carried))):
        real = folder.resolve()
        if real in homes or inside in real.parents:
            rule = "the output may not be the source folder or lie inside it, nor replace what a link of the source names"
            raise CheckpointError(f"{folder}: {rule} (it is {real}); choose another folder")
    dst.mkdir(parents=True, exist_ok=True)
    return dst


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, source.read_bytes())
