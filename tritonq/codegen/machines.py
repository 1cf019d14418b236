"""Floor 5. The GPUs that :mod:`speed` knows: what memory, caches and tensor cores give at best. Nothing here was measured by this project.

Multiprocessors, boost clock, memory and dense 16-bit rates with float32 sums are those of the vendors' data sheets (A100 80GB, H100, H200,
L40S, GeForce RTX 4090 with the Ada whitepaper, HGX B200, MI300X). What remains of them in a kernel is an estimate, said beside each figure.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidProblemError

# Of the data sheet's memory bandwidth and 16-bit rate: what a copy (4.3 of 4.8 TB/s) and a matrix product (790 of 989 TFLOP/s) reached on
# an H200. Carried over to the others without a measurement.
COPY, PRODUCT = 0.9, 0.8


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One GPU.

    Attributes:
        arch: 90 for sm_90, "gfx942".
        clock: boost clock in Hz.
        bytes_per_s: between memory and chip, reading and writing, as a copy attains it.
        flops: operations per second of a dense 16-bit product with float32 sums, as a large product attains it.
        mma_sync: the share of ``flops`` that mma.sync reaches.
        l2: bytes per second between L2 and all multiprocessors. An estimate everywhere.
    """

    name: str
    arch: int | str
    multiprocessors: int
    clock: float
    bytes_per_s: float
    flops: float
    mma_sync: float = 1.0
    l2: float

    def __str__(self) -> str:
        return self.name


def _sheet(name: str, arch: int | str, multiprocessors: int, ghz: float, tb_per_s: float, tflops: float, *, mma_sync: float = 1.0,
           l2_tb: float) -> Machine:  # fmt: skip
    return Machine(name=name, arch=arch, multiprocessors=multiprocessors, clock=ghz * 1e9, bytes_per_s=COPY * tb_per_s * 1e12,
                   flops=PRODUCT * tflops * 1e12, mma_sync=mma_sync, l2=l2_tb * 1e12)  # fmt: skip


# mma_sync: at most 75 % of wgmma on Hopper (vllm pull request 7174, which introduced Machete); on sm_100 a third is assumed.
# l2: 5.5 TB/s is about what Chips and Cheese read on an H100 PCIe ("Nvidia's H100: Funny L2, and Tons of Bandwidth", 2023); the other
# values scale that by clock and multiprocessors, A100 and Ada by their fewer bytes per clock.
H100_SXM = _sheet("H100 SXM", 90, 132, 1.83, 3.35, 989, mma_sync=0.75, l2_tb=6.0)
_MACHINES = (
    H100_SXM,
    Machine(name="H200", arch=90, multiprocessors=132, clock=1.83e9, bytes_per_s=4.3e12, flops=790e12, mma_sync=0.75, l2=6.0e12),
    _sheet("H100 PCIe", 90, 114, 1.755, 2.04, 756, mma_sync=0.75, l2_tb=5.5),
    _sheet("A100", 80, 108, 1.41, 2.04, 312, l2_tb=4.0),
    _sheet("L40S", 89, 142, 2.52, 0.864, 362, l2_tb=5.0),
    _sheet("RTX 4090", 89, 128, 2.52, 1.008, 165, l2_tb=5.0),
    _sheet("B200", 100, 148, 1.85, 8.0, 2250, mma_sync=0.33, l2_tb=9.0),
    _sheet("MI300X", "gfx942", 304, 2.1, 5.3, 1307, l2_tb=8.0),
)
MACHINES: dict[str, Machine] = {machine.name.lower().replace(" ", "-"): machine for machine in _MACHINES}


def machine_named(name: str) -> Machine:
    """``"h200"``, ``"rtx-4090"``, ...: a key of MACHINES."""
    if name not in MACHINES:
        raise InvalidProblemError(f"unknown machine {name!r}; known: {', '.join(MACHINES)}")
    return MACHINES[name]


def machine_for(arch: int | str, multiprocessors: int, device: str = "") -> Machine:
    """The machine of that architecture and number of multiprocessors; of several, the one that ``device``, a driver's name, names.

    Without a name H100 SXM comes before H200, which differs in memory alone.

    Raises:
        InvalidProblemError: there is none; a guess would be worse than none.
    """
    found = [m for m in MACHINES.values() if (m.arch, m.multiprocessors) == (arch, multiprocessors)]
    if not found:
        known = ", ".join(f"{key} ({m.arch} x {m.multiprocessors})" for key, m in MACHINES.items())
        raise InvalidProblemError(f"the model of speed knows no {arch} with {multiprocessors} multiprocessors; name one of {known}")
    return next((m for m in found if m.name.split()[0] in device), found[0])
