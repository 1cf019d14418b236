"""The weight shapes of published models, which benchmarks and the tuner name alike."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidProblemError


class Shape(NamedTuple):
    """A weight ``[n, k]``; ``name`` is ``model.layer``, or ``NxK``."""

    name: str
    n: int
    k: int


def _model(hidden: int, heads: int, kv_heads: int, head_dim: int, ffn: int, vocabulary: int) -> dict[str, tuple[int, int]]:
    """A decoder's matrices; q, k and v are one, and so are gate and up."""
    return {
        "qkv": ((heads + 2 * kv_heads) * head_dim, hidden),
        "o": (hidden, heads * head_dim),
        "gate_up": (2 * ffn, hidden),
        "down": (hidden, ffn),
        "lm_head": (vocabulary, hidden),
    }


# Dimensions: config.json of Meta-Llama-3-8B, Meta-Llama-3-70B and Qwen3-32B.
MODELS = {
    "llama3-8b": _model(4096, 32, 8, 128, 14336, 128256),
    "llama3-70b": _model(8192, 64, 8, 128, 28672, 128256),
    "qwen3-32b": _model(5120, 64, 8, 128, 25600, 151936),
}


def shapes(text: str) -> list[Shape]:
    """Shapes by name or size, without repeats.

    Args:
        text: parts with commas between them: a model (``llama3-8b``), one of its layers (``llama3-8b.down``), ``NxK``, or a path that
            ends in ``.json`` and holds ``{"name": [N, K], ...}``.

    Raises:
        InvalidProblemError: an unknown name, a size that is not positive, a file that cannot be read or holds something else.

    Example:
        >>> shapes("llama3-8b.down,64x128")
        [Shape(name='llama3-8b.down', n=4096, k=14336), Shape(name='64x128', n=64, k=128)]
    """
    found: dict[tuple[int, int], Shape] = {}
    for part in text.split(","):
        for shape in _one(part.strip()):
            found.setdefault((shape.n, shape.k), shape)
    return list(found.values())


def _one(part: str) -> list[Shape]:
    if part.endswith(".json"):
        return _file(part)
    if sized := re.fullmatch(r"(\d{1,18})x(\d{1,18})", part):
        return [_checked(part, int(sized[1]), int(sized[2]))]
    model, _, layer = part.partition(".")
    layers = MODELS.get(model, {})
    if layer in layers:
        return [Shape(part, *layers[layer])]
    if layers and not layer:
        return [Shape(f"{model}.{name}", n, k) for name, (n, k) in layers.items()]
    known = f"{', '.join(MODELS)}, a layer of one such as llama3-8b.{'|'.join(MODELS['llama3-8b'])}, NxK, or FILE.json"
    raise InvalidProblemError(f"unknown shape {part!r:.60}; write {known}")


def _file(path: str) -> list[Shape]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidProblemError(f"{path}: {error}") from error
    if not isinstance(content, dict) or not content:
        raise InvalidProblemError(f'{path}: must hold {{"name": [N, K], ...}} with at least one shape')
    found = []
    for name, size in content.items():
        if not (isinstance(size, list) and len(size) == 2 and all(type(value) is int for value in size)):
            raise InvalidProblemError(f"{path}: {name!r} must be [N, K], two integers, got {json.dumps(size)[:60]}")
        found.append(_checked(name, *size, where=f"{path}: "))
    return found


def _checked(name: str, n: int, k: int, where: str = "") -> Shape:
    if n < 1 or k < 1:
        raise InvalidProblemError(f"{where}shape {name!r}: N and K must be at least 1, got {n} and {k}")
    return Shape(name, n, k)
