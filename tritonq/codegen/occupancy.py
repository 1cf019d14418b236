"""Floor 5. How many programs of a kernel one multiprocessor holds at a time.

Limits per multiprocessor from the CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"; a program reserves
1 KiB of shared memory (compute capability 8.0 on), and registers are handed to warps in units of 256 from four equal banks.
"""
from __future__ import annotations

# architecture: (KiB of shared memory, threads, programs)
LIMITS = {80: (164, 2048, 32), 89: (100, 1536, 24), 90: (228, 2048, 32), 100: (228, 2048, 32), 120: (100, 1536, 24)}
_BANKS, _BANK_REGISTERS = 4, 16384


def programs_per_multiprocessor(arch: int | str, *, registers: int, shared: int, num_warps: int) -> int | None:
    """Of ``registers`` per thread and ``shared`` bytes; None for an architecture without an entry in LIMITS.

    >>> programs_per_multiprocessor(90, registers=128, shared=20480, num_warps=2)
    8
    """
    if arch not in LIMITS:
        return None
    kib, threads, programs = LIMITS[arch]
    per_warp = -(-32 * max(registers, 1) // 256) * 256
    by_registers = _BANKS * (_BANK_REGISTERS // per_warp) // num_warps
    return min(by_registers, kib * 1024 // (shared + 1024), threads // (32 * num_warps), programs)


# A compute unit of CDNA 3 has four SIMDs, each with 512 vector registers per lane in units of 8 and places for 8 waves of 64 lanes, and
# 64 KiB of local data share for all ("AMD Instinct MI300 Instruction Set Architecture"). Triton's num_warps counts waves.
_SIMDS, _VECTOR_REGISTERS, _WAVES, _LDS = 4, 512, 8, 64 * 1024


def programs_per_compute_unit(*, registers: int, shared: int, num_warps: int) -> int:
    """The same of gfx942.

    >>> programs_per_compute_unit(registers=128, shared=16384, num_warps=2)
    4
    """
    waves = _SIMDS * min(_WAVES, _VECTOR_REGISTERS // (-(-max(registers, 1) // 8) * 8))
    return min(waves // num_warps, _LDS // shared if shared else waves)
