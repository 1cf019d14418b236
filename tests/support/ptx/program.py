"""PTX text to a list of instructions."""
from __future__ import annotations

import dataclasses
import functools
import re

_SMALL = {"pred": 1, "bf16": 16, "f16x2": 32, "bf16x2": 32, "s16x2": 32, "u16x2": 32, "f32x2": 64, "e4m3x2": 16, "e5m2x2": 16, "tf32": 32}
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<label>\$?[A-Za-z_][\w$]*):(?!:)
    | (?P<open>\{(?=\s*(?:\.reg|\n|[a-z@])))      # a scope, not a vector operand
    | (?P<close>\})
    | (?P<statement>[^;{}]*(?:\{[^}]*\}[^;{}]*)*;)
    )""",
    re.S | re.X,
)
_DECLARATIONS = (".reg", ".shared", ".section", ".b8", ".b32", ".b64", ".local")


class PtxError(Exception):
    """The program did something that a GPU would not survive, or that the simulator does not model."""


def bits_of(kind: str) -> int:
    """Width of a PTX type; 0 where the word is no type."""
    if kind in _SMALL:
        return _SMALL[kind]
    return int(kind[1:]) if re.fullmatch(r"[bsuf]\d+", kind) else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """``parts`` are the dotted words of the opcode; ``type`` is the last of them, ``bits`` its width."""

    text: str
    predicate: str | None
    negated: bool
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    type: str
    bits: int

    @property
    def kind(self) -> str:
        """The first word of the opcode."""
        return self.parts[0]

    @property
    def signed(self) -> bool:
        return self.type[0] == "s" and self.bits > 0

    def has(self, *words: str) -> bool:
        """Whether any of the words is a part of the opcode."""
        return any(word in self.parts for word in words)

    def starts(self, *prefixes: str) -> bool:
        """Whether the dotted opcode starts with one of the prefixes."""
        return ".".join(self.parts).startswith(prefixes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One kernel: its instructions, where labels point, and its parameters in order."""

    code: tuple[Instruction, ...]
    labels: dict[str, int]
    parameters: tuple[str, ...]

    @functools.cached_property
    def communicates(self) -> bool:
        """Whether blocks may depend on each other."""
        return any(instruction.kind in ("atom", "red") for instruction in self.code)


def _operands(text: str) -> tuple[str, ...]:
    """Split at commas outside brackets."""
    found, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += character
    return (*found, current.strip()) if current.strip() else tuple(found)


def _instruction(statement: str) -> Instruction:
    guard = re.match(r"@(!?)(%\w+)\s+(.*)", statement)
    body = guard[3] if guard else statement
    opcode, _, rest = body.partition(" ")
    parts = tuple(opcode.replace("::cta", "").replace("::cluster", "").split("."))
    return Instruction(
        text=statement,
        predicate=guard[2] if guard else None,
        negated=bool(guard and guard[1]),
        parts=parts,
        operands=_operands(rest),
        type=parts[-1],
        bits=bits_of(parts[-1]),
    )


@functools.lru_cache(maxsize=256)
def parse(ptx: str) -> Program:
    """Parse the one ``.entry`` of a PTX module."""
    entry = ptx[ptx.index(".entry") :]
    parameters = tuple(re.findall(r"\w+_param_\d+", entry[: entry.index(")")]))
    body = entry[entry.index("{") + 1 :]
    body = re.sub(r"//[^\n]*|\.loc\s[^\n]*|\.pragma[^;]*;", "", body)
    code, labels, position = [], {}, 0
    while token := _TOKEN.match(body, position):
        position = token.end()
        if token["label"]:
            labels[token["label"]] = len(code)
        elif token["statement"]:
            statement = " ".join(token["statement"][:-1].split())
            if statement and not statement.startswith(_DECLARATIONS):
                code.append(_instruction(statement))
        if body[position:].lstrip().startswith(".section"):
            break
    code.append(_instruction("ret"))
    return Program(code=tuple(code), labels=labels, parameters=parameters)
