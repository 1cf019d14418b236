"""A checkpoint on disk as one set of tensors: a safetensors file, a folder with one, or a folder with an index over several."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError, shorten
from ..files import PARTIAL
from .tensorfile import Entry, TensorFile, checked_path, open_file, read_json

INDEX_SUFFIX = ".safetensors.index.json"
JOURNAL = "tritonq_job.json"  # in a folder that a job has not finished
REPORT = "tritonq_report.json"
MANIFEST = "tritonq.json"  # beside the weights of our own family
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", ".ot", ".tflite")
_LARGEST_CARRIED = 64 << 20
Progress = Callable[[int, int, str], None]  # told of what is done, of all there is, and the name of what comes next


@dataclass(frozen=True, kw_only=True)
class Source:
    """Validated files and, over all of them, ``owner``: tensor name -> file. ``folder`` is None for a single file."""

    path: Path
    folder: Path | None
    files: tuple[TensorFile, ...]
    owner: dict[str, TensorFile]
    config: dict
    index: Path | None = None

    def __len__(self) -> int:
        return len(self.owner)

    def __contains__(self, name: str) -> bool:
        return name in self.owner

    def entry(self, name: str) -> Entry:
        if name not in self.owner:
            raise CheckpointError(f"{self.path}: no tensor {name!r} among its {len(self.owner)}")
        return self.owner[name].entries[name]

    def read(self, name: str) -> torch.Tensor:
        self.entry(name)
        return self.owner[name].read(name)

    @property
    def quant_method(self) -> str | None:
        """What config.json says quantized the weights."""
        config = self.config.get("quantization_config")
        return config.get("quant_method") if isinstance(config, dict) else None

    @property
    def entries(self) -> list[Entry]:
        """All tensors, file after file."""
        return [entry for file in self.files for entry in file.entries.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries)

    def carried(self) -> tuple[list[Path], list[Path]]:
        """Files beside the weights, relative to the folder: ``(config, tokenizer and the like, what a copy leaves out)``.

        Left out are other weights and files over 64 MiB. Hidden files and folders below the first level are not looked at.
        """
        own = {self.index, *(file.path for file in self.files)}
        carry: list[Path] = []
        leave: list[Path] = []
        if self.folder is None:
            return carry, leave
        for path in sorted([*self.folder.glob("*"), *self.folder.glob("*/*")]):
            relative = path.relative_to(self.folder)
            if any(part.startswith(".") for part in relative.parts) or not path.is_file():
                continue
            name = relative.name
            if name.endswith((PARTIAL, JOURNAL, REPORT)) or name == MANIFEST or path in own:
                continue
            weights = name.endswith((".safetensors", INDEX_SUFFIX, ".index.json", *_OTHER_WEIGHTS))
            (leave if weights or path.stat().st_size > _LARGEST_CARRIED else carry).append(relative)
        return carry, leave


def open_source(path: str | Path) -> Source:
    """Open the checkpoint at ``path`` (a ``.safetensors`` file, an index, or a folder) and validate headers and index."""
    path = checked_path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    _refuse_unfinished(path if path.is_dir() else path.parent)
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _open_index(path.parent, path)
    file = open_file(path)
    return Source(path=path, folder=None, files=(file,), owner=dict.fromkeys(file.entries, file), config={})


def of_files(paths: Iterable[str | Path]) -> Source:
    """Files that belong together, as a framework found them; no configuration beside them is read."""
    files = tuple(open_file(path) for path in paths)
    for folder in {file.path.parent for file in files}:
        _refuse_unfinished(folder)
    if not files:
        raise CheckpointError("no safetensors files were given")
    owner: dict[str, TensorFile] = {}
    for file in files:
        for name in file.entries:
            if name in owner:
                raise CheckpointError(f"{file.path}: tensor {name!r} is in {owner[name].path.name} too")
            owner[name] = file
    return Source(path=files[0].path, folder=None, files=files, owner=owner, config={})


def _refuse_unfinished(folder: Path) -> None:
    if (folder / JOURNAL).is_file():
        raise CheckpointError(f"{folder}: holds an unfinished job ({JOURNAL}); run the same command again to finish it")


def _open_folder(folder: Path) -> Source:
    files = sorted(p for p in folder.glob("*.safetensors") if p.is_file())
    indexes = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    default = folder / f"model{INDEX_SUFFIX}"
    if default in indexes:
        return _open_index(folder, default)
    if len(indexes) > 1:
        raise CheckpointError(f"{folder}: several indexes ({', '.join(p.name for p in indexes)}); name the one to open")
    if indexes:
        return _open_index(folder, indexes[0])
    if len(files) == 1:
        file = open_file(files[0])
        return Source(path=folder, folder=folder, files=(file,), owner=dict.fromkeys(file.entries, file), config=read_config(folder))
    if files:
        names = ", ".join(p.name for p in files[:4])
        raise CheckpointError(f"{folder}: {len(files)} safetensors files ({names}) and no model{INDEX_SUFFIX}; name the one file to open")
    others = sorted(p.name for p in folder.iterdir() if p.name.endswith(_OTHER_WEIGHTS))
    way_out = f"; {others[0]} is not read here, save it as safetensors first" if others else ""
    raise CheckpointError(f"{folder}: no .safetensors file in this folder{way_out}")


def _open_index(folder: Path, index: Path) -> Source:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names, got {shorten(weight_map)}")
    files: dict[str, TensorFile] = {}
    for name, filename in weight_map.items():
        if filename in files:
            continue
        if Path(filename).name != filename or not filename.endswith(".safetensors"):
            raise CheckpointError(f"{index}: tensor {name!r} is said to be in {shorten(filename)}, which is no file name in this folder")
        if not (folder / filename).is_file():
            raise CheckpointError(f"{index}: names the file {filename}, which is missing")
        files[filename] = open_file(folder / filename)
    owner: dict[str, TensorFile] = {}
    for filename, file in sorted(files.items()):
        for name in file.entries:
            if name in owner:
                raise CheckpointError(f"{index}: tensor {name!r} is in two files, {owner[name].path.name} and {filename}")
            if name not in weight_map:
                raise CheckpointError(f"{index}: {filename} holds tensor {name!r}, which the index does not list")
            if weight_map[name] != filename:
                raise CheckpointError(f"{index}: tensor {name!r} is said to be in {weight_map[name]}, it is in {filename}")
            owner[name] = file
    missing = next((name for name in weight_map if name not in owner), None)
    if missing is not None:
        raise CheckpointError(f"{index}: tensor {missing!r} is said to be in {weight_map[missing]}, which does not hold it")
    ordered = tuple(file for _, file in sorted(files.items()))
    return Source(path=folder, folder=folder, files=ordered, owner=owner, config=read_config(folder), index=index)


def read_config(folder: Path) -> dict:
    """config.json of a folder, empty where there is none."""
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}
