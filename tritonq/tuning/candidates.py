"""Floor 6. Which configs are worth timing: a kernel's space, pruned by its rules, by the code that the compiler makes, by the model."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import floor, inf, log, log1p

from ..codegen.examine import Row
from ..codegen.machines import Machine
from ..codegen.rules import WEIGHT_LOAD
from ..codegen.speed import LAUNCH, SCHEDULERS, Prediction, predict, programs_resident
from ..codegen.work import moved
from ..errors import UnsupportedError
from ..plans.space import Config
from .compiling import Compiler
from .problems import Problem

MOST = 12  # timed candidates per problem
# A candidate may execute this many times the instructions per weight of the heuristic's config. Unlike the time, they are counted.
MOST_INSTRUCTIONS = 1.5
TIE = 0.02  # predictions that are this near say nothing
# What the model has to promise before its config replaces the heuristic's. A judgement: its errors are larger than this.
GAIN = 0.05


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A config, and either what the model says of it or why it is not timed.

    Attributes:
        heuristic: whether it is what runs without tuning; that one is never pruned.
        kind: in a word or two, what pruned it: "rule", "does not compile", "spills", ...; "" for one that is to be timed.
        reason: the same with values.
        prediction: None where the model does not know the kernel.
    """

    config: Config
    heuristic: bool = False
    kind: str = ""
    reason: str = ""
    prediction: Prediction | None = None

    @property
    def us(self) -> float:
        """As predicted; infinite without a prediction."""
        return self.prediction.us if self.prediction else inf


