"""The quantize job: a checkpoint in, a quantized one out, tensor by tensor.

Memory holds one tensor at a time. Every output file is written beside its final name, synced and renamed, and then recorded: a job
killed at any moment leaves the source untouched and no half-written file, and the same call finishes it without redoing files.
"""
from __future__ import annotations

import time
from collections.abc import Iterable
from math import prod
from pathlib import Path

from ..errors import CheckpointError
from ..files import write_atomic
from ..model_config import ties_embeddings
from ..ops import quantize
from .checkpoint import of_source
from .journal import Journal, identity, locked
from .native import MANIFEST, Record, expected, header_metadata, manifest, quantization_config, stored_names, to_tensors
from .quality import Quality, compare_quantized
from .rules import RULES_TEXT, Decision, Rules
from .source import Progress, Source, open_source, read_config
from .tensorfile import DTYPES, Entry, TensorFile, checked_path
from .writer import FileWriter, Stored, header_room, write_json

# Endings of names of tensors that hold codes and scales: FP8 in blocks and DeepSeek, W8 and compressed-tensors' FP8, its packed formats,
# GPTQ and AWQ, LLM.int8 of bitsandbytes, gpt-oss.
_CODES_AND_SCALES = (("", "_scale_inv"), ("", "_scale"), ("_packed", "_scale"), ("qweight", "scales"), ("weight", "SCB"),
                     ("_blocks", "_scales"))  # fmt: skip


