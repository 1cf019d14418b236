"""Floor 6. What gives candidates their times: a GPU, which measures and checks, or the model of speed, which predicts."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .. import ops
from ..bench import check, timing
from ..bench.timing import Times
from ..dtypes import dtype_name
from ..plans.descriptors import DequantizeDesc, MatmulBackwardDesc, QuantizeDesc
from ..plans.select import Plan
from .candidates import Candidate
from .problems import Problem


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one problem: times, and reasons where there is none, by the candidate's number."""

    times: dict[int, Times] = field(default_factory=dict)
    wrong: dict[int, str] = field(default_factory=dict)  # results outside the plan's guarantee
    failed: dict[int, str] = field(default_factory=dict)  # did not run


Engine = Callable[[Problem, list[Candidate]], Outcome]


class ModelEngine:
    """Predictions as times without a spread."""

    measures = False

    def __call__(self, problem: Problem, candidates: list[Candidate]) -> Outcome:
        times = {i: Times(c.prediction.us, c.prediction.us, c.prediction.us) for i, c in enumerate(candidates) if c.prediction}
        return Outcome(times=times, failed={i: "the model does not know this kernel" for i in range(len(candidates)) if i not in times})


class GpuEngine:
    """Times on this machine's GPU, all candidates of a problem in turns; a candidate is timed when its result is right.

    Weights are random and rotate over more than the L2 cache holds; those of the last problem are kept for the next.
    """

    measures = True

    def __init__(self, device: torch.device, measure: Callable = timing.measure):
        self.device, self.measure = device, measure
        self._made: tuple[tuple, list] | None = None
        self._judge = None  # the first weight in row, by which results are judged

    def __call__(self, problem: Problem, candidates: list[Candidate]) -> Outcome:
        inputs = self._inputs(problem)
        calls, wrong, failed = {}, {}, {}
        for i, candidate in enumerate(candidates):
            plan = Plan.of(problem.desc, problem.kernel, candidate.config)
            try:
                if reason := self._verdict(plan, inputs[0]):
                    wrong[i] = reason
                else:
                    calls[i] = [lambda plan=plan, given=given: plan.run(*given) for given in inputs]
            except Exception as error:  # out of shared memory or registers: a candidate less, not the end of the run
                failed[i] = timing.first_line(error)
        times = self.measure(calls, device=self.device, failures=failed) if calls else {}
        return Outcome(times=times, wrong=wrong, failed=failed)

    def _inputs(self, problem: Problem) -> list[tuple]:
        """Arguments of ``plan.run``, as many different ones as a round takes."""
        desc = problem.desc
        if isinstance(desc, QuantizeDesc):
            return [(w,) for w in self._weights(desc, quantized=False)]
        weights = self._weights(desc, quantized=True)
        if isinstance(desc, DequantizeDesc):
            return [(q,) for q in weights]
        columns = desc.n if isinstance(desc, MatmulBackwardDesc) else desc.k
        x = torch.randn(desc.m, columns, device=self.device).to(desc.dtype)
        return [(x, q) for q in weights]

    def _weights(self, desc, *, quantized: bool) -> list:
        key = str(desc.scheme), dtype_name(desc.dtype), desc.n, desc.k, desc.layout, quantized
        if self._made is None or self._made[0] != key:
            self._made = self._judge = None  # the memory of the last ones first
            self._made = key, self._make(desc, quantized)
            self._judge = self._made[1][0].relayout("row") if quantized else None
        return self._made[1]

    def _make(self, desc, quantized: bool) -> list:
        def one():
            w = (torch.randn(desc.n, desc.k, device=self.device) * desc.k**-0.5).to(desc.dtype)
            return ops.quantize(w, desc.scheme).relayout(desc.layout) if quantized else w

        first = one()
        return [first] + [one() for _ in range(timing.copies(first.nbytes, self.device) - 1)]

    def _verdict(self, plan: Plan, given: tuple) -> str:
        """Why a result is wrong; "" where it is right."""
        if isinstance(plan.desc, QuantizeDesc):
            return check.quantized(plan, *given)
        if isinstance(plan.desc, DequantizeDesc):
            return check.decoded(plan, *given)
        return check.product(plan, *given, self._judge)
