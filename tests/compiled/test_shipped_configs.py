"""Every config that is shipped compiles for its architecture, without spills; entries that differ in N and K alone share a binary."""
import pathlib

import pytest

from tritonq.codegen.examine import examine_config
from tritonq.plans.config_file import read
from tritonq.plans.configs import shipped
from tritonq.plans.kernel_entries import KERNELS

FILES = sorted(pathlib.Path(shipped()).rglob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_entry_compiles(path):
    file, binaries = read(path), {}
    kernel = next(kernel for kernel in KERNELS if kernel.name == file.kernel)
    assert file.entries
    for entry in file.entries:
        rows = examine_config(entry.problem(kernel.op, file.target), kernel, entry.config, binaries)
        assert rows[-1].kernel.startswith(kernel.name) and not any(row.spills for row in rows), entry
    print(path.name, len(file.entries), "entries", len(binaries), "binaries")
