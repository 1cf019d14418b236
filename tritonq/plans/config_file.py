"""Floor 4. One file of tuned configs: its format, its rules, reading and writing.

.. code-block:: text

    {"schema": 1, "kernel": "matmul_frag", "revision": 1, "arch": "sm_90", "multiprocessors": 132,
     "sources": {
      "2026-11-21": {"device": "NVIDIA H200", "driver": "570.1", "triton": "3.6.0", ...}},
     "entries": [
      {"scheme": "int4.g128", "dtype": "bfloat16", "layout": "frag", "n": 4096, "k": 4096, "m": 1, "config": {"BLOCK_M": 8, ...}, ...},
      ...]}

An entry is a line: that is what an error, a diff and a merge name.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from math import inf, isfinite, log2
from pathlib import Path
from typing import NoReturn

from ..dtypes import NAMED_DTYPES, dtype_name
from ..errors import ConfigFileError, InvalidProblemError
from ..files import write_atomic
from ..layouts import LAYOUTS
from ..scheme import Scheme
from .core import Target
from .descriptors import Desc, describe
from .space import Config

SCHEMA = 1
LAST_BUCKET = 8192
_HALVES = ("float16", "bfloat16")
OTHER_DTYPE = 0.25  # how far an entry for the other 16-bit dtype is: nearer than any other shape


def bucket(m: int) -> int:
    """The number of rows that an entry for ``m`` rows is measured at: the next power of two, LAST_BUCKET at most."""
    return min(1 << max(m - 1, 0).bit_length(), LAST_BUCKET)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where entries come from: the machine, the software and how it was measured. A model has a protocol alone."""

    protocol: str
    time: str  # ISO 8601
    commit: str | None = None  # of tritonq
    device: str | None = None
    driver: str | None = None
    triton: str | None = None
    torch: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The config for products of ``m`` rows (those of its bucket; None for quantize and dequantize) with a weight [n, k]."""

    scheme: str
    dtype: str
    layout: str
    n: int
    k: int
    m: int | None
    config: Config
    measured: bool  # False: a model's prediction
    us: float | None = None  # microseconds of one call with this config
    next_us: float | None = None  # and with the best of the others
    source: str

    @property
    def key(self) -> tuple:
        """What there is one entry for; entries are sorted by it."""
        return str(replace(self.parsed, spelling=None)), self.dtype, self.layout, self.n, self.k, self.m or 0

    def problem(self, op: str, target: Target) -> Desc:
        """What the entry is for; ``op`` is that of its kernel."""
        return describe(op, n=self.n, k=self.k, m=self.m, dtype=NAMED_DTYPES[self.dtype], scheme=self.parsed, target=target,
                        layout=self.layout)  # fmt: skip

    @cached_property
    def parsed(self) -> Scheme:
        """The scheme, which may be spelled in several ways."""
        return Scheme.parse(self.scheme)


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """The tuned configs of one kernel on devices of ``arch`` (``"sm_90"``, ``"gfx942"``) with so many multiprocessors."""

    kernel: str
    revision: int
    arch: str
    multiprocessors: int
    sources: dict[str, Source] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()

    @property
    def place(self) -> Path:
        """Where it lies in a folder of configs."""
        return Path(f"{self.arch}x{self.multiprocessors}", f"{self.kernel}.json")

    @property
    def target(self) -> Target:
        """What its entries are for."""
        arch = self.arch.removeprefix("sm_")
        return Target(backend="triton", device="cuda", arch=int(arch) if arch.isdecimal() else arch, multiprocessors=self.multiprocessors)

    def with_entries(self, new: Iterable[Entry], sources: dict[str, Source]) -> ConfigFile:
        """With ``new`` in place of the entries that have their keys, and without sources that nothing comes from any more."""
        merged = {entry.key: entry for entry in (*self.entries, *new)}
        entries = tuple(merged[key] for key in sorted(merged))
        used = {entry.source for entry in entries}
        known = {name: source for name, source in {**self.sources, **sources}.items() if name in used}
        return replace(self, entries=entries, sources=known)

    @cached_property
    def _by_form(self) -> dict[tuple, list[Entry]]:
        found: dict[tuple, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault((entry.parsed, entry.layout, entry.m), []).append(entry)
        return found

    def near(self, desc: Desc, farthest: float) -> list[tuple[float, Entry]]:
        """Entries for ``desc``'s scheme, layout and bucket, and how far their shape is, the nearest first.

        A prediction is for its own shape alone: for another one the heuristic knows as much.
        The distance adds up ``abs(log2)`` of the ratios of n and of k, and OTHER_DTYPE where float16 stands in for bfloat16 or the reverse.
        """
        m = bucket(desc.m) if hasattr(desc, "m") else None
        found = [(_distance(entry, desc), entry) for entry in self._by_form.get((desc.scheme, desc.layout, m), ())]
        found = [(distance, entry) for distance, entry in found if distance <= (farthest if entry.measured else 0.0)]
        return sorted(found, key=lambda pair: pair[0])

    def text(self) -> str:
        """The file; :func:`parse` of it gives the same again."""
        head = {"schema": SCHEMA} | {name: getattr(self, name) for name in ("kernel", "revision", "arch", "multiprocessors")}
        sources = ",\n".join(f"  {json.dumps(name)}: {json.dumps(asdict(source))}" for name, source in sorted(self.sources.items()))
        lines = ",\n".join(f"  {json.dumps(asdict(entry))}" for entry in sorted(self.entries, key=lambda entry: entry.key))
        return f'{json.dumps(head)[:-1]},\n "sources": {{\n{sources}}},\n "entries": [\n{lines}]}}\n'

    def write(self, folder: Path) -> Path:
        """Into its place in ``folder``, whole or not at all."""
        path = Path(folder) / self.place
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.text())
        return path


def _distance(entry: Entry, desc: Desc) -> float:
    dtype = dtype_name(desc.dtype)
    if entry.dtype != dtype and not (entry.dtype in _HALVES and dtype in _HALVES):
        return inf
    if 0 in (desc.n, desc.k):
        return inf
    return abs(log2(entry.n / desc.n)) + abs(log2(entry.k / desc.k)) + OTHER_DTYPE * (entry.dtype != dtype)


def read(path: Path) -> ConfigFile:
    """The file at ``path``, which ends in ``<arch>x<multiprocessors>/<kernel>.json``.

    Raises:
        ConfigFileError: it breaks a rule of the format; the text names path and line.
    """
    path = Path(path)
    file = parse(path.read_text(encoding="utf-8"), str(path))
    if path.parts[-2:] != file.place.parts:
        raise ConfigFileError(f"{path}:1: its head says that it belongs at {file.place}; move it, or correct kernel, arch, multiprocessors")
    return file


def parse(text: str, name: str = "configs") -> ConfigFile:
    """The file with that text; ``name`` is what errors call it."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigFileError(f"{name}:{error.lineno}: is not JSON: {error.msg}") from None
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.strip() == '"entries": [']
    if len(starts) != 1:
        raise ConfigFileError(f'{name}:1: needs one line that reads "entries": [, and from there on an entry a line')
    start = starts[0]
    reader = _Reader(name)
    head = reader.record("\n".join(lines[:start]).rstrip().removesuffix(",") + "}", 1)
    reader.fields(head, 1, {"schema": int, "kernel": str, "revision": int, "arch": str, "multiprocessors": int, "sources": dict}, ())
    if head["schema"] != SCHEMA:
        reader.fail(1, f"is of schema {head['schema']}, this tritonq reads schema {SCHEMA}; tune again, or use the release that wrote it")
    if not re.fullmatch("sm_[0-9]+|gfx[0-9a-z]+", head["arch"]):
        reader.fail(1, f"arch {head['arch']!r} is none; write sm_90 or gfx942")
    sources = {}
    for key, record in head.pop("sources").items():
        line = next((number for number, text in enumerate(lines, 1) if text.strip().startswith(json.dumps(key) + ":")), 1)
        known = {item.name: str for item in fields(Source)}
        if not isinstance(record, dict):
            reader.fail(line, f"source {key!r} must be an object, got {record!r}")
        reader.fields(record, line, known, [name for name in known if name not in ("protocol", "time")])
        sources[key] = Source(**record)
    entries, seen = [], {}
    for number, line in enumerate(lines[start + 1 :], start + 2):
        line = line.strip()
        if line in ("", "]}"):
            continue
        entry = reader.entry(reader.record(line.removesuffix("]}").removesuffix(","), number), number, sources)
        if entry.key in seen:
            reader.fail(number, f"is for the same problem as line {seen[entry.key]}; keep one of them")
        seen[entry.key] = number
        entries.append(entry)
    del head["schema"]
    return ConfigFile(**head, sources=sources, entries=tuple(entries))


