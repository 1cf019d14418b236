"""Checking a checkpoint: every tensor decodes to finite numbers of the right shape, and stays close enough to its source."""
from __future__ import annotations

from pathlib import Path

import torch

from ..errors import CheckpointError, InvalidProblemError
from ..qtensor import QTensor
from .checkpoint import Checkpoint
from .checkpoint import open as open_checkpoint
from .quality import Quality, compare_quantized, decoded_rows
from .source import Progress


def verify_checkpoint(
    path: str | Path, against: str | Path | None = None, *, fail_under: float | None = None, progress: Progress | None = None
) -> dict:
    """Check the checkpoint at ``path``; returns ``{"tensors": rows, "failures": texts, ...}``, ok where ``failures`` is empty.

    Alone: files, index and descriptions agree, every quantized weight has the tensors its scheme needs, decodes, and decodes to no
    NaN or Inf. ``against`` a source: the same names, shapes and dtypes, tensors that were kept equal byte for byte, and SQNR and cosine
    for each quantized weight, which fails below ``fail_under`` dB.

    Raises:
        CheckpointError: a file that cannot be read as what it claims to be (as opposed to a check that failed).
        InvalidProblemError: ``fail_under`` without ``against``.
    """
    if fail_under is not None and against is None:
        raise InvalidProblemError("fail_under needs against: without the source there is no SQNR")
    checkpoint = open_checkpoint(path)
    source = open_checkpoint(against) if against is not None else None
    if source is not None and source.records:
        raise CheckpointError(f"{against}: is quantized itself; against takes the original weights")
    failures, rows = [], []
    if source is not None:
        failures += [f"{name}: missing, the source has it" for name in source.names() if name not in checkpoint]
    names = checkpoint.names()
    for position, name in enumerate(names):
        if progress is not None:
            progress(position, len(names), name)
        row, problems = _check(checkpoint, source, name, fail_under)
        rows.append(row)
        failures += [f"{name}: {problem}" for problem in problems]
    qualities = [Quality.from_row(row["quality"]) for row in rows if row["scheme"] and row["quality"]]
    return {
        "ok": not failures,
        "family": checkpoint.family,
        "tensors": rows,
        "quantized": len(checkpoint.records),
        "quality": sum(qualities, Quality()).row() if qualities else None,
        "fail_under_db": fail_under,
        "failures": failures,
    }


def _check(checkpoint: Checkpoint, source: Checkpoint | None, name: str, fail_under: float | None) -> tuple[dict, list[str]]:
    record = checkpoint.records.get(name)
    row = {"name": name, "scheme": record.scheme if record else None, "shape": list(checkpoint.shape(name)), "quality": None}
    problems = []
    comparable = source is not None
    if comparable:
        if name not in source:
            problems.append("the source has no such tensor")
            comparable = False
        elif source.shape(name) != checkpoint.shape(name):
            problems.append(f"shape {list(checkpoint.shape(name))}, the source has {list(source.shape(name))}")
            comparable = False
    if record is None:
        return row, problems + _check_kept(checkpoint, source if comparable else None, name)
    q = checkpoint[name]
    bad = _nonfinite(q)
    if bad:
        problems.append(f"{bad} of its values decode to NaN or Inf")
    if comparable and not source.source.entry(name).is_float:
        problems.append(f"the source has {source.source.entry(name).dtype}, no float")
    elif comparable:
        if record.dtype != source.source.entry(name).torch_dtype:
            problems.append(f"was {record.dtype}, its description says, and the source has {source.source.entry(name).torch_dtype}")
        quality = compare_quantized(source[name].reshape(q.shape), q)
        row["quality"] = quality.row()
        if fail_under is not None and quality.sqnr_db < fail_under:
            problems.append(f"SQNR {quality.sqnr_db:.2f} dB is below {fail_under:g} dB")
    return row, problems


def _check_kept(checkpoint: Checkpoint, source: Checkpoint | None, name: str) -> list[str]:
    entry = checkpoint.source.entry(name)
    if source is not None:
        other = source.source.entry(name)
        if entry.dtype != other.dtype:
            return [f"{entry.dtype}, the source has {other.dtype}"]
        pairs = zip(checkpoint.source.owner[name].chunks(name), source.source.owner[name].chunks(name), strict=True)
        return [] if all(a == b for a, b in pairs) else ["was kept, but differs from the source"]
    dtype = entry.torch_dtype
    if dtype is None or not (dtype.is_floating_point or dtype.is_complex):
        return []
    chunks = (torch.frombuffer(bytearray(chunk), dtype=dtype) for chunk in checkpoint.source.owner[name].chunks(name))
    bad = sum(_count_nonfinite(values.float() if dtype.itemsize == 1 else values) for values in chunks)  # torch asks no 8-bit float
    return [f"{bad} of its values are NaN or Inf"] if bad else []


def _nonfinite(q: QTensor) -> int:
    """How many values of ``q`` decode to NaN or Inf."""
    return sum(_count_nonfinite(values) for _, values in decoded_rows(q))


def _count_nonfinite(values: torch.Tensor) -> int:
    return int((~torch.isfinite(values)).sum())
