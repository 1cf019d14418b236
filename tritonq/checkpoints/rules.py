"""Which tensors a quantize job codes, with which scheme, and why it keeps the others: the one statement of these rules."""
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import InvalidProblemError, shorten
from ..scheme import Scheme
from .tensorfile import Entry

# Matched against single components of a dotted name ("model.embed_tokens.weight": the owner is "embed_tokens").
_NORM = re.compile(r"norm|(^|_)(ln|bn|gn|rms)(_|\d|$)", re.IGNORECASE)
_EMBEDDING = re.compile(r"emb(ed|_|$)|^(wte|wpe|shared|relative_attention_bias)$", re.IGNORECASE)
_ROUTER = re.compile(r"^(gate|router|shared_expert_gate)$", re.IGNORECASE)
_EXPERT = re.compile(r"expert|(^|_)moe(_|$)", re.IGNORECASE)
_BIAS = re.compile(r"(^|_)bias(es)?$", re.IGNORECASE)
_TOKEN = re.compile(r"_token$|^A_log$", re.IGNORECASE)

RULES_TEXT = (
    "kept: 1-D tensors, norms, embeddings (and an lm_head tied to one), expert routers, biases, convolutions, and what is no float; "
    "everything else is quantized, lm_head and 3-D expert weights [E, N, K] (as E*N rows) among it"
)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to one tensor: ``scheme`` (text) and ``reason`` None, or scheme None and the reason to keep it."""

    name: str
    scheme: str | None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The choices of a job.

    ``default``: scheme of all weights that no pattern names (None: such weights are kept). ``patterns``: ``(glob, scheme)``, the
    first that matches a name gives its scheme. ``include``: globs of tensors to quantize although the built-in rule keeps them;
    ``exclude``: globs to keep whatever else says otherwise. Globs match whole tensor names.
    """

    default: str | None = None
    patterns: tuple[tuple[str, str], ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """The fields, with lists for tuples."""
        return {"default": self.default, "patterns": [list(pair) for pair in self.patterns],
                "include": list(self.include), "exclude": list(self.exclude)}  # fmt: skip

    @classmethod
    def parse(cls, schemes: str | dict | Iterable[str], include: Iterable[str] = (), exclude: Iterable[str] = ()) -> Rules:
        """From ``"nf4.g64"``, ``{"*.mlp.*": "int4.g32", "*": "int8"}``, or ``["nf4", "*.mlp.*=int4.g32"]``; schemes are checked."""
        if isinstance(schemes, dict):
            pairs = list(zip(_globs("a dict of schemes", schemes), schemes.values(), strict=True))
        else:
            parts = [schemes] if isinstance(schemes, str) or not isinstance(schemes, Iterable) else list(schemes)
            pairs = [_split(part) for part in parts]
        include, exclude = _globs("include", include), _globs("exclude", exclude)
        default, patterns = None, []
        for pattern, scheme in pairs:
            text = str(scheme if isinstance(scheme, Scheme) else Scheme.parse(scheme))
            if pattern is not None:
                patterns.append((pattern, text))
            elif default is None:
                default = text
            else:
                raise InvalidProblemError(f"two schemes for everything, {default} and {text}; write PATTERN=SCHEME for all but one")
        if not pairs:
            raise InvalidProblemError("no scheme given; name one such as nf4.g64, or PATTERN=SCHEME")
        return cls(default=default, patterns=tuple(patterns), include=include, exclude=exclude)

    def decide(self, entries: Iterable[Entry], *, tied: bool = False) -> dict[str, Decision]:
        """A decision for each entry; a glob that matches no tensor is an error (it would be skipped silently)."""
        entries = list(entries)
        for option, globs in (("include", self.include), ("exclude", self.exclude), ("scheme", [p for p, _ in self.patterns])):
            for glob in globs:
                if not any(fnmatchcase(entry.name, glob) for entry in entries):
                    raise InvalidProblemError(f"{option} {glob!r} matches none of the {len(entries)} tensors")
        return {entry.name: self._decide(entry, tied) for entry in entries}

    def _decide(self, entry: Entry, tied: bool) -> Decision:
        name = entry.name
        if not entry.is_float:
            narrow = entry.dtype[:2] in ("F8", "F6", "F4")
            return Decision(name=name, scheme=None, reason=f"{entry.dtype}, {'narrow already' if narrow else 'no float'}")
        if any(fnmatchcase(name, glob) for glob in self.exclude):
            return Decision(name=name, scheme=None, reason="excluded")
        if not entry.shape:
            return Decision(name=name, scheme=None, reason="a single number")
        if not any(fnmatchcase(name, glob) for glob in self.include):
            reason = keep_reason(name, entry.shape, tied=tied)
            if reason:
                return Decision(name=name, scheme=None, reason=reason)
        scheme = self.scheme_for(name)
        return Decision(name=name, scheme=scheme, reason=None if scheme else "no pattern of a scheme matches it")

    def scheme_for(self, name: str) -> str | None:
        """The scheme of a weight that is to be quantized; None where no pattern matches and there is no default."""
        return next((scheme for glob, scheme in self.patterns if fnmatchcase(name, glob)), self.default)


def keep_reason(name: str, shape: tuple[int, ...], *, tied: bool = False) -> str | None:
    """Why a float tensor of this name and shape stays as it is, or None: it is quantized."""
    parts = name.split(".")
    owner = parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]
    if len(shape) < 2:
        return "norm" if _NORM.search(owner) else "1-D"
    if _EMBEDDING.search(owner):
        return "embedding"
    if _NORM.search(owner):
        return "norm"
    if _BIAS.search(parts[-1]):
        return "bias"
    if _ROUTER.search(owner):
        return "expert router"
    if _TOKEN.search(parts[-1]):
        return "learned token or state"
    if tied and owner == "lm_head":
        return "tied to the embedding"
    if len(shape) > 3:
        return f"{len(shape)}-D (convolution)"
    if len(shape) == 3 and not any(_EXPERT.search(part) for part in parts) and min(shape[1:]) < 32:
        return "3-D, no expert weight, an axis shorter than 32 (convolution)"
    return None


def _globs(option: str, globs: Iterable[str]) -> tuple[str, ...]:
    if isinstance(globs, str):
        raise InvalidProblemError(f"{option} takes globs in a list, got the text {globs!r}; write [{globs!r}]")
    taken = tuple(globs) if isinstance(globs, Iterable) else (globs,)
    if wrong := [glob for glob in taken if not isinstance(glob, str)]:
        raise InvalidProblemError(f"{option} takes globs, text such as '*.mlp.*', got {type(wrong[0]).__name__} {shorten(wrong[0])}")
    return taken


def _split(part) -> tuple[str | None, str]:
    if not isinstance(part, str):
        raise InvalidProblemError(f"a scheme must be text such as 'nf4.g64', got {type(part).__name__} {shorten(part)}")
    pattern, equals, scheme = part.rpartition("=")
    return (pattern, scheme) if equals else (None, part)
