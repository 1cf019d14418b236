"""What ``tritonq tune`` prints, as lines and as plain values."""
from __future__ import annotations

import sys
import time
from collections import Counter

from ..tuning import Candidate, Problem, short
from ..tuning.tune import Result
from .output import say


def print_head(head: dict, problems: int) -> None:
    known = head["machine"] or "a machine that the model of speed does not know: candidates are not ordered"
    say(f"{head['target']} x {head['multiprocessors']} ({known}), Triton {head['triton']}: {problems} problems")
    for reason, number in Counter(item["reason"] for item in head["left_out"]).items():
        first = next(item["problem"] for item in head["left_out"] if item["reason"] == reason)
        say(f"left out: {first}{f' and {number - 1} more' if number > 1 else ''}: {reason}")


def print_plan(problem: Problem, candidates: list[Candidate]) -> None:
    timed = [candidate for candidate in candidates if not candidate.kind]
    say(f"\n{problem.name} ({problem.shape}): {len(candidates)} configs, {len(timed)} to time")
    for candidate in timed:
        guess = candidate.prediction
        text = f"{guess.us:9.2f} us predicted, limit {guess.limit:<8}" if guess else "   no prediction              "
        say(f"  {text} {short(candidate.config)}{'   (heuristic)' if candidate.heuristic else ''}")
    for kind, number in Counter(candidate.kind for candidate in candidates if candidate.kind).most_common():
        first = next(candidate for candidate in candidates if candidate.kind == kind)
        say(f"  {number:4} pruned, {kind}: {short(first.config)}: {first.reason}")


def print_result(result: Result) -> None:
    if result.entry is None:
        say(f"{result.problem.name}: nothing recorded, {result.reason}")
        return
    entry, tail = result.entry, "the heuristic's config"
    if not result.heuristic:
        own = result.heuristic_us
        tail = f"heuristic {own:.2f} us, {own / entry.us:.2f}x" if own else "the heuristic's config failed"
    word = "" if entry.measured else " predicted"
    say(f"{result.problem.name}: {entry.us:.2f} us{word}, {short(entry.config)}; {tail}")
    for config, reason in result.wrong:
        say(f"  WRONG RESULT, refused: {short(config)}: {reason}")


def note(done: int, total: int, started: float, name: str) -> None:
    """Progress in a log, where there is no terminal for a bar."""
    left = (time.monotonic() - started) / done * (total - done) if done else None
    text = "" if left is None else f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
    print(f"[{done + 1}/{total}{text}] {name}", file=sys.stderr, flush=True)


def plain(candidate: Candidate) -> dict:
    """For JSON."""
    guess = candidate.prediction
    return {"config": candidate.config, "heuristic": candidate.heuristic, "pruned": candidate.kind or None,
            "reason": candidate.reason or None, "predicted_us": guess and round(guess.us, 3), "limit": guess and guess.limit}  # fmt: skip


def plain_result(result: Result) -> dict:
    entry = result.entry
    refused = {name: [{"config": config, "reason": reason} for config, reason in getattr(result, name)] for name in ("wrong", "failed")}
    timed = [{"config": candidate.config, "us": round(times.us, 3), "p20": round(times.p20, 3), "p80": round(times.p80, 3),
              "predicted_us": candidate.prediction and round(candidate.us, 3), "limit": candidate.prediction and candidate.prediction.limit}
             for candidate, times in result.timed]  # fmt: skip
    return {"problem": result.problem.name, "config": entry and entry.config, "us": entry and entry.us, "next_us": entry and entry.next_us,
            "heuristic": result.heuristic, "heuristic_us": result.heuristic_us, "reason": result.reason or None, "timed": timed,
            **refused}  # fmt: skip
