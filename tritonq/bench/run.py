"""Runs suites: case after case until the time is over, each problem's rows handed on as soon as they are there."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from .machine import state
from .results import Results, Row
from .suite import Bench, Case, Suite
from .timing import first_line


def run(work: list[tuple[Suite, Bench]], results: Results, *, minutes: float | None = None,
        show: Callable[[Row], None] = lambda row: None, save: Callable[[], None] = lambda: None,
        progress: Callable[[int, int, str], None] = lambda done, total, name: None) -> list[str]:  # fmt: skip
    """Fill ``results``; returns what was left out because ``minutes`` were over.

    A case that raises becomes a row with a fault and the next one follows: a run on a rented GPU must not end at its first problem.
    """
    until = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    cases = [(suite, bench, case) for suite, bench in work for case in suite.cases(bench)]
    total, done, left_out = sum(case.steps for *_, case in cases), 0, []
    for suite, bench, case in cases:
        title, steps = f"{suite.name} {case.title}", 0
        if time.monotonic() > until:
            left_out.append(title)
            done += case.steps
            continue
        progress(done, total, title)
        with contextlib.closing(case.run()) as problems:  # which drops its weights before the next case makes its own
            for found in _each(problems, suite, bench, case):
                steps += 1
                results.rows += found
                results.about["after"] = state(bench.device)
                for row in found:
                    show(row)
                save()
                progress(done + steps, total, title)
                if time.monotonic() > until and steps < case.steps:
                    left_out.append(f"{title}, {case.steps - steps} of {case.steps} problems")
                    break
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        done += case.steps
    return left_out


def _each(problems: Iterator[list[Row]], suite: Suite, bench: Bench, case: Case) -> Iterator[list[Row]]:
    """``problems``, and where one raises, a row that says so in place of the rest."""
    try:
        yield from problems
    except Exception as error:
        yield [Row(suite=suite.name, op=case.title, name="tritonq", source=bench.source, fault=f"failed: {first_line(error)}")]
