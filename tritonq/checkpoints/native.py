"""The project's own family: quantized weights in ordinary safetensors files.

A weight ``X.weight`` is stored as ``X.weight`` (its packed codes, uint8), ``X.weight_scale``, ``X.weight_zero_point``,
``X.weight_second_scale``, ``X.weight_scale_offset`` and ``X.weight_column_order`` (act-order), as far as it has them. What they mean is in
the file itself: the header's metadata holds, under ``"tritonq"``, ``{"format_version": 1, "weights": {name: {"scheme", "shape",
"dtype"}}}``. Every other tensor is stored as it is. Versions and fields that are not known are errors: a reader never guesses.
"""
from __future__ import annotations

import json
from collections import Counter

import torch

from ..dtypes import dtype_name
from ..errors import CheckpointError, shorten
from ..qtensor import STORED, QTensor, expected_flat
from ..scheme import Scheme
from .family import METADATA_KEY, Family, Record, Target
from .source import MANIFEST, Source
from .tensorfile import DTYPE_NAMES, TensorFile, load_json, read_json
from .writer import Stored

FAMILY = "tritonq"
FORMAT_VERSION = 1


def stored_name(name: str, part: str) -> str:
    """What ``part`` of weight ``name``, as :meth:`QTensor.tensors` calls it, is called in a file."""
    return name if part == "packed" else f"{name}_{part}"


def stored_names(name: str) -> list[str]:
    """Names of the tensors that weight ``name`` may take in a file."""
    return [stored_name(name, part) for part in STORED.values()]


def expected(name: str, record: Record, *, act_order: bool = False) -> Stored:
    """The tensors that weight ``name`` has in a file: their names, and of each the name of its dtype and its shape."""
    flat = expected_flat(Scheme.parse(record.scheme), record.matrix_shape, record.dtype, "row")
    parts = flat | ({"column_order": ((record.matrix_shape[1],), torch.int32)} if act_order else {})
    return {stored_name(name, STORED[field]): (DTYPE_NAMES[dtype], shape) for field, (shape, dtype) in parts.items()}


def to_tensors(name: str, q: QTensor) -> dict[str, torch.Tensor]:
    """The tensors of ``q`` under their names in a file."""
    return {stored_name(name, part): tensor for part, tensor in q.tensors().items()}


def from_tensors(name: str, record: Record, tensors: dict[str, torch.Tensor]) -> QTensor:
    """The inverse of :func:`to_tensors`; ``tensors`` may hold others too. Every shape and dtype is checked."""
    parts = {part: tensors[stored] for part in STORED.values() if (stored := stored_name(name, part)) in tensors}
    return QTensor.from_tensors(record.scheme, record.matrix_shape, record.dtype, parts)


def header_metadata(metadata: dict[str, str], records: dict[str, Record]) -> dict[str, str]:
    """``metadata`` of a file, with the description of its quantized weights."""
    description = {"format_version": FORMAT_VERSION, "weights": {name: record.to_json() for name, record in records.items()}}
    return {"format": "pt", **metadata, METADATA_KEY: json.dumps(description, separators=(",", ":"), ensure_ascii=False)}


def read_records(file: TensorFile) -> dict[str, Record] | None:
    """The quantized weights of ``file``, None where it does not carry the description."""
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        return None
    where = f"{file.path}: metadata {METADATA_KEY!r}"
    records = parse_weights(load_json(text, where), where)
    for name in records:
        if name not in file.entries:
            raise CheckpointError(f"{where}: describes weight {name!r}, which the file does not hold")
    return records


def parse_weights(description: dict, where: str) -> dict[str, Record]:
    """Records of ``{"format_version": 1, "weights": {...}}``."""
    version = description.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CheckpointError(f"{where}: format_version {shorten(version)} is unknown (known: {FORMAT_VERSION}); use a newer tritonq")
    if set(description) != {"format_version", "weights"} or not isinstance(description["weights"], dict):
        unknown = sorted(set(description) - {"format_version", "weights"})
        raise CheckpointError(f"{where}: needs exactly format_version and weights (an object); unknown: {', '.join(unknown) or 'none'}")
    return {name: Record.from_json(fields, f"{where}: weight {name!r}") for name, fields in description["weights"].items()}