class Planner:
    """From a problem to its candidates.

    Args:
        machine: what the model predicts for; None where it knows no such machine, and nothing is ordered or pruned by it.
        most: candidates that are timed.
        predicting: nothing will be timed. Then what changes more than one field of the heuristic's config is left out, and code that
            multiplies with another instruction (wgmma for mma.sync), because the model does not know which is faster; and everything where
            the heuristic's is as good as it can be.
    """

    def __init__(self, compiler: Compiler, machine: Machine | None, most: int = MOST, *, predicting: bool = False):
        self.compiler, self.machine, self.most, self.predicting = compiler, machine, most, predicting

    def prepare(self, todo: list[Problem]) -> int:
        """Compile what :meth:`candidates` will look at first, several at a time."""
        wanted = []
        for problem in todo:
            heuristic, *others = problem.kernel.space(problem.desc)
            allowed = [heuristic, *(config for config in others if not self._allowed(problem, config, heuristic)[0])]
            wanted += [(problem.desc, problem.kernel, config) for config in [heuristic, *_tiles(allowed).values()]]
        return self.compiler.prepare(wanted)

    def candidates(self, problem: Problem) -> list[Candidate]:
        """Those to be timed, the fastest by the model first, then those that are not, each with its reason."""
        heuristic, *others = problem.kernel.space(problem.desc)
        verdicts = [self._allowed(problem, config, heuristic) for config in others]
        allowed = [heuristic, *(config for config, (kind, _) in zip(others, verdicts) if not kind)]
        first, rows = self._looked_at(problem, heuristic, _Limits(), heuristic=True)
        limits = _Limits.of(rows, self.predicting)
        if self.predicting and first.prediction and (reason := self._no_room(problem, first.prediction)):
            return [first, *(Candidate(config=config, kind="no room", reason=reason) for config in others)]
        tiles = {tile: self._looked_at(problem, config, limits) for tile, config in _tiles(allowed).items()}
        guesses = [first]
        for config, (kind, reason) in zip(others, verdicts):
            if kind:
                guesses.append(Candidate(config=config, kind=kind, reason=reason))
            else:
                guesses.append(self._guess(config, *tiles[_tile(config)]))
        return self._finalists(problem, guesses, limits)

    def _allowed(self, problem: Problem, config: Config, heuristic: Config) -> tuple[str, str]:
        if not (status := problem.kernel.config_ok(problem.desc, config)):
            return "rule", status.reason
        changed = [name for name, value in config.items() if heuristic.get(name) != value]
        if self.predicting and len(changed) > 1:
            return "far from the heuristic", f"changes {', '.join(changed)}; a prediction changes one field"
        return "", ""

    def _no_room(self, problem: Problem, own: Prediction) -> str:
        """Why no config can gain GAIN by the model; "" where one might."""
        if "issue" not in own.parts:
            return f"the machine code of {problem.desc.target} cannot be read, so the model does not know what an instruction costs"
        least = 1e6 * (moved(problem.desc) / self.machine.bytes_per_s + LAUNCH)
        return f"memory and launch take {least:.2f} us, the heuristic's config {own.us:.2f}" if least >= (1 - GAIN) * own.us else ""

    def _finalists(self, problem: Problem, guesses: list[Candidate], limits: _Limits) -> list[Candidate]:
        """The best guesses, each compiled by itself, until there are enough."""
        ordered = _in_turn([guess for guess in guesses[1:] if not guess.kind])
        self.compiler.prepare((problem.desc, problem.kernel, guess.config) for guess in ordered[: self.most])
        timed, rest = [guesses[0]], [guess for guess in guesses[1:] if guess.kind]
        for guess in ordered:
            if len(timed) >= self.most:
                what = f"predicted {guess.us:.2f} us; {self.most} come first"
                rest.append(replace(guess, kind="later by the model", reason=what if guess.prediction else what.split("; ")[1]))
                continue
            found, _ = self._looked_at(problem, guess.config, limits)
            (rest if found.kind else timed).append(found)
        return sorted(timed, key=lambda candidate: (candidate.us, not candidate.heuristic)) + rest

    def _guess(self, config: Config, of_tile: Candidate, rows: list[Row]) -> Candidate:
        """With another split the code is the same but for its end, so one compilation serves to order them all."""
        if of_tile.kind:
            return replace(of_tile, config=config)
        if "SPLIT_K" in config:
            rows = [replace(row, constants=row.constants | {"SPLIT_K": config["SPLIT_K"]}, grid=(row.grid[0], config["SPLIT_K"]))
                    for row in rows]  # fmt: skip
        return Candidate(config=config, prediction=self._predicted(rows))

    def _looked_at(self, problem: Problem, config: Config, limits: _Limits, heuristic: bool = False) -> tuple[Candidate, list[Row]]:
        """The candidate as compiled, and its rows."""
        rows, kind, reason, prediction = [], "", "", None
        try:
            rows = self.compiler.rows(problem.desc, problem.kernel, config)
            kind, reason = limits.broken(rows)
            prediction = self._predicted(rows) if not kind or heuristic else None
        except Exception as error:  # whatever Triton raises: a candidate less, not the end of the run
            kind, reason = "does not compile", _reason(error)
        if heuristic:
            kind = reason = ""
        return Candidate(config=config, heuristic=heuristic, kind=kind, reason=reason, prediction=prediction), rows

    def _predicted(self, rows: list[Row]) -> Prediction | None:
        """None where the model does not know the kernel, and where there are several launches."""
        if self.machine is None or len(rows) != 1:
            return None
        try:
            return predict(rows[0], self.machine)
        except UnsupportedError:
            return None


