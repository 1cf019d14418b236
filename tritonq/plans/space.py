"""Floor 4. Which configs a kernel takes, and which of them are worth a try."""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import product

from .core import OK, Status

Config = dict[str, int]
Choices = dict[str, Collection[int]]


def among(config: Config, choices: Choices, optional: Choices | None = None) -> Status:
    """Whether ``config`` has every field of ``choices``, none but those and ``optional``, and a value that is listed for each."""
    optional = optional or {}
    if missing := [name for name in choices if name not in config]:
        return Status(f"lacks {', '.join(missing)}; its fields are {', '.join(choices)}")
    for name, value in config.items():
        allowed = choices.get(name, optional.get(name))
        if allowed is None:
            return Status(f"has no field {name}; its fields are {', '.join([*choices, *optional])}")
        if type(value) is not int or value not in allowed:
            return Status(f"{name}={value!r} is not one of {', '.join(map(str, sorted(allowed)))}")
    return OK


def space(first: Config, tried: Choices, ok: Callable[[Config], Status]) -> list[Config]:
    """``first``, then every combination of ``tried`` that ``ok`` lets pass; fields that are not tried keep what ``first`` has."""
    return [first, *(config for config in _combinations(first, tried) if config != first and ok(config))]


def _combinations(first: Config, tried: Choices) -> Iterator[Config]:
    for values in product(*tried.values()):
        yield {**first, **dict(zip(tried, values))}


def around(value: int) -> list[int]:
    """Half of it, itself and twice as much; nothing below 1."""
    return [size for size in (value // 2, value, 2 * value) if size]