def quantize_checkpoint(
    src: str | Path,
    dst: str | Path,
    schemes,
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Quantize the safetensors checkpoint ``src`` into the folder ``dst``; returns the report (also ``dst/tritonq_report.json``).

    ``schemes``, ``include``, ``exclude``: see :class:`tritonq.checkpoints.rules.Rules`. ``progress(done, total, name)`` is called
    with bytes of the source. Configuration and tokenizer files are carried along; the source is only read. ``dst`` may not be
    ``src``, inside it, or where its links lead.

    Raises:
        CheckpointError: a malformed source, one that is quantized already, nothing to quantize, more tensors than a file's header can
            name, or a ``dst`` that holds something else.
        InvalidProblemError: an unknown scheme, or a pattern that matches nothing.
    """
    started, dst = time.monotonic(), checked_path(dst)
    source = open_source(src)
    rules = Rules.parse(schemes, include, exclude)
    config = read_config(source.files[0].path.parent)  # of a single file too, which carries none along
    _refuse_quantized(source, config)
    tied = ties_embeddings(config)
    decisions = rules.decide(source.entries, tied=tied)
    if not any(d.scheme for d in decisions.values()):
        raise CheckpointError(f"{source.path}: none of its {len(source)} tensors is quantized ({RULES_TEXT}); see --include")
    _refuse_unwritable(source, decisions)
    carried, left_out = source.carried()
    dst = _destination(source, dst, carried)
    with locked(dst):
        journal = Journal.open(dst, identity(source, rules, tied=tied), [str(path) for path in carried], overwrite=overwrite)
        report = _run(source, dst, decisions, journal, progress or (lambda *_: None))
        report |= {"left_out": [str(path) for path in left_out], "seconds": round(time.monotonic() - started, 3)}
        journal.close(report)
    return report


def _run(source: Source, dst: Path, decisions: dict[str, Decision], journal: Journal, progress: Progress) -> dict:
    total, done = source.nbytes, 0
    rows, resumed = [], 0
    for file in source.files:
        finished = journal.rows(file.path.name)
        if finished is None:
            finished, written = _quantize_file(file, dst, decisions, lambda extra, name, base=done: progress(base + extra, total, name))
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
    write_json(dst / MANIFEST, manifest(records))
    if source.folder is not None and (source.folder / "config.json").is_file():
        kept = [row["name"] for row in rows if not row["scheme"] and len(row["shape"]) > 1]
        write_json(dst / "config.json", source.config | {"quantization_config": quantization_config(records, kept)}, allow_nan=True)
    return {
        "job": journal.job,
        "files": journal.finished,
        "totals": totals(rows),
        "resumed_files": resumed,
        "carried": journal.carried,
    }


def report_rows(report: dict) -> list[dict]:
    """The rows of all tensors in a report."""
    return [row for record in report["files"].values() for row in record["tensors"]]


def totals(rows: list[dict]) -> dict:
    """Sums over the rows of a report: sizes, bits per weight of what was quantized, and the quality of all of it together."""
    quantized = [row for row in rows if row["scheme"]]
    weights = sum(prod(row["shape"]) for row in quantized)
    quality = sum((Quality.from_row(row["quality"]) for row in quantized), Quality())
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


def _quantize_file(file: TensorFile, dst: Path, decisions: dict[str, Decision], progress) -> tuple[list[dict], dict]:
    """Write the quantized ``file`` into ``dst``; returns its report rows and the writer's record."""
    records, stored = _layout(file, decisions)
    rows, done = [], 0
    with FileWriter(dst / file.path.name, stored, header_metadata(file.metadata, records)) as writer:
        for entry in file.entries.values():
            progress(done, entry.name)
            record = records.get(entry.name)
            row = _quantize_tensor(writer, file, entry, record) if record else _keep_tensor(writer, file, entry, decisions[entry.name])
            rows.append({**row, "file": file.path.name})
            done += entry.nbytes
        return rows, writer.finish()


def _layout(file: TensorFile, decisions: dict[str, Decision]) -> tuple[dict[str, Record], Stored]:
    """Of the quantized ``file``: its quantized weights, and all tensors that it will hold."""
    records, stored = {}, {}
    for entry in file.entries.values():
        scheme = decisions[entry.name].scheme
        if scheme:
            records[entry.name] = Record(scheme=scheme, shape=entry.shape, dtype=entry.torch_dtype)
            stored |= expected(entry.name, records[entry.name])
        else:
            stored[entry.name] = entry.dtype, entry.shape
    return records, stored


def _quantize_tensor(writer: FileWriter, file: TensorFile, entry: Entry, record: Record) -> dict:
    weight = file.read(entry.name)
    matrix = weight.reshape(record.matrix_shape)
    q = quantize(matrix, record.scheme)
    tensors = to_tensors(entry.name, q)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    size = sum(t.nbytes for t in tensors.values())
    return {
        "name": entry.name,
        "scheme": record.scheme,
        "reason": None,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "bytes_before": entry.nbytes,
        "bytes_after": size,
        "bits_per_weight": round(8 * size / entry.numel, 4) if entry.numel else None,
        "quality": compare_quantized(matrix, q).row(),
        "stored": list(tensors),
    }


def _keep_tensor(writer: FileWriter, file: TensorFile, entry: Entry, decision: Decision) -> dict:
    writer.add_bytes(entry.name, entry.dtype, entry.shape, file.chunks(entry.name))
    return {
        "name": entry.name,
        "scheme": None,
        "reason": decision.reason,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "bytes_before": entry.nbytes,
        "bytes_after": entry.nbytes,
        "bits_per_weight": DTYPES[entry.dtype][0],
        "quality": None,
        "stored": [entry.name],
    }


def _refuse_quantized(source: Source, config: dict) -> None:
    way_out = "start from the original weights"
    method = config.get("quantization_config")
    if method is not None:
        name = method.get("quant_method", "?") if isinstance(method, dict) else "?"
        raise CheckpointError(f"{source.path}: is quantized already (config.json: quant_method {name!r}); {way_out}")
    known = of_source(source)
    if known.records:
        raise CheckpointError(f"{source.path}: is a {known.family} checkpoint already; {way_out}")
    for name, file in source.owner.items():
        scales = (name.removesuffix(codes) + suffix for codes, suffix in _CODES_AND_SCALES if name.endswith(codes))
        scale = None if file.entries[name].is_float else next((scale for scale in scales if scale in source), None)
        if scale is not None:
            what = f"tensor {name!r} is {file.entries[name].dtype}, its scales are in {scale!r}"
            raise CheckpointError(f"{source.path}: is quantized already ({what}); {way_out}")


def _refuse_unwritable(source: Source, decisions: dict[str, Decision]) -> None:
    """A name that quantizing a weight would write must not be another tensor's, and no file may outgrow the format."""
    for file in source.files:
        records, stored = _layout(file, decisions)
        for name in records:
            clash = next((other for other in stored_names(name) if other != name and other in source), None)
            if clash is not None:
                raise CheckpointError(
                    f"{source.path}: quantizing {name!r} writes {clash!r}, a tensor that exists: it looks quantized already; "
                    f"--exclude {name!r} keeps it"
                )
        header_room(file.path, stored, header_metadata(file.metadata, records))


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
