"""Floor 6. Which weight gets which scheme: the most signal over noise that fits a number of bytes, measured on the weights themselves.

Every weight is quantized with every candidate, which gives bytes and noise (the squared error, as ``tritonq quantize`` reports it). What is
minimized is the noise of all weights together, so what is maximized is their common SQNR.

Choosing one option for each weight under one budget is the multiple-choice knapsack problem. Its linear relaxation is solved exactly by
walking down the lower convex hulls of the weights' (bytes, noise), steepest step first, until the budget is spent (Sinha and Zoltners, "The
Multiple-Choice Knapsack Problem", Operations Research 27(3), 1979). That gives a bound that no assignment can beat; the steps that fit,
and then every single change that still fits and helps, give an assignment. The distance between the two is reported.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .checkpoints.quality import compare_quantized
from .checkpoints.rules import Rules
from .checkpoints.source import Progress, Source
from .errors import InvalidProblemError
from .memory_plan import bytes_of, chosen_schemes, plan_memory
from .model_config import Use
from .ops import quantize
from .scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Option:
    """One scheme for one weight: bytes in memory on a device, and the squared error of its decoded values."""

    scheme: str
    size: int
    noise: float


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A scheme for every weight.

    Attributes:
        schemes: ``{name of a weight: scheme}``.
        size: bytes on a device, of these weights alone.
        signal, noise: sums of squares of the original values and of the errors.
        least_noise: no assignment within the budget has less.
    """

    schemes: dict[str, str]
    size: int
    signal: float
    noise: float
    least_noise: float

    @property
    def sqnr_db(self) -> float:
        return _decibel(self.signal, self.noise)

    @property
    def gap_db(self) -> float:
        """How far from the best assignment this can be, at most."""
        return 0.0 if self.noise == self.least_noise else _decibel(self.noise, self.least_noise)

    def patterns(self) -> dict[str, str]:
        """``{glob: scheme}`` as :func:`tritonq.quantize_` and a file for ``tritonq quantize --scheme @FILE`` take it: weights by name, and
        ``"*"`` for those that get the commonest scheme.
        """
        if not self.schemes:
            return {}
        commonest = Counter(self.schemes.values()).most_common(1)[0][0]
        return {_literal(name): scheme for name, scheme in self.schemes.items() if scheme != commonest} | {"*": commonest}


