"""Floor 6. Compiled candidates: every binary once, in several processes where that pays."""
from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from collections.abc import Iterable

from ..codegen.compiler import Report
from ..codegen.examine import Row, examine_config
from ..plans.descriptors import Desc
from ..plans.kernel_entries import KERNELS
from ..plans.registry import KernelEntry
from ..plans.space import Config

_STARTING = 8  # binaries per process: it takes a few seconds to start one


class Compiler:
    """Rows of :mod:`tritonq.codegen` for candidates; shapes that differ in sizes alone share a binary.

    Args:
        jobs: processes that :meth:`prepare` may use. They leave what they compile in Triton's cache on disk.
    """

    def __init__(self, jobs: int = 1):
        self.jobs, self.known = jobs, {}

    def rows(self, desc: Desc, kernel: KernelEntry, config: Config) -> list[Row]:
        """One row per launch. Raises what Triton raises where a config does not compile."""
        return examine_config(desc, kernel, config, self.known)

    def binaries(self, desc: Desc, kernel: KernelEntry, config: Config) -> tuple:
        """What :meth:`rows` would compile, as keys; nothing is compiled."""
        noted = _Noted()
        examine_config(desc, kernel, config, noted)
        return tuple(noted.keys)

    def prepare(self, wanted: Iterable[tuple[Desc, KernelEntry, Config]]) -> int:
        """Compile in advance, in several processes; returns how many binaries that was. Failures come back in :meth:`rows`."""
        fresh = {}
        if self.jobs > 1:
            for desc, kernel, config in wanted:
                keys = self.binaries(desc, kernel, config)
                if any(key not in self.known for key in keys):
                    fresh.setdefault(keys, (desc, kernel.name, config))
        processes = min(self.jobs, len(fresh) // _STARTING)
        if processes < 2:
            return 0
        tasks = list(fresh.values())
        command = [sys.executable, "-W", "ignore", "-c", f"from {__name__} import work; work()"]
        workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                   for _ in range(processes)]  # fmt: skip
        try:
            for number, worker in enumerate(workers):
                worker.stdin.write(pickle.dumps(tasks[number::processes]))
                worker.stdin.close()
            for worker in workers:
                worker.wait()
        finally:
            for worker in workers:
                worker.kill()
        return len(tasks)


class _Noted(dict):
    """Notes what is asked for, and gives an empty report, so that nothing is compiled."""

    def __init__(self):
        super().__init__()
        self.keys = []

    def get(self, key, default=None):
        self.keys.append(key)
        return Report(arch=key[1], ttgir="")


def work() -> None:
    """A process of :meth:`Compiler.prepare`: tasks on stdin, results in Triton's cache on disk."""
    kernels = {entry.name: entry for entry in KERNELS}
    for desc, name, config in pickle.load(sys.stdin.buffer):
        with contextlib.suppress(Exception):  # told where it is asked for
            examine_config(desc, kernels[name], config)
