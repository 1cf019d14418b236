"""Writing safetensors files tensor by tensor, without holding a file in memory, and so that no half-written file is ever seen."""
from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..files import PARTIAL, sync, sync_folder, write_atomic
from .tensorfile import DTYPE_NAMES

_WRITE = 1 << 26


class FileWriter:
    """Streams tensors into ``path``: they go to ``path + ".partial"``, which ``finish()`` syncs and renames.

    The header comes first in the file but is known last, so ``names`` (all that will be added) reserve its room; what is not
    needed stays blank, as the format allows. Every tensor starts on a multiple of its element size: those whose size is no
    multiple of 8 bytes (rare and small: odd shapes) wait in memory and go last.

    Leaving the ``with`` block without ``finish()`` removes the partial file.
    """

    def __init__(self, path: Path, names: Iterable[str], metadata: dict[str, str]):
        self.path, self.metadata = path, metadata
        self.partial = path.with_name(path.name + PARTIAL)
        # Per tensor: its name, punctuation, a dtype name, two offsets and up to eight sizes of 20 digits.
        reserve = len(_dump({"__metadata__": metadata})) + sum(len(_dump(name)) + 280 for name in names)
        self._base = -(-(8 + reserve) // 8) * 8
        self._entries: dict[str, dict] = {}
        self._tail: list[tuple[str, str, list[int], bytes, int]] = []
        self._position = 0
        self._file = open(self.partial, "wb")  # noqa: SIM115 (closed by finish or __exit__)
        self._file.seek(self._base)

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *_) -> None:
        if not self._file.closed:
            self._file.close()
            self.partial.unlink(missing_ok=True)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append ``tensor`` (moved to the CPU, made contiguous)."""
        if tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"{self.path}: tensor {name!r}: safetensors has no dtype for {tensor.dtype}")
        tensor = tensor.detach().to("cpu").contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
        self.add_bytes(name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), [memoryview(raw)], tensor.element_size())

    def add_bytes(self, name: str, dtype: str, shape: list[int], chunks: Iterable, align: int = 8) -> None:
        """Append a tensor given as raw bytes; ``align`` is its element size."""
        if name in self._entries or any(name == waiting[0] for waiting in self._tail):
            raise CheckpointError(f"{self.path}: two tensors are named {name!r}")
        start = self._position
        for chunk in chunks:
            for offset in range(0, len(chunk), _WRITE):
                self._file.write(chunk[offset : offset + _WRITE])
            self._position += len(chunk)
        if self._position % 8 == 0:
            self._entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, self._position]}
            return
        self._file.flush()
        with open(self.partial, "rb") as back:
            back.seek(self._base + start)
            self._tail.append((name, dtype, shape, back.read(self._position - start), align))
        self._position = start
        self._file.seek(self._base + start)
        self._file.truncate()

    def finish(self) -> dict:
        """Write the waiting tensors and the header, sync, rename. Returns ``{"size", "header_hash"}`` of the file."""
        for name, dtype, shape, raw, _ in sorted(self._tail, key=lambda item: -item[4]):
            self._file.write(raw)
            self._entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [self._position, self._position + len(raw)]}
            self._position += len(raw)
        header = ({"__metadata__": self.metadata} if self.metadata else {}) | self._entries
        text = _dump(header).ljust(self._base - 8)
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


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict:
    """Write ``tensors`` into one file, atomically."""
    with FileWriter(path, tensors, metadata) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        return writer.finish()


def write_json(path: Path, value) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _dump(value) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