def measure(source: Source, candidates: Iterable[str | Scheme], use: Use = Use(), *, lossless: Mapping[str, str] | None = None,  # noqa: B008
            progress: Progress | None = None) -> tuple[dict[str, list[Option]], float]:  # fmt: skip
    """Every weight that a quantize job codes -> what each candidate makes of it; and the sum of squares of all of them.

    Reads one weight at a time. ``lossless``: ``{dtype: scheme}``, one more candidate for the weights of that dtype (``"BF16"``) alone.
    A candidate that cannot be split over ``use.devices`` is no option for that weight.

    Raises:
        InvalidProblemError: no candidates, no weight, or a weight for which none is left; names it.
    """
    schemes = list(dict.fromkeys(str(Scheme.parse(candidate)) for candidate in candidates))
    if not schemes:
        raise InvalidProblemError("an assignment needs at least one scheme to choose from")
    chosen = chosen_schemes(source, Rules.parse(schemes[0]))
    entries = [entry for entry in source.entries if chosen[entry.name] is not None and entry.numel]
    if not entries:
        raise InvalidProblemError(f"{source.path}: none of its {len(source)} tensors is quantized, so there is nothing to assign")
    total, done, signal = sum(entry.nbytes for entry in entries), 0, 0.0
    options: dict[str, list[Option]] = {}
    for entry in entries:
        weight = source.read(entry.name).reshape(-1, entry.shape[-1])
        options[entry.name], refused = [], None
        among = list(dict.fromkeys([*schemes, *(scheme for dtype, scheme in (lossless or {}).items() if dtype == entry.dtype)]))
        for i, text in enumerate(among):
            if progress is not None:
                progress(done + entry.nbytes * i // len(among), total, entry.name)
            scheme = Scheme.parse(text)
            size, why = bytes_of(entry, scheme, use.devices, use.target)
            refused = refused or why
            if why is None:
                quality = compare_quantized(weight, quantize(weight, scheme))
                options[entry.name].append(Option(scheme=text, size=size, noise=quality.noise))
        if not options[entry.name]:
            raise InvalidProblemError(f"no candidate can hold {entry.name} on {use.devices} devices: {refused}")
        signal += quality.signal
        done += entry.nbytes
    return options, signal


def assign_model(source: Source, memory: int, candidates: Iterable[str | Scheme], use: Use = Use(), *,  # noqa: B008
                 lossless: Mapping[str, str] | None = None, progress: Progress | None = None) -> tuple[Assignment | None, int]:  # fmt: skip
    """(the best assignment for devices of ``memory`` bytes, the least memory that any assignment needs); None: nothing fits.

    What is kept, KV cache, activations, workspace and the load peak are taken off the memory first; what cannot be told counts as nothing
    (:class:`tritonq.memory_plan.MemoryPlan` of the result says so). ``lossless``: see :func:`measure`.
    """
    options, signal = measure(source, candidates, use, lossless=lossless, progress=progress)
    kept = sum(bytes_of(entry, None, use.devices, use.target)[0] for entry in source.entries if entry.name not in options)
    largest = max((entry.nbytes for entry in source.entries if entry.name in options), default=0)
    plans = {scheme: plan_memory(source, scheme, use) for scheme in {option.scheme for one in options.values() for option in one}}
    beside = {candidate: max(largest, plan.running - plan.weights) for candidate, plan in plans.items()}
    found, least = [], []
    for most in sorted(set(beside.values())):  # a scheme whose kernels want more workspace leaves less for weights
        among = {name: [option for option in one if beside[option.scheme] <= most] for name, one in options.items()}
        if all(among.values()):
            least.append(kept + most + sum(min(option.size for option in one) for one in among.values()))
            found.append(assign(among, memory - kept - most, signal))
    possible = [assignment for assignment in found if assignment is not None]
    if not possible:
        return None, min(least)
    best = min(possible, key=lambda assignment: assignment.noise)
    return replace(best, least_noise=min(assignment.least_noise for assignment in possible)), min(least)


def assign(options: Mapping[str, list[Option]], budget: int, signal: float = 0.0) -> Assignment | None:
    """The least noise within ``budget`` bytes; None where not even the smallest options fit.

    Example:
        >>> options = {name: [Option(scheme="int4", size=4, noise=9.0), Option(scheme="int8", size=8, noise=noise)]
        ...            for name, noise in (("a", 1.0), ("b", 5.0))}
        >>> assign(options, 12).schemes, assign(options, 7)
        ({'a': 'int8', 'b': 'int4'}, None)
    """
    hulls = {name: _hull(found) for name, found in options.items()}
    taken = {name: hull[0] for name, hull in hulls.items()}
    room = budget - sum(option.size for option in taken.values())
    if room < 0:
        return None
    steps = [(name, hull[i], hull[i + 1]) for name, hull in hulls.items() for i in range(len(hull) - 1)]
    steps.sort(key=lambda step: -_slope(step[1], step[2]))
    least, left, whole = sum(option.noise for option in taken.values()), room, True
    for name, before, after in steps:
        grows = after.size - before.size
        if whole:  # the relaxation: the first step that does not fit is taken in part
            part = min(1.0, left / grows)
            least, left, whole = least - part * (before.noise - after.noise), left - grows, part == 1.0
        if taken[name] is before and grows <= room:
            taken[name], room = after, room - grows
    room = _fill(options, taken, room)
    noise = math.fsum(option.noise for option in taken.values())
    return Assignment(schemes={name: option.scheme for name, option in taken.items()}, size=budget - room, signal=signal, noise=noise,
                      least_noise=min(max(least, 0.0), noise))  # fmt: skip


def _hull(options: list[Option]) -> list[Option]:
    """The lower convex hull: rising size, falling noise, each step less steep than the one before."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.size, o.noise)):
        if hull and option.noise >= hull[-1].noise:
            continue
        if hull and option.size == hull[-1].size:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(before: Option, after: Option) -> float:
    """Noise that a byte takes away."""
    return (before.noise - after.noise) / (after.size - before.size)


def _fill(options: Mapping[str, list[Option]], taken: dict[str, Option], room: int) -> int:
    """Make the change of one weight that takes away the most noise and fits, while there is one; returns the bytes left."""
    while True:
        gains = [(taken[name].noise - option.noise, taken[name].size - option.size, name, option)
                 for name, found in options.items() for option in found
                 if option.noise < taken[name].noise and option.size - taken[name].size <= room]  # fmt: skip
        if not gains:
            return room
        _, freed, name, option = max(gains, key=lambda gain: gain[:3])
        taken[name], room = option, room + freed


def _literal(name: str) -> str:
    """``name`` as a glob that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _decibel(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
