"""Floor 6. The run: for every problem candidates, times, a decision, an entry."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..bench.timing import Times
from ..plans.config_file import Entry
from ..plans.space import Config
from .candidates import GAIN, TIE, Candidate, Planner
from .engine import Engine, Outcome
from .problems import Problem
from .store import Store


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one problem: an entry, or why there is none; and candidates that were rest."""

    problem: Problem
    entry: Entry | None = None
    heuristic: bool = False  # whether the entry's config is the heuristic's
    heuristic_us: float | None = None
    reason: str = ""
    timed: list[tuple[Candidate, Times]] = field(default_factory=list)
    wrong: list[tuple[Config, str]] = field(default_factory=list)
    failed: list[tuple[Config, str]] = field(default_factory=list)


@dataclass(kw_only=True)
class Summary:
    """A run, as far as it came."""

    results: list[Result] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)  # recorded by an earlier run
    left: list[Problem] = field(default_factory=list)  # the budget was over

    @property
    def wrong(self) -> list[tuple[Problem, Config, str]]:
        return [(result.problem, config, reason) for result in self.results for config, reason in result.wrong]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The number of the candidate to record, its time, and that of the best of the others."""

    index: int
    us: float
    next_us: float | None


def decide(candidates: list[Candidate], times: dict[int, Times], *, predicted: bool = False) -> Decision | None:
    """The fastest, but the heuristic's where its lag is inside the spread of the two; None without times.

    ``predicted``: the times are a model's, so the heuristic's stays unless it loses by GAIN, and of those that the model cannot tell from
    the fastest the one that is most like the heuristic's is taken.
    """
    if not times:
        return None
    best = min(times, key=lambda i: times[i].us)
    own = next((i for i in times if candidates[i].heuristic), None)
    if own is not None and predicted:
        like = candidates[own].config.items()
        near = [i for i in times if times[i].us <= (1 + TIE) * times[best].us]
        best = min(near, key=lambda i: (len(candidates[i].config.items() - like), times[i].us))
    if own is not None and own != best:
        lead = times[own].us - times[best].us
        spread = max(times[i].p80 - times[i].p20 for i in (own, best))
        if lead <= max(spread, GAIN * times[own].us if predicted else 0.0):
            best = own
    others = [t.us for i, t in times.items() if i != best]
    return Decision(index=best, us=times[best].us, next_us=min(others, default=None))


def tune(
    todo: Iterable[Problem], planner: Planner, engine: Engine, store: Store, *, again: bool = False, budget: float | None = None,
    started: Callable[[Problem, int, int], None] = lambda problem, done, total: None,
    finished: Callable[[Result], None] = lambda result: None, clock: Callable[[], float] = time.monotonic,
) -> Summary:  # fmt: skip
    """Tune every problem and record each as soon as it is decided.

    Args:
        engine: gives times; one with ``measures`` set writes measured entries. Without it, measured entries are never replaced.
        again: also where there is an entry already.
        budget: seconds after which no further problem is begun.
        started, finished: told of every problem.

    KeyboardInterrupt goes through: what was recorded by then stays.
    """
    measured, begun, summary = engine.measures, clock(), Summary()
    fresh = []
    for problem in todo:
        entry = store.find(problem)
        done = entry is not None and (entry.measured or not measured) and (not again or (entry.measured and not measured))
        (summary.skipped if done else fresh).append(problem)
    weight = None
    for number, problem in enumerate(fresh):
        if budget is not None and clock() - begun >= budget:
            summary.left = fresh[number:]
            break
        started(problem, number, len(fresh))
        if weight != (weight := _weight(problem)):
            planner.prepare([other for other in fresh[number:] if _weight(other) == weight])
        result = _one(problem, planner, engine, store)
        summary.results.append(result)
        finished(result)
    return summary


def _weight(problem: Problem) -> tuple:
    return problem.desc.n, problem.desc.k, problem.desc.scheme


def _one(problem: Problem, planner: Planner, engine: Engine, store: Store) -> Result:
    candidates = [candidate for candidate in planner.candidates(problem) if not candidate.kind]
    outcome: Outcome = engine(problem, candidates)
    rest = {
        name: [(candidates[i].config, reason) for i, reason in sorted(reasons.items())]
        for name, reasons in (("wrong", outcome.wrong), ("failed", outcome.failed))
    }
    rest["timed"] = [(candidates[i], times) for i, times in sorted(outcome.times.items())]
    chosen = decide(candidates, outcome.times, predicted=not engine.measures)
    if chosen is None:
        reasons = "; ".join(dict.fromkeys([*outcome.wrong.values(), *outcome.failed.values()]))
        return Result(problem=problem, reason=f"no candidate has a time: {reasons}", **rest)
    winner = candidates[chosen.index]
    entry = store.record(problem, winner.config, measured=engine.measures, us=chosen.us, next_us=chosen.next_us)
    own = next((outcome.times[i].us for i in outcome.times if candidates[i].heuristic), None)
    return Result(problem=problem, entry=entry, heuristic=winner.heuristic, heuristic_us=own, **rest)
