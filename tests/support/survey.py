"""What the compiler makes of the kernels that a call would launch, with the specialisation that the call would have; nothing runs."""
from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator

from triton.runtime.jit import JITFunction

from . import codegen, simulator


@contextlib.contextmanager
def launches(arch: int | str = 90) -> Iterator[list[tuple[str, codegen.Report, dict]]]:
    """Collects (kernel name, compile report, compile-time arguments) of every launch inside the block. Results are uninitialised."""
    rows: list[tuple[str, codegen.Report, dict]] = []

    def compile_only(self, *args, grid, warmup, **kwargs):
        options = {k: kwargs.pop(k) for k in list(kwargs) if k not in self.arg_names}
        bound = inspect.signature(self.fn).bind(*args, **kwargs)
        bound.apply_defaults()
        spec = simulator._specialise(self, dict(bound.arguments))
        kernel = codegen.compile_source(self, spec.signature, spec.constexprs, spec.attrs, arch, options)
        report = codegen.report_of(kernel, arch)
        rows.append((self.__name__, report, {**spec.constexprs, **options}))

    real, environment = JITFunction.run, os.environ.get("TRITONQ_BACKEND")
    JITFunction.run, os.environ["TRITONQ_BACKEND"] = compile_only, "triton"
    try:
        yield rows
    finally:
        JITFunction.run = real
        os.environ.pop("TRITONQ_BACKEND") if environment is None else os.environ.__setitem__("TRITONQ_BACKEND", environment)


def elements(constants: dict) -> int:
    """Weights of one program of a kernel, from its compile-time arguments."""
    columns = constants["BLOCK_G"] * constants["GROUP"] if "BLOCK_G" in constants else constants["BLOCK_K"]
    return constants["BLOCK_N"] * columns


def per_element(report: codegen.Report, constants: dict) -> float:
    """Instructions per weight: those that a thread executes by the weights that it handles. A loop counts as one pass."""
    return executed(report) * 32 * report.num_warps / elements(constants)


def executed(report: codegen.Report) -> int:
    """Instructions on the shortest way from entry to exit: what a program without special cases executes. For kernels without loops.

    Triton predicates bounds instead of branching, so branches lead to slow paths: special values, the slow half of a division.
    """
    address, labels = 0, {}
    for line in report.sass.splitlines():
        if label := codegen._LABEL.match(line):
            labels[label[1]] = address
        elif found := codegen._INSTRUCTION.match(line):
            address = int(found[1], 16) + 16
    code = report.instructions
    index = {instruction.address: i for i, instruction in enumerate(code)}
    best = {len(code): 0}
    for i in range(len(code) - 1, -1, -1):
        instruction = code[i]
        ways = [best[i + 1]]
        target = codegen._BRANCH_TARGET.search(instruction.operands)
        to = index.get(labels.get(target[1])) if target and instruction.opcode.startswith("BRA") else None
        if instruction.opcode.startswith("EXIT") and not instruction.predicate:
            ways = [0]
        elif to is not None and to > i:
            ways = [best[to]] if not instruction.predicate else [*ways, best[to]]
        best[i] = 1 + min(ways)
    return best[0]
