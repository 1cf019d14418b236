"""Floor 6. Compiled candidates: every binary once, several at a time where there are processors for it."""
from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

from ..codegen.compiler import Report
from ..codegen.examine import Row, examine_config
from ..plans.core import multiprocessors
from ..plans.descriptors import Desc
from ..plans.kernel_entries import KERNELS
from ..plans.registry import KernelEntry
from ..plans.space import Config


class Compiler:
    """Rows of :mod:`tritonq.codegen` for candidates; shapes that differ in sizes alone share a binary.

    Args:
        jobs: processes that compile, with this one waiting for them; 1 compiles here. They leave what they make in Triton's cache on disk,
            and end with this process.
    """

    def __init__(self, jobs: int = 1):
        self.jobs, self.known = jobs, {}
        self._processes: list[subprocess.Popen] = []

    def rows(self, desc: Desc, kernel: KernelEntry, config: Config) -> list[Row]:
        """One row per launch. Raises what Triton raises where a config does not compile."""
        return examine_config(desc, kernel, config, self.known)

    def binaries(self, desc: Desc, kernel: KernelEntry, config: Config) -> tuple:
        """What :meth:`rows` would compile, as keys; nothing is compiled."""
        noted = _Noted()
        examine_config(desc, kernel, config, noted)
        return tuple(noted.keys)

    def prepare(self, wanted: Iterable[tuple[Desc, KernelEntry, Config]]) -> int:
        """Compile several at a time what :meth:`rows` will be asked for; returns how many. What fails is told there."""
        if self.jobs < 2:
            return 0
        fresh = {}
        for desc, kernel, config in wanted:
            keys = self.binaries(desc, kernel, config)
            if any(key not in self.known for key in keys):
                fresh.setdefault(keys, (told(desc), kernel.name, config))
        tasks, running = list(fresh.values()), []
        if len(tasks) < 2:
            return 0
        for number in range(min(self.jobs, len(tasks))):
            with contextlib.suppress(OSError):  # one that died: its share is compiled here
                process = self._process(number)
                pickle.dump(tasks[number :: self.jobs], process.stdin)
                process.stdin.flush()
                running.append(process)
        for process in running:
            process.stdout.read(1)
        return len(tasks)

    def _process(self, number: int) -> subprocess.Popen:
        while len(self._processes) <= number:
            command = [sys.executable, "-W", "ignore", "-c", f"from {__name__} import work; work()"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._processes.append(subprocess.Popen(command, **pipes))
        return self._processes[number]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes = []

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def told(desc: Desc) -> Desc:
    """``desc`` with its device's multiprocessors written down, so that a process that only compiles has no need to ask the driver."""
    return replace(desc, target=replace(desc.target, multiprocessors=multiprocessors(desc.target)))


class _Noted(dict):
    """Notes what is asked for, and gives an empty report, so that nothing is compiled."""

    def __init__(self):
        super().__init__()
        self.keys = []

    def get(self, key, default=None):
        self.keys.append(key)
        return Report(arch=key[1], ttgir="")


def work() -> None:
    """A process of :meth:`Compiler.prepare`: lists of tasks on stdin, for each a byte on stdout when all are in Triton's cache on disk."""
    kernels = {entry.name: entry for entry in KERNELS}
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(EOFError):
        while True:
            for desc, name, config in pickle.load(sys.stdin.buffer):
                with contextlib.suppress(Exception):  # told where it is asked for
                    examine_config(desc, kernels[name], config)
            answers.write(b".")
            answers.flush()
