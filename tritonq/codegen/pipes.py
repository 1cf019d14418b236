"""Floor 5. Which pipe of a multiprocessor an instruction keeps busy, and for how long."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .sass import MATRIX, Instruction

_FMA = ("FFMA", "FADD", "FMUL")
_HALF = ("HADD2", "HFMA2", "HMUL2")
_XU = ("MUFU", "I2F", "F2I", "F2F", "FRND")
_LSU = ("LDG", "LDS", "LDL", "STG", "STS", "STL", "LDGSTS", "LDSM", "STSM", "SHFL", "ATOM", "ATOMG", "RED", "LDC")
# Take an issue slot and nothing that others wait for: control, barriers, what runs once per warp.
_CONTROL = ("BRA", "EXIT", "NOP", "BAR", "DEPBAR", "LDGDEPBAR", "WARPSYNC", "BSSY", "BSYNC", "MEMBAR", "ERRBAR", "CCTL", "S2R", "S2UR",
            "CS2R", "R2UR", "WARPGROUP", "SYNCS", "FENCE", "ELECT")  # fmt: skip


def busy(instructions: Iterable[Instruction], arch: int | str) -> Counter[str]:
    """Cycles that one warp's ``instructions`` keep each pipe of a multiprocessor busy: 32 lanes over the lanes per cycle.

    CUDA C++ Programming Guide, table "Throughput of Native Arithmetic Instructions": 128 lanes of float32 (64 on sm_80), 64 of integers,
    16 of conversions and transcendental functions. Loads and stores, shuffles too: 128 bytes per cycle, the width of shared memory.
    """
    fma = 0.5 if arch == 80 else 0.25
    half = 0.25 if arch in (90, 100) else 0.5
    total: Counter[str] = Counter({"alu": 0.0, "fma": 0.0, "xu": 0.0, "lsu": 0.0})
    for instruction in instructions:
        kind = instruction.kind
        if kind in _FMA:
            total["fma"] += fma
        elif kind in _HALF:
            total["fma"] += half
        elif kind.startswith("IMAD"):
            total["fma"] += 0.5
        elif kind in _XU:
            total["xu"] += 2
        elif kind in _LSU:
            total["lsu"] += _lsu_cycles(instruction)
        elif not (kind in MATRIX or kind in _CONTROL or kind.startswith("U")):
            total["alu"] += 0.5
    return total


def _lsu_cycles(instruction: Instruction) -> float:
    if instruction.kind in ("LDSM", "STSM"):
        return float(instruction.opcode.split(".")[-1]) if instruction.opcode[-2:] in (".2", ".4") else 1.0
    return max(instruction.width / 32, 1.0)
