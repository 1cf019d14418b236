"""What the compiler makes of the kernels that a call of the public functions would launch; nothing runs."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from tritonq.codegen import launches as tool
from tritonq.codegen.compiler import Report
from tritonq.codegen.examine import elements
from tritonq.codegen.launches import Launch

__all__ = ["elements", "executed", "launches", "per_element"]


@contextlib.contextmanager
def launches(arch: int | str = 90) -> Iterator[list[Launch]]:
    """Collects (kernel name, compile report, compile-time arguments) of every launch inside the block. Results are uninitialised."""
    environment = os.environ.get("TRITONQ_BACKEND")
    os.environ["TRITONQ_BACKEND"] = "triton"
    try:
        with tool.launches(arch) as found:
            yield found
    finally:
        os.environ.pop("TRITONQ_BACKEND") if environment is None else os.environ.__setitem__("TRITONQ_BACKEND", environment)


def per_element(report: Report, constants: dict) -> float:
    """Instructions per weight: those that a thread executes by the weights that it handles. A loop counts as one pass."""
    return executed(report) * 32 * report.num_warps / elements(constants)


def executed(report: Report) -> int:
    """Instructions that a program without special cases executes. For kernels without loops."""
    return report.shortest_path
