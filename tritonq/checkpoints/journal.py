"""What a job has finished, on disk, so that a killed job goes on where it stopped and never mixes two jobs."""
from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, shorten
from ..files import PARTIAL
from .source import INDEX_SUFFIX, JOURNAL, MANIFEST, REPORT, Source
from .tensorfile import open_file, read_json
from .writer import write_json

try:
    import fcntl
except ImportError:  # not a POSIX system: two jobs on one folder are not noticed there
    fcntl = None

FORMAT_VERSION = 2


def identity(source: Source, choices: dict, *, tied: bool) -> dict:
    """What makes two jobs the same job: the choices, whether lm_head is tied, and every source file's name, size, time and header."""
    files = [{"name": f.path.name, "size": f.size, "mtime_ns": f.mtime_ns, "header_sha256": f.header_hash} for f in source.files]
    return {"format_version": FORMAT_VERSION, "rules": choices, "tied": tied, "source": files}


class Journal:
    """The state of the job in ``folder``. ``finished`` maps an output file to ``{"size", "header_hash", "tensors", "tensors_hash"}``;
    ``carried`` are the names of the other files that it copies.
    """

    def __init__(self, folder: Path, job: dict, carried: list[str], finished: dict):
        self.folder, self.job, self.carried, self.finished = folder, job, carried, finished

    @classmethod
    def open(cls, folder: Path, job: dict, carried: list[str], *, overwrite: bool = False) -> Journal:
        """Start or continue ``job`` in ``folder``; another job's output is refused unless ``overwrite`` (which removes it)."""
        known = next((path for path in (folder / JOURNAL, folder / REPORT) if path.is_file()), None)
        outputs, finished = [file["name"] for file in job["source"]], {}
        if overwrite:
            _clear(folder, known, outputs)
        elif known:
            state = read_json(known)
            difference = _difference(state.get("job"), job)
            if difference:
                raise CheckpointError(f"{folder}: holds a job with another {difference}; --overwrite redoes it, or choose another folder")
            if not isinstance(state.get("files"), dict):
                raise CheckpointError(f"{known}: 'files' must be an object; --overwrite starts anew")
            finished = {name: record for name, record in state["files"].items() if name in outputs}
        elif any(path.name != JOURNAL + PARTIAL for path in folder.iterdir()):
            raise CheckpointError(f"{folder}: is not empty and holds no tritonq job; --overwrite writes into it all the same")
        journal = cls(folder, job, carried, finished)
        journal._save()
        return journal

    def rows(self, name: str) -> list[dict] | None:
        """The report rows of output file ``name`` if it is finished and has the size and header that it was written with, else
        None. Its data is not read again; ``tritonq verify --against`` does."""
        record = self.finished.get(name)
        path = self.folder / name
        if not isinstance(record, dict) or not path.is_file() or path.stat().st_size != record.get("size"):
            return None
        if record.get("tensors_hash") != _hash(record.get("tensors")):
            return None
        try:
            same = open_file(path).header_hash == record.get("header_hash")
        except CheckpointError:
            return None
        return record["tensors"] if same else None

    def finish(self, name: str, written: dict, rows: list[dict]) -> None:
        """Record that output file ``name`` is complete."""
        self.finished[name] = {**written, "tensors": rows, "tensors_hash": _hash(rows)}
        self._save()

    def close(self, report: dict) -> None:
        """Write the report, which takes over the record of the job, and drop the journal."""
        write_json(self.folder / REPORT, report)
        (self.folder / JOURNAL).unlink(missing_ok=True)

    def _save(self) -> None:
        write_json(self.folder / JOURNAL, {"job": self.job, "carried": self.carried, "files": self.finished})


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


def _clear(folder: Path, known: Path | None, outputs: list[str]) -> None:
    """Remove what an earlier job wrote into ``folder``; weights of another origin would be read as part of ours, so they are refused."""
    try:
        old = read_json(known) if known else {}
    except CheckpointError:  # a damaged journal does not stop --overwrite
        old = {}
    job = old.get("job")
    sources = job.get("source") if isinstance(job, dict) else None
    planned = [file.get("name") for file in sources if isinstance(file, dict)] if isinstance(sources, list) else []
    begun, weights = ([name for name in _names(value) if Path(name).name == name and name.endswith(".safetensors")]
                      for value in (planned, old.get("files")))  # fmt: skip
    carried = [name for name in _names(old.get("carried")) if folder.resolve() in (folder / name).resolve().parents]
    described = [MANIFEST, *(path.name for end in ("", PARTIAL) for path in folder.glob(f"*{INDEX_SUFFIX}{end}"))] if known else []
    for name in (*weights, *carried, *(name + PARTIAL for name in (*begun, *carried)), *described, JOURNAL, REPORT):
        if (folder / name).is_file():
            (folder / name).unlink()
    for path in (*folder.glob("*.safetensors"), *folder.glob(f"*{INDEX_SUFFIX}")):
        if path.name not in outputs:
            raise CheckpointError(f"{folder}: holds other weights ({path.name}), which would count as part of the result; move them away")


def _names(value) -> list[str]:
    """The names in a list, or the keys of an object, that was read; none where it is neither."""
    return [name for name in value if isinstance(name, str) and "\0" not in name] if isinstance(value, (list, dict)) else []


def _hash(rows) -> str:
    """Of the report rows of a file: what was recorded of it is used only as it was written."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _difference(old, new: dict) -> str | None:
    """What of two jobs differs, as words, or None."""
    if not isinstance(old, dict) or old.get("format_version") != new["format_version"]:
        return "format version"
    if old.get("rules") != new["rules"]:
        return f"scheme or choice ({_words(old.get('rules'))}, now {_words(new['rules'])})"
    if old.get("tied") != new["tied"]:
        return f"tie_word_embeddings ({shorten(old.get('tied'))}, now {new['tied']})"
    if old.get("source") != new["source"]:
        return "source, or the source changed since"
    return None


def _words(rules) -> str:
    """The choices of a job as one would type them."""
    try:
        if "to" in rules:
            return f"convert --to {rules['to']}"
        schemes = [rules["default"] or "", *(f"{glob}={scheme}" for glob, scheme in rules["patterns"])]
        return " ".join([s for s in schemes if s] + [f"--{option} {glob}" for option in ("include", "exclude") for glob in rules[option]])
    except (TypeError, KeyError, ValueError):  # a file that was damaged
        return "unreadable"
