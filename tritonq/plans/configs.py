"""Floor 4. Tuned configs: which entry of ``autotune_configs`` serves a problem, and what is taken where none does.

A file holds the configs of one kernel on one kind of device, ``<arch>x<multiprocessors>/<kernel>.json`` (:mod:`config_file`). Folders are
looked at in this order: ``$TRITONQ_CONFIG_DIR``, then the package's own. Nothing is read at import, and a file once, when its kernel is
first planned for; a file that changes is read again.
"""
from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from .._triton import RELEASE
from ..dtypes import dtype_name
from ..errors import ConfigFileError
from .config_file import ConfigFile, Entry, read
from .core import Target, multiprocessors
from .descriptors import Desc
from .registry import KernelEntry
from .space import Config

VARIABLE = "TRITONQ_CONFIG_DIR"
# How far a shape may be for its entry to serve: n and k together off by a factor of two. A judgement, not a measurement.
FARTHEST = 1.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A config and where it comes from, in words for ``explain``. ``us``: microseconds measured for this very problem, else None."""

    config: Config
    origin: str
    us: float | None = None


def choose(kernel: KernelEntry, desc: Desc) -> Choice:
    """The tuned entry for the problem, else that of the nearest shape, else the heuristic's config.

    Raises:
        ConfigFileError: a file for this device and kernel breaks a rule of the format; the text names file and line.
    """
    if desc.target.backend == "triton" and desc.target.arch is not None:
        files = [(root, file) for root in roots() if (file := file_for(root, kernel.name, desc.target))]
        for farthest in (0.0, FARTHEST):
            for root, file in files:
                for distance, entry in file.near(desc, farthest):
                    if kernel.config_ok(desc, entry.config):
                        here = not distance and entry.measured and file.multiprocessors == multiprocessors(desc.target)
                        origin = _origin(root, file, entry, kernel, desc)
                        return Choice(config=entry.config, origin=origin, us=entry.us if here else None)
    return Choice(config=kernel.config(desc), origin="heuristic")


def roots() -> list[Path]:
    """The folders that are looked at, in order.

    Raises:
        ConfigFileError: the variable names no folder.
    """
    own = os.environ.get(VARIABLE)
    if own and not Path(own).is_dir():
        raise ConfigFileError(f"{VARIABLE}={own!r} is no folder; make it, or unset the variable")
    return [Path(path) for path in (own, shipped()) if path]


@cache
def shipped() -> Path | None:
    """The configs that come with the package: inside it once it is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next((path for path in (package / "_autotune_configs", package.parent / "autotune_configs") if path.is_dir()), None)


def file_for(root: Path, kernel: str, target: Target) -> ConfigFile | None:
    """The file for ``kernel`` in ``root``: for devices like ``target``, of those with another number of multiprocessors the nearest."""
    count = multiprocessors(target)
    sizes = {int(match[1]): path for path in _folders(root) if (match := re.fullmatch(rf"{target}x([0-9]+)", path.name))}
    for size in sorted(sizes, key=lambda size: (abs(size - count), size)):
        path = sizes[size] / f"{kernel}.json"
        try:
            return _read(path, path.stat().st_mtime_ns)
        except FileNotFoundError:
            continue
    return None


def _folders(root: Path) -> list[Path]:
    return [Path(found.path) for found in os.scandir(root) if found.is_dir()]


@lru_cache(maxsize=256)
def _read(path: Path, _changed: int) -> ConfigFile:
    return read(path)


def _origin(root: Path, file: ConfigFile, entry: Entry, kernel: KernelEntry, desc: Desc) -> str:
    """Where a config comes from, and every way in which the entry is not for this very problem, device and software."""
    notes = [] if entry.measured else ["a model's prediction, not measured"]
    rows = "" if entry.m is None else f" m={entry.m}"
    if (entry.n, entry.k) != (desc.n, desc.k):
        notes.append(f"nearest shape, {entry.n} x {entry.k}")
    if entry.dtype != dtype_name(desc.dtype):
        notes.append(f"for {entry.dtype}")
    if file.multiprocessors != multiprocessors(desc.target):
        notes.append(f"for {file.multiprocessors} multiprocessors, here are {multiprocessors(desc.target)}")
    if file.revision != kernel.revision:
        notes.append(f"for revision {file.revision} of the kernel")
    written = file.sources[entry.source].triton
    if written and RELEASE and tuple(map(int, written.split(".")[:2])) != RELEASE:
        notes.append(f"tuned on Triton {written}")
    where = VARIABLE if root != shipped() else "shipped"
    return f"{where} {file.place.as_posix()}{rows}" + (f" ({'; '.join(notes)})" if notes else "")
