"""Writing safetensors files tensor by tensor, without holding a file in memory, and so that no half-written file is ever seen."""
from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..files import PARTIAL, sync, sync_folder, write_atomic
from .tensorfile import DTYPE_NAMES, DTYPES, MAX_HEADER, is_unicode

_WRITE = 1 << 26
_FAR = 10**18  # as wide as any offset
Stored = dict[str, tuple[str, tuple[int, ...]]]  # of a tensor: the name of its dtype, its shape


class FileWriter:
    """Streams tensors into ``path``: they go to ``path + ".partial"``, which ``finish()`` syncs and renames.

    The header comes first in the file but is known last, so ``tensors`` (all that will be added) reserve its room; what is not
    needed stays blank, as the format allows. Every tensor starts on a multiple of its element size: those whose size is no
    multiple of 8 bytes (rare and small: odd shapes) wait in memory and go last.

    Leaving the ``with`` block without ``finish()`` removes the partial file.
    """

    def __init__(self, path: Path, tensors: Stored, metadata: dict[str, str]):
        self.path, self.metadata = path, metadata
        self.partial = path.with_name(path.name + PARTIAL)
        self._base = 8 + header_room(path, tensors, metadata)
        self._entries: dict[str, dict] = {}
        self._tail: dict[str, tuple[str, list[int], bytearray]] = {}
        self._position = 0
        self._file = open(self.partial, "wb")  # noqa: SIM115 (closed by __exit__)
        self._file.seek(self._base)

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self.partial.unlink(missing_ok=True)  # not there where finish() has renamed it

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append ``tensor`` (moved to the CPU, made contiguous)."""
        dtype, shape = described(self.path, name, tensor)
        tensor = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
        self.add_bytes(name, dtype, shape, [memoryview(raw)])

    def add_bytes(self, name: str, dtype: str, shape: Iterable[int], chunks: Iterable) -> None:
        """Append a tensor given as raw bytes."""
        if name in self._entries or name in self._tail:
            raise CheckpointError(f"{self.path}: two tensors are named {name!r}")
        shape = list(shape)
        if prod(shape) * DTYPES[dtype][0] % 64:
            self._tail[name] = dtype, shape, bytearray()
            for chunk in chunks:
                self._tail[name][2].extend(chunk)
        else:
            self._append(name, dtype, shape, chunks)

    def _append(self, name: str, dtype: str, shape: list[int], chunks: Iterable) -> None:
        start = self._position
        for chunk in chunks:
            for offset in range(0, len(chunk), _WRITE):
                self._file.write(chunk[offset : offset + _WRITE])
            self._position += len(chunk)
        self._entries[name] = _entry(dtype, shape, start, self._position)

    def finish(self) -> dict:
        """Write the waiting tensors and the header, sync, rename. Returns ``{"size", "header_hash"}`` of the file."""
        for name, (dtype, shape, raw) in sorted(self._tail.items(), key=lambda item: -DTYPES[item[1][0]][0]):
            self._append(name, dtype, shape, [raw])
        text = _header(self.metadata, self._entries).ljust(self._base - 8)
        if len(text) != self._base - 8:
            raise CheckpointError(f"{self.path}: the header takes {len(text)} bytes, {self._base - 8} were reserved for it")
        prefix = struct.pack("<Q", len(text))
        self._file.seek(0)
        self._file.write(prefix + text)
        sync(self._file)
        self._file.close()
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)
        return {"size": self._base + self._position, "header_hash": hashlib.sha256(prefix + text).hexdigest()}


def header_room(path: Path, tensors: Stored, metadata: dict[str, str]) -> int:
    """Bytes that a header over ``tensors`` needs at most, a multiple of 8; CheckpointError where no reader would open the file."""
    unreadable = next((name for name in tensors if not is_unicode(name)), None)
    if unreadable is not None:
        raise CheckpointError(f"{path}: tensor {unreadable!r}: the name is not valid Unicode, which safetensors files need; rename it")
    entries = {name: _entry(dtype, shape, _FAR, _FAR) for name, (dtype, shape) in tensors.items()}
    room = -(-len(_header(metadata, entries)) // 8) * 8
    if room > MAX_HEADER:
        rule = f"its header would take {room} bytes for {len(tensors)} tensors, over the format's limit of {MAX_HEADER}"
        raise CheckpointError(f"{path}: {rule}; spread the tensors over several files")
    return room


def described(path: Path, name: str, tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """Name of the dtype and shape of ``tensor`` as a header says them; CheckpointError where a file cannot hold it."""
    if tensor.dtype not in DTYPE_NAMES:
        raise CheckpointError(f"{path}: tensor {name!r}: safetensors has no dtype for {tensor.dtype}")
    if tensor.is_meta or tensor.layout is not torch.strided:
        what = "is on the meta device and has no values" if tensor.is_meta else f"has the layout {tensor.layout}"
        raise CheckpointError(f"{path}: tensor {name!r} {what}; safetensors holds dense values")
    return DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write ``tensors`` into one file, atomically."""
    with FileWriter(path, {name: described(path, name, tensor) for name, tensor in tensors.items()}, metadata) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish()


def write_json(path: Path, value, *, allow_nan: bool = False) -> None:
    """Write ``value`` readably; ``allow_nan`` is for what another program wrote with NaN and Infinity, as Python's json does."""
    write_atomic(path, _dump(value, indent=2, allow_nan=allow_nan) + b"\n")


def _entry(dtype: str, shape: Iterable[int], start: int, stop: int) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def _header(metadata: dict[str, str], entries: dict[str, dict]) -> bytes:
    return _dump(({"__metadata__": metadata} if metadata else {}) | entries, separators=(",", ":"))


def _dump(value, **how) -> bytes:
    """JSON in UTF-8. Half a surrogate, which UTF-8 cannot hold, becomes the escape that reads back as it."""
    return json.dumps(value, ensure_ascii=False, **how).encode(errors="backslashreplace")
