"""One safetensors file, read without trust: every rule of the format is checked before a byte of data is used."""
from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from ..errors import CheckpointError, InvalidProblemError, UnsupportedError, shorten
from ..shards import Cut

MAX_HEADER = 100_000_000  # the limit of the format's own library

# name in the header -> (bits of one element, torch dtype or None where this torch has none)
DTYPES: dict[str, tuple[int, torch.dtype | None]] = {
    "BOOL": (8, torch.bool),
    "U8": (8, torch.uint8),
    "I8": (8, torch.int8),
    "I16": (16, torch.int16),
    "U16": (16, torch.uint16),
    "F16": (16, torch.float16),
    "BF16": (16, torch.bfloat16),
    "I32": (32, torch.int32),
    "U32": (32, torch.uint32),
    "F32": (32, torch.float32),
    "I64": (64, torch.int64),
    "U64": (64, torch.uint64),
    "F64": (64, torch.float64),
    "C64": (64, torch.complex64),
    "F8_E4M3": (8, torch.float8_e4m3fn),
    "F8_E5M2": (8, torch.float8_e5m2),
    "F8_E4M3FNUZ": (8, torch.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (8, torch.float8_e5m2fnuz),
    "F8_E8M0": (8, torch.float8_e8m0fnu),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
}
DTYPE_NAMES = {dtype: name for name, (_, dtype) in DTYPES.items() if dtype is not None}
CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file: dtype by its name in the header, shape, and where its bytes are (offsets into the file)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return DTYPES[self.dtype][1]

    @property
    def is_float(self) -> bool:
        """One of the dtypes that can be quantized."""
        return self.dtype in ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorFile:
    """A validated safetensors file. ``entries`` are in the order of the file; ``header_hash`` is the sha256 of its header."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]
    size: int
    mtime_ns: int
    header_hash: str

    def error(self, text: str) -> CheckpointError:
        """What is wrong with this file, to be raised."""
        return CheckpointError(f"{self.path}: {text}")

    def chunks(self, name: str, size: int = CHUNK) -> Iterator[bytes]:
        """The raw bytes of a tensor, in pieces."""
        entry = self.entries[name]
        with open(self.path, "rb") as file:
            file.seek(entry.start)
            left = entry.nbytes
            while left:
                data = file.read(min(size, left))
                if not data:
                    raise self.error(f"tensor {name!r} ends {left} bytes early: the file was cut while it was read")
                left -= len(data)
                yield data

    def read(self, name: str) -> torch.Tensor:
        """A tensor, read into memory of its own (the file is not mapped, so memory stays what the tensor takes)."""
        entry = self.entries[name]
        return self._read(entry, entry.start, entry.shape)

    def read_cut(self, name: str, cut: Cut) -> torch.Tensor:
        """A piece of a tensor, as :meth:`tritonq.shards.Cut.take` would give it; the rest of the tensor is not read."""
        entry = self.entries[name]
        if entry.numel != prod(cut.view):
            raise self.error(f"tensor {name!r} has shape {list(entry.shape)}, expected {list(cut.view)}")
        runs, inner = prod(cut.view[: cut.axis]), prod(cut.view[cut.axis + 1 :]) * DTYPES[entry.dtype][0] // 8
        shape = (*cut.view[: cut.axis], cut.length, *cut.view[cut.axis + 1 :])
        return self._read(entry, entry.start + cut.start * inner, shape, runs, cut.view[cut.axis] * inner)

    def _read(self, entry: Entry, start: int, shape: tuple[int, ...], runs: int = 1, stride: int = 0) -> torch.Tensor:
        """A tensor of ``shape`` from ``runs`` pieces of the file, ``stride`` bytes apart."""
        bits, dtype = DTYPES[entry.dtype]
        if dtype is None:
            raise UnsupportedError(f"{self.path}: tensor {entry.name!r} is {entry.dtype}, which is copied but cannot be read")
        buffer = torch.empty(prod(shape) * bits // 8, dtype=torch.uint8, device="cpu")
        if buffer.numel():
            with open(self.path, "rb", buffering=0) as file:
                for i, piece in enumerate(buffer.view(runs, -1)):
                    file.seek(start + i * stride)
                    self._fill(file, memoryview(piece.numpy()), entry.name)
        return buffer.view(dtype).reshape(shape)

    def _fill(self, file, view: memoryview, name: str) -> None:
        done = 0
        while done < len(view):
            count = file.readinto(view[done : done + (1 << 30)])
            if not count:
                raise self.error(f"tensor {name!r} ends {len(view) - done} bytes early: the file was cut while it was read")
            done += count


def checked_path(path: str | os.PathLike) -> Path:
    """``path`` as a Path. An empty text, which pathlib takes for the current folder, is refused like anything that is no path."""
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidProblemError(f"a path is text or os.PathLike, got {type(path).__name__} {path!r}"[:200])
    if path == "":
        raise InvalidProblemError("a path is empty; write '.' for the current folder")
    if "\0" in os.fsdecode(path):
        raise InvalidProblemError(f"a path must hold no zero byte, which ends it for the system, got {path!r:.150}; take it out")
    return Path(path)


def open_file(path: str | Path) -> TensorFile:
    """Open and validate the safetensors file at ``path``; CheckpointError names the file, the rule and the value."""
    path = checked_path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{path}: has {len(prefix)} bytes, a safetensors file starts with 8 bytes of header length")
            length = struct.unpack("<Q", prefix)[0]
            if length > MAX_HEADER:
                raise CheckpointError(f"{path}: header length {length} is over the format's limit of {MAX_HEADER}: not a safetensors file")
            if 8 + length > stat.st_size:
                raise CheckpointError(f"{path}: header length {length} is more than the file's {stat.st_size} bytes hold: truncated?")
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(raw) < length:
        raise CheckpointError(f"{path}: header ends after {len(raw)} of {length} bytes")
    entries, metadata = parse_header(raw, stat.st_size - 8 - length, str(path))
    return TensorFile(
        path=path,
        entries=entries,
        metadata=metadata,
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        header_hash=hashlib.sha256(prefix + raw).hexdigest(),
    )


def parse_header(raw: bytes, data_size: int, where: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """``(entries, metadata)`` of a header; ``data_size`` bytes follow it. Offsets of the entries count from the start of the file."""
    header = load_json(raw, f"{where}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{where}: header: __metadata__ must map text to text, got {shorten(metadata)}")
    base = 8 + len(raw)
    entries = sorted((_entry(name, fields, data_size, base, where) for name, fields in header.items()), key=lambda e: (e.start, e.stop))
    position, previous = base, None
    for entry in entries:
        if entry.start != position:
            what = "overlaps" if entry.start < position else f"leaves a hole of {entry.start - position} bytes after"
            raise CheckpointError(f"{where}: tensor {entry.name!r} {what} {shorten(previous or 'the header')}; data is contiguous")
        position, previous = entry.stop, entry.name
    if position != base + data_size:
        raise CheckpointError(f"{where}: {base + data_size - position} bytes after the last tensor belong to no tensor")
    return {e.name: e for e in entries}, metadata


def _entry(name: str, fields, data_size: int, base: int, where: str) -> Entry:
    what = f"{where}: tensor {shorten(name)}"
    if not is_unicode(name):
        raise CheckpointError(f"{what}: the name is not valid Unicode")
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{what}: needs exactly dtype, shape and data_offsets, got {shorten(fields)}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{what}: unknown dtype {shorten(dtype)}; known: {' '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(_is_size(n) for n in shape):
        raise CheckpointError(f"{what}: shape must be a list of whole numbers >= 0, got {shorten(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise CheckpointError(f"{what}: data_offsets must be two whole numbers >= 0, got {shorten(offsets)}")
    start, stop = offsets
    if start > stop or stop > data_size:
        raise CheckpointError(f"{what}: data_offsets {offsets} must rise and end within the {data_size} bytes of data: truncated?")
    bits = prod(shape) * DTYPES[dtype][0]
    if bits % 8 or stop - start != bits // 8:
        raise CheckpointError(f"{what}: {dtype} {shorten(shape)} takes {bits / 8:g} bytes, its data_offsets {offsets} hold {stop - start}")
    return Entry(name=name, dtype=dtype, shape=tuple(shape), start=base + start, stop=base + stop)


def load_json(raw: bytes | str, where: str) -> dict:
    """A JSON object from ``raw``; duplicate keys are refused."""

    def unique(pairs):
        result = {}
        for key, value in pairs:
            if key in result:
                raise CheckpointError(f"{where}: {shorten(key)} appears twice")
            result[key] = value
        return result

    try:
        value = json.loads(raw.decode() if isinstance(raw, bytes) else raw, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{where} is not valid JSON: {reason}"[:300]) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must be a JSON object, got {shorten(value)}")
    return value


def read_json(path: Path) -> dict:
    """The JSON object in the file at ``path``."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return load_json(raw, str(path))


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be written: it holds no half of a surrogate pair."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_size(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
