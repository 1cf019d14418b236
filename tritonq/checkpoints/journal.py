"""What a quantize job has finished, on disk, so that a killed job goes on where it stopped and never mixes two jobs."""
from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..errors import CheckpointError
from ..files import PARTIAL
from .rules import Rules
from .source import INDEX_SUFFIX, JOURNAL, REPORT, Source
from .tensorfile import open_file, read_json
from .writer import write_json

try:
    import fcntl
except ImportError:  # not a POSIX system: two jobs on one folder are not noticed there
    fcntl = None

FORMAT_VERSION = 1


def identity(source: Source, rules: Rules) -> dict:
    """What makes two jobs the same job: the choices, and every source file's name, size, time and header."""
    files = [{"name": f.path.name, "size": f.size, "mtime_ns": f.mtime_ns, "header_sha256": f.header_hash} for f in source.files]
    choices = {name: [list(item) if isinstance(item, tuple) else item for item in value] if isinstance(value, tuple) else value
               for name, value in asdict(rules).items()}  # fmt: skip
    return {"format_version": FORMAT_VERSION, "rules": choices, "source": files}


class Journal:
    """The state of the job in ``folder``. ``finished`` maps an output file to ``{"size", "header_hash", "tensors"}``."""

    def __init__(self, folder: Path, job: dict, finished: dict | None = None):
        self.folder, self.job, self.finished = folder, job, finished or {}

    @classmethod
    def open(cls, folder: Path, job: dict, *, overwrite: bool = False) -> Journal:
        """Start or continue ``job`` in ``folder``; another job's output is refused unless ``overwrite`` (which removes it)."""
        known = next((path for path in (folder / JOURNAL, folder / REPORT) if path.is_file()), None)
        state = read_json(known) if known and not overwrite else None
        if state is not None:
            difference = _difference(state.get("job"), job)
            if difference:
                raise CheckpointError(f"{folder}: holds a job with another {difference}; --overwrite redoes it, or choose another folder")
            if not isinstance(state.get("files"), dict):
                raise CheckpointError(f"{known}: 'files' must be an object; --overwrite starts anew")
        elif overwrite:
            _clear(folder, known, {file["name"] for file in job["source"]})
        elif any(path.name != JOURNAL + PARTIAL for path in folder.iterdir()):
            raise CheckpointError(f"{folder}: is not empty and holds no tritonq job; --overwrite writes into it all the same")
        for path in folder.glob(f"*{PARTIAL}"):
            path.unlink()
        journal = cls(folder, job, state.get("files") if state else None)
        journal._save()
        return journal

    def rows(self, name: str) -> list[dict] | None:
        """The report rows of output file ``name`` if it is finished and still what was written, else None."""
        record = self.finished.get(name)
        path = self.folder / name
        if not isinstance(record, dict) or not path.is_file() or path.stat().st_size != record.get("size"):
            return None
        try:
            same = open_file(path).header_hash == record.get("header_hash")
        except CheckpointError:
            return None
        return record.get("tensors") if same else None

    def finish(self, name: str, written: dict, rows: list[dict]) -> None:
        """Record that output file ``name`` is complete."""
        self.finished[name] = {**written, "tensors": rows}
        self._save()

    def close(self, report: dict) -> None:
        """Write the report, which takes over the record of the job, and drop the journal."""
        write_json(self.folder / REPORT, report)
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def _save(self) -> None:
        write_json(self.folder / JOURNAL, {"job": self.job, "files": self.finished})


@contextmanager
def locked(folder: Path):
    """Hold ``folder`` for this process; another job on it is an error. The lock dies with the process."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(f"{folder}: another tritonq job is writing here; wait for it, or choose another output folder") from error
        yield
    finally:
        os.close(descriptor)


def _clear(folder: Path, known: Path | None, outputs: set[str]) -> None:
    """Remove what an earlier job wrote into ``folder``; weights of another origin would be read as part of ours, so they are refused."""
    try:
        old = read_json(known).get("files") if known else None
    except CheckpointError:  # a damaged journal does not stop --overwrite
        old = None
    ours = [name for name in old or () if Path(name).name == name and name.endswith(".safetensors")] if isinstance(old, dict) else []
    for path in [folder / name for name in (*ours, JOURNAL, REPORT)] + (list(folder.glob(f"*{INDEX_SUFFIX}")) if known else []):
        path.unlink(missing_ok=True)
    for path in (*folder.glob("*.safetensors"), *folder.glob(f"*{INDEX_SUFFIX}")):
        if path.name not in outputs:
            raise CheckpointError(f"{folder}: holds other weights ({path.name}), which would count as part of the result; move them away")


def _difference(old, new: dict) -> str | None:
    """What of two jobs differs, as words, or None."""
    if not isinstance(old, dict) or old.get("format_version") != new["format_version"]:
        return "format version"
    if old.get("rules") != new["rules"]:
        def words(rules):
            if not isinstance(rules, dict):
                return "unreadable"
            schemes = [rules.get("default") or ""] + [f"{p}={s}" for p, s in rules.get("patterns", [])]
            return " ".join([s for s in schemes if s] + [f"--{o} {g}" for o in ("include", "exclude") for g in rules.get(o, [])])

        return f"scheme or choice ({words(old.get('rules'))}, now {words(new['rules'])})"
    if old.get("source") != new["source"]:
        return "source, or the source changed since"
    return None