def manifest(records: dict[str, Record]) -> dict:
    """The content of ``tritonq.json``: the quantized weights of all files together."""
    return {"format_version": FORMAT_VERSION, "weights": {name: record.to_json() for name, record in records.items()}}


def quantization_config(records: dict[str, Record], kept: list[str]) -> dict:
    """What goes under ``quantization_config`` into config.json: the commonest scheme, the weights that differ from it, those kept."""
    commonest = Counter(record.scheme for record in records.values()).most_common(1)[0][0]
    dtype = Counter(record.dtype for record in records.values()).most_common(1)[0][0]
    return {
        "quant_method": FAMILY,
        "format_version": FORMAT_VERSION,
        "scheme": commonest,
        "dtype": dtype_name(dtype),
        "overrides": {name: record.scheme for name, record in records.items() if record.scheme != commonest},
        "kept": kept,
    }


class Native(Family, Target):
    """The family of this file."""

    name = FAMILY

    def read_records(self, source: Source) -> dict[str, Record] | None:
        described = [records for file in source.files if (records := read_records(file)) is not None]
        if not described:
            if source.quant_method == FAMILY:
                what = f"config.json says quant_method {FAMILY!r}, but no file describes its quantized weights"
                raise CheckpointError(f"{source.path}: {what}")
            return None
        records = {name: record for one in described for name, record in one.items()}
        if source.folder is not None and (source.folder / MANIFEST).is_file():
            where = str(source.folder / MANIFEST)
            listed = parse_weights(read_json(source.folder / MANIFEST), where)
            wrong = next((name for name in {**listed, **records} if listed.get(name) != records.get(name)), None)
            if wrong is not None:
                says, truth = shorten(listed.get(wrong)), shorten(records.get(wrong))
                raise CheckpointError(f"{where}: says {says} of weight {wrong!r}, its file says {truth}")
        for name, record in records.items():
            self._check_headers(source, name, record)
        return records

    def _check_headers(self, source: Source, name: str, record: Record) -> None:
        """The tensors of weight ``name`` are those that its description asks for; what they hold is not read."""
        wanted = expected(name, record, act_order=self.act_order(name, source))
        for stored in self.stored_names(name):
            entry = source.entry(stored) if stored in source else None
            got = (entry.dtype, entry.shape) if entry else None
            if got != wanted.get(stored):
                needs = f"{record.scheme} of shape {record.matrix_shape} {record.dtype} needs {stored!r} = {wanted.get(stored)}, got {got}"
                raise CheckpointError(f"{source.owner[name].path}: weight {name!r}: {needs}")

    def stored_names(self, name: str) -> list[str]:
        return stored_names(name)

    def assemble(self, name: str, record: Record, tensors: dict[str, torch.Tensor]) -> QTensor:
        return from_tensors(name, record, tensors)

    def act_order(self, name: str, source: Source) -> bool:
        return stored_name(name, "column_order") in source

    def stored(self, name: str, record: Record, *, act_order: bool) -> Stored:
        return expected(name, record, act_order=act_order)

    def tensors(self, name: str, record: Record, q: QTensor) -> dict[str, torch.Tensor]:
        return to_tensors(name, q)

    def metadata(self, metadata: dict[str, str], records: dict[str, Record]) -> dict[str, str]:
        return header_metadata(metadata, records)

    def beside(self, records: dict[str, Record]) -> dict[str, dict]:
        return {MANIFEST: manifest(records)}

    def config(self, records: dict[str, Record], kept: list[str]) -> dict:
        return {"quantization_config": quantization_config(records, kept)}