class _Reader:
    """Checks records of the file ``name``; every failure names a line."""

    def __init__(self, name: str):
        self.name = name

    def fail(self, line: int, what: str) -> NoReturn:
        raise ConfigFileError(f"{self.name}:{line}: {what}")

    def record(self, text: str, line: int) -> dict:
        def pairs(items: list[tuple[str, object]]) -> dict:
            record = dict(items)
            if len(record) < len(items):
                twice = next(key for i, (key, _) in enumerate(items) if key in dict(items[:i]))
                self.fail(line, f"has {twice!r} twice")
            return record

        try:
            record = json.loads(text, object_pairs_hook=pairs)
        except json.JSONDecodeError as error:
            self.fail(line + error.lineno - 1, f"must be one JSON object on a line of its own: {error.msg}")
        if not isinstance(record, dict):
            self.fail(line, f"must be one JSON object, got {text.strip()[:60]}")
        return record

    def fields(self, record: dict, line: int, kinds: dict[str, type], optional: Iterable[str]) -> None:
        """Every field of ``kinds`` and no other, of its type; ``optional`` ones may be null."""
        if unknown := [name for name in record if name not in kinds]:
            self.fail(line, f"has the unknown field {unknown[0]!r}; known fields: {', '.join(kinds)}")
        if missing := [name for name in kinds if name not in record]:
            self.fail(line, f"lacks {', '.join(missing)}")
        for name, value in record.items():
            if value is None and name in optional:
                continue
            kind = kinds[name]
            right = type(value) is kind or (kind is float and type(value) is int)
            if not right:
                self.fail(line, f"{name} must be of type {kind.__name__}{' or null' * (name in optional)}, got {value!r}")
            if kind in (int, float) and not (isfinite(value) and value > 0):
                self.fail(line, f"{name} must be above 0, got {value!r}")

    def entry(self, record: dict, line: int, sources: dict[str, Source]) -> Entry:
        kinds = {"scheme": str, "dtype": str, "layout": str, "n": int, "k": int, "m": int, "config": dict, "measured": bool, "us": float,
                 "next_us": float, "source": str}  # fmt: skip
        self.fields(record, line, kinds, ("m", "us", "next_us"))
        try:
            Scheme.parse(record["scheme"])
        except InvalidProblemError as error:
            self.fail(line, str(error))
        for name, known in (("dtype", NAMED_DTYPES), ("layout", LAYOUTS), ("source", sources)):
            if record[name] not in known:
                self.fail(line, f"{name} {record[name]!r} is not one of {', '.join(known) or '(no source is listed)'}")
        if record["m"] is not None and bucket(record["m"]) != record["m"]:
            self.fail(line, f"m={record['m']} must be a power of two up to {LAST_BUCKET}, the end of a bucket, or null")
        for name, value in record["config"].items():
            if type(value) is not int:
                self.fail(line, f"config: {name} must be of type int, got {value!r}")
        if record["measured"] and record["us"] is None:
            self.fail(line, "measured is true, so us must be the microseconds that were measured, got null")
        return Entry(**record)