def _reason(error: Exception) -> str:
    """One line. Triton wraps an error in one per function, each with a listing; what is wrong is at the bottom."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")] or [""]
    text = lines[-1] if lines[0].startswith("at ") else lines[0]
    return f"{type(error).__name__}: {text}"[:200]


def _in_turn(guesses: list[Candidate]) -> list[Candidate]:
    """The fastest first. Of those that the model cannot tell apart every tile has its turn before one has a second split, and what keeps
    the machine less busy comes first."""

    def near(guess: Candidate) -> int:
        return floor(log(guess.us) / log1p(TIE)) if guess.prediction else 0

    turn: Counter[tuple] = Counter()
    order = []
    for guess in sorted(guesses, key=lambda guess: sum(guess.prediction.parts.values()) if guess.prediction else 0.0):
        place = near(guess), _tile(guess.config)
        order.append((place[0], turn[place], len(order), guess))
        turn[place] += 1
    return [guess for *_, guess in sorted(order, key=lambda item: item[:3])]


def _tile(config: Config) -> tuple:
    return tuple(sorted((name, value) for name, value in config.items() if name != "SPLIT_K"))


def _tiles(configs: list[Config]) -> dict[tuple, Config]:
    """One config for each that differs in more than its split: that with a split of 2 or next to it, so that shapes share binaries."""
    found: dict[tuple, Config] = {}
    for config in sorted(configs, key=lambda config: abs(config.get("SPLIT_K", 1) - 2)):
        found.setdefault(_tile(config), config)
    return found


def _instructions(row: Row) -> float:
    """Per weight of the matrix: of every tile of x."""
    per_weight = row.per_weight or 0.0
    return per_weight * -(-row.desc.m // row.constants["BLOCK_M"]) if "BLOCK_M" in row.constants else per_weight


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """What code has to keep to, some of it by comparison with the heuristic's."""

    instructions: float = inf  # per weight
    matrix: frozenset[str] | None = None  # the matrix instructions it may use

    @classmethod
    def of(cls, rows: list[Row], same_instruction: bool) -> _Limits:
        count = _instructions(rows[0]) if len(rows) == 1 else 0.0
        return cls(instructions=MOST_INSTRUCTIONS * count or inf, matrix=_matrix(rows) if same_instruction else None)

    def broken(self, rows: list[Row]) -> tuple[str, str]:
        """(in a word, with values): what speaks against timing this code; two empty texts where nothing does."""
        for row in rows:
            resident = programs_resident(row)
            if not resident:
                return "does not fit", f"{row.registers} registers, {row.shared} bytes of shared memory: more than a multiprocessor has"
            warps = resident * row.report.num_warps
            if warps < SCHEDULERS:
                what = f"({row.registers} registers, {row.shared} bytes of shared memory)"
                return "occupancy", f"{warps} warps per multiprocessor leave schedulers idle {what}"
            if row.spills > row.expected.parked:
                return "spills", f"{row.spills} bytes per thread ({row.registers} registers)"
            if row.report.cubin and row.warnings:
                return "ptxas warning", row.warnings[0]
            if any(row.wgmma_in_flight):
                return "wgmma in flight", f"a wait leaves {max(row.wgmma_in_flight)} in flight"
            if row.weight_loads and min(row.weight_loads) < WEIGHT_LOAD:
                return "narrow loads", f"{row.expected.weights} is loaded {min(row.weight_loads)} bits at a time"
        if self.matrix is not None and (other := _matrix(rows) - self.matrix):
            text = f"multiplies with {', '.join(sorted(other))}, the heuristic's with {', '.join(sorted(self.matrix))}"
            return "other instruction", text
        if len(rows) == 1 and (count := _instructions(rows[0])) > self.instructions:
            return "instructions", f"{count:.2f} per weight, at most {self.instructions:.2f}: {MOST_INSTRUCTIONS} times the heuristic's"
        return "", ""


def _matrix(rows: list[Row]) -> frozenset[str]:
    return frozenset(kind.split(".")[0] for row in rows for kind in row.matrix)


def short(config: Config) -> str:
    """``8x64x256 w2 s3 split 4``, and every other field by name."""
    tile = "x".join(str(config[name]) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_G", "BLOCK_K") if name in config)
    parts = [tile] if tile else []
    parts += [f"{letter}{config[name]}" for name, letter in (("num_warps", "w"), ("STAGES", "s")) if name in config]
    parts += [f"split {config['SPLIT_K']}"] if config.get("SPLIT_K", 1) > 1 else []
    known = ("BLOCK_M", "BLOCK_N", "BLOCK_G", "BLOCK_K", "num_warps", "STAGES", "SPLIT_K")
    return " ".join(parts + [f"{name}={value}" for name, value in config.items() if name not in known])
