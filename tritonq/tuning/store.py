"""Floor 6. Entries on their way into a folder of configs: written after every problem, so that whatever stops a run costs one."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..dtypes import dtype_name
from ..plans.config_file import ConfigFile, Entry, Source, read
from ..plans.core import multiprocessors
from .problems import Problem


class Store:
    """A folder of configs.

    Args:
        folder: where ``<arch>x<multiprocessors>/<kernel>.json`` lie, or will.
        source, name: where the new entries come from; their name in the file.
    """

    def __init__(self, folder: Path, source: Source, name: str):
        self.folder, self.source, self.name = Path(folder), source, name

    def file(self, problem: Problem) -> ConfigFile:
        """The file that the problem belongs into, without entries where there is none yet or they are of another revision.

        Raises:
            ConfigFileError: what lies there breaks a rule of the format.
        """
        target, kernel = problem.desc.target, problem.kernel
        empty = ConfigFile(kernel=kernel.name, revision=kernel.revision, arch=str(target), multiprocessors=multiprocessors(target))
        try:
            found = read(self.folder / empty.place)
        except FileNotFoundError:
            return empty
        return found if found.revision == kernel.revision else empty

    def find(self, problem: Problem) -> Entry | None:
        """What is recorded for the problem."""
        key = self._entry(problem, {}, measured=False, us=None, next_us=None).key
        return next((entry for entry in self.file(problem).entries if entry.key == key), None)

    def record(self, problem: Problem, config: dict, *, measured: bool, us: float, next_us: float | None) -> Entry:
        """Write one entry, in place of an earlier one of the same problem."""
        entry = self._entry(problem, config, measured=measured, us=_rounded(us), next_us=_rounded(next_us))
        self.file(problem).with_entries([entry], {self.name: self.source}).write(self.folder)
        return entry

    def _entry(self, problem: Problem, config: dict, *, measured: bool, us: float | None, next_us: float | None) -> Entry:
        desc = problem.desc
        return Entry(scheme=str(replace(desc.scheme, spelling=None)), dtype=dtype_name(desc.dtype), layout=desc.layout, n=desc.n, k=desc.k,
                     m=problem.m, config=dict(config), measured=measured, us=us, next_us=next_us, source=self.name)  # fmt: skip


def _rounded(us: float | None) -> float | None:
    return None if us is None else float(f"{us:.4g}")
