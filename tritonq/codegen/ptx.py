"""Floor 5. What PTX tells: which argument of a kernel each global load reads, how many bits at once; fences before wgmma."""
from __future__ import annotations

import re

_PARAMETER = re.compile(r"ld\.param\.[bsu]64\s+(%rd\d+), \[\w+_param_(\d+)\]")
_DEFINITION = re.compile(r"^\s*(?:@!?%p\d+\s+)?(?!st|ld|cp|atom|red|bra)[\w.]+\s+(%rd\d+), ([^;]*);", re.MULTILINE)
_COPY = re.compile(r"cp\.async\.\w+\.shared\.global[\w.:]*\s+\[[^\]]*\], \[\s*(%rd\d+)[^\]]*\], (0x[0-9a-f]+|\d+)")
_LOAD = re.compile(r"\bld(?:\.\w+)*\.global((?:[.:]\w+)*)\s+(?:\{[^}]*\}|%\w+), \[\s*(%rd\d+)")
_REGISTER = re.compile(r"%rd\d+")
_PROXY = re.compile(r"\b(cp\.async\.wait_(?:group|all)|fence\.proxy\.async|wgmma\.mma_async)\b")


def load_widths(ptx: str) -> dict[int, list[int]]:
    """Parameter number -> bits per thread of every ``ld.global`` and ``cp.async`` through a pointer that comes from that parameter.

    A pointer is followed through additions, moves and selections; a value loaded from memory starts anew.
    """
    sources: dict[str, set[str]] = {}
    for register, operands in _DEFINITION.findall(ptx):
        sources.setdefault(register, set()).update(_REGISTER.findall(operands))
    parameters = {register: int(number) for register, number in _PARAMETER.findall(ptx)}
    found: dict[int, list[int]] = {}
    loads = [(register, 8 * int(size, 0)) for register, size in _COPY.findall(ptx)]
    loads += [(register, _bits(modifiers)) for modifiers, register in _LOAD.findall(ptx)]
    for register, bits in loads:
        for number in {parameters[r] for r in _reached(register, sources) if r in parameters}:
            found.setdefault(number, []).append(bits)
    return found


def unfenced(ptx: str) -> bool:
    """Whether a wgmma follows a wait for cp.async with no proxy fence between them, in the order of the text.

    cp.async writes shared memory by another way than wgmma reads it; without the fence wgmma may see what was there before. Triton before
    3.9 puts none.
    """
    waited = False
    for step in _PROXY.findall(ptx):
        if step.startswith("wgmma") and waited:
            return True
        waited = step.startswith("cp.async") or waited and not step.startswith("fence")
    return False


def _bits(modifiers: str) -> int:
    """``.v4.b32`` -> 128."""
    vector = re.search(r"\.v(\d)", modifiers)
    return (int(vector[1]) if vector else 1) * int(re.findall(r"\.[busf](\d+)", modifiers)[-1])


def _reached(register: str, sources: dict[str, set[str]]) -> set[str]:
    seen, todo = set(), [register]
    while todo:
        if (at := todo.pop()) not in seen:
            seen.add(at)
            todo += sources.get(at, ())
    return seen
