"""Floor 0. Files that are seen whole or not at all."""
from __future__ import annotations

import os
from pathlib import Path

from .errors import InvalidProblemError

PARTIAL = ".partial"  # suffix of a file that is being written


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the whole new one; nothing is left where that fails."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            sync(file)
        os.replace(partial, path)
    except Exception:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def writable(text: str) -> Path:
    """The path of a file that :func:`write_atomic` can write, asked before the work that fills it.

    Raises:
        InvalidProblemError: no name of a file, a folder that does not exist or may not be written, or something there that is no file.
    """
    path = Path(text)
    if not path.name or path.is_dir():
        raise InvalidProblemError(f"{text or 'an empty name'}: is no name of a file; write one such as {path / 'results.json'}")
    if not path.parent.is_dir():
        raise InvalidProblemError(f"{text}: there is no folder {path.parent}; make it first")
    if path.exists() and not path.is_file():
        raise InvalidProblemError(f"{text}: is a device or pipe, which cannot be replaced by a file; name a file")
    if not os.access(path.parent, os.W_OK):
        raise InvalidProblemError(f"{text}: the folder {path.parent} may not be written; name another")
    return path


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` last through a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync(file) -> None:
    """Have what was written to an open file reach the disk."""
    file.flush()
    os.fsync(file.fileno())
