"""Floor 5. Machine code of NVIDIA GPUs as nvdisasm lists it: instructions, loops, the shortest way through."""
from __future__ import annotations

import dataclasses
import re

MATRIX = ("HGMMA", "IGMMA", "QGMMA", "HMMA", "IMMA", "QMMA", "DMMA", "UTCHMMA", "UTCQMMA", "OMMA")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?);")
_LABEL = re.compile(r"^\s*(\.L_?\w+):")
_BRANCH_TARGET = re.compile(r"`\((\.L\w+)\)")
_NOT_WORK = ("NOP", "BRA", "EXIT")  # padding after EXIT is an endless BRA and NOPs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One machine instruction: ``opcode`` with its modifiers (``LDG.E.128.CONSTANT``), operands and predicate (``@!P0`` or "")."""

    address: int
    opcode: str
    operands: str
    predicate: str

    @property
    def kind(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def width(self) -> int:
        """Bits that a load or store moves per thread (32 where the opcode names no width)."""
        for part in self.opcode.split(".")[1:]:
            if part in ("U8", "S8"):
                return 8
            if part in ("U16", "S16"):
                return 16
            if part in ("64", "128", "256"):
                return int(part)
        return 32


def parse_sass(text: str) -> tuple[list[Instruction], list[list[Instruction]]]:
    """The instructions of an ``nvdisasm -c`` listing up to the final padding, and its loops (backward branches), innermost first."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(Instruction(address=int(found[1], 16), opcode=found[3], operands=found[4], predicate=found[2] or ""))
            target = _BRANCH_TARGET.search(found[4]) if found[3].startswith("BRA") else None
            # a branch to itself is the trap that pads the end of the code
            if target and labels.get(target[1], len(instructions)) < len(instructions) - 1:
                loops.append(instructions[labels[target[1]] :])
    while instructions and instructions[-1].kind in _NOT_WORK and instructions[-1].kind != "EXIT":
        instructions.pop()
    return instructions, sorted(loops, key=len)


def shortest_path(text: str) -> int:
    """Instructions on the shortest way from entry to exit: what a program without special cases executes. For kernels without loops.

    Triton predicates bounds instead of branching, so branches lead to slow paths: special values, the slow half of a division, and
    (BRA.DIV) what a warp does that has diverged.
    """
    address, labels = 0, {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = address
        elif found := _INSTRUCTION.match(line):
            address = int(found[1], 16) + 16
    code = parse_sass(text)[0]
    index = {instruction.address: i for i, instruction in enumerate(code)}
    best = {len(code): 0}
    for i in range(len(code) - 1, -1, -1):
        instruction = code[i]
        ways = [best[i + 1]]
        target = _BRANCH_TARGET.search(instruction.operands)
        to = index.get(labels.get(target[1])) if target and instruction.opcode.startswith("BRA") else None
        if instruction.opcode.startswith("EXIT") and not instruction.predicate:
            ways = [0]
        elif to is not None and to > i and "DIV" not in instruction.opcode:
            ways = [best[to]] if not instruction.predicate else [*ways, best[to]]
        best[i] = 1 + min(ways)
    return best[0]
