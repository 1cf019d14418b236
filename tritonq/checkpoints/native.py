"""The project's own family: quantized weights in ordinary safetensors files.

A weight ``X.weight`` is stored as ``X.weight`` (its packed codes, uint8), ``X.weight_scale``, ``X.weight_zero_point``,
``X.weight_second_scale``, ``X.weight_scale_offset`` and ``X.weight_column_order`` (act-order), as far as it has them. What they mean is in
the file itself: the header's metadata holds, under ``"tritonq"``, ``{"format_version": 1, "weights": {name: {"scheme", "shape",
"dtype"}}}``. Every other tensor is stored as it is. Versions and fields that are not known are errors: a reader never guesses.
"""
from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from math import prod

import torch

from ..errors import CheckpointError, TritonQError
from ..qtensor import NAMED_DTYPES, QTensor
from ..scheme import Scheme
from .tensorfile import TensorFile, load_json, shorten

FAMILY = "tritonq"
FORMAT_VERSION = 1
METADATA_KEY = "tritonq"
MANIFEST = "tritonq.json"

_SUFFIXES = {
    "packed": "",
    "scale": "_scale",
    "zero_point": "_zero_point",
    "second_scale": "_second_scale",
    "scale_offset": "_scale_offset",
    "column_order": "_column_order",
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a file says of one quantized weight: scheme (text), the shape and dtype that the weight had.

    A weight of another rank than 2 is quantized as the matrix ``[prod(shape[:-1]), shape[-1]]``: experts ``[E, N, K]`` as E*N rows.
    """

    scheme: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return prod(self.shape[:-1]), self.shape[-1]

    def to_json(self) -> dict:
        return {"scheme": self.scheme, "shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_json(cls, fields, where: str) -> Record:
        """Read and check ``{"scheme", "shape", "dtype"}``; ``where`` opens the error text."""
        if not isinstance(fields, dict) or set(fields) != {"scheme", "shape", "dtype"}:
            raise CheckpointError(f"{where}: needs exactly scheme, shape and dtype, got {shorten(fields)}")
        shape, dtype = fields["shape"], fields["dtype"]
        if not isinstance(shape, list) or not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
            raise CheckpointError(f"{where}: shape must be a list of at least one whole number >= 0, got {shorten(shape)}")
        if not isinstance(dtype, str) or dtype not in NAMED_DTYPES:
            raise CheckpointError(f"{where}: dtype must be one of {', '.join(NAMED_DTYPES)}, got {shorten(dtype)}")
        try:
            Scheme.parse(fields["scheme"])
        except TritonQError as error:
            raise CheckpointError(f"{where}: {error}") from error
        return cls(scheme=fields["scheme"], shape=tuple(shape), dtype=NAMED_DTYPES[dtype])


def stored_names(name: str, record: Record | None) -> list[str]:
    """Names of the tensors that weight ``name`` may take in a file; just its own where it is not quantized."""
    return [name + suffix for suffix in _SUFFIXES.values()] if record else [name]


def to_tensors(name: str, q: QTensor) -> dict[str, torch.Tensor]:
    """The tensors of ``q`` under their names in a file."""
    return {name + _SUFFIXES[part]: tensor for part, tensor in q.tensors().items()}


def from_tensors(name: str, record: Record, tensors: dict[str, torch.Tensor]) -> QTensor:
    """The inverse of :func:`to_tensors`; ``tensors`` may hold others too. Every shape and dtype is checked."""
    parts = {part: tensors[name + suffix] for part, suffix in _SUFFIXES.items() if name + suffix in tensors}
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


def read_qtensor(file: TensorFile, name: str, record: Record) -> QTensor:
    """Read quantized weight ``name`` of ``file``, as a matrix (see :class:`Record`); every shape and dtype is checked."""
    tensors = {stored: file.read(stored) for stored in stored_names(name, record) if stored in file.entries}
    try:
        return from_tensors(name, record, tensors)
    except TritonQError as error:
        raise CheckpointError(f"{file.path}: weight {name!r}: {error}") from error


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
        "dtype": str(dtype).removeprefix("torch."),
        "overrides": {name: record.scheme for name, record in records.items() if record.scheme != commonest},
        "kept": kept,
    }
