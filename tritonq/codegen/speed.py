"""Floor 5. A model of speed that needs no GPU: microseconds of one launch and what limits them. **Predictions, never measurements.**

``predict(row, machine)`` takes a row of :func:`tritonq.codegen.examine` (counted instructions, registers, shared memory, grid) and a
:class:`Machine`. docs/speed_model.md states the model and what it leaves out.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnsupportedError
from .examine import Row
from .machines import Machine
from .occupancy import programs_per_compute_unit, programs_per_multiprocessor
from .work import Work, work

# Seconds. Estimates, all three, to be replaced by measurements:
LAUNCH = 2.0e-6  # start and end of a kernel inside a CUDA graph, the first answer of memory included
LATENCY = 0.7e-6  # from a load to its data, from a memory under load
REDUCTION = 1.0e-6  # split-K: fence, counter and reading back, three round trips to L2 that wait for each other
SCHEDULERS = 4  # of a multiprocessor; each issues one warp instruction per cycle (every architecture from sm_70 on)
# Instructions per cycle of a warp alone: dependent ones start 4 cycles apart (Jia et al., arXiv 1804.06826), two chains are assumed.
WARP_IPC = 0.5


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one launch; nothing was measured.

    Attributes:
        us: microseconds in a CUDA graph with cold caches.
        limit: what takes longest: "memory", "l2", "issue", a pipe ("alu", "fma", "xu", "lsu"), "tensor", "latency", or "turns": a program
            that unpacks weights, then waits for wgmma, then unpacks the next.
        parts: microseconds that each resource would take alone, and the fixed "launch" and "reduction".
        machine: the one it was made for.
        resident: programs that a multiprocessor holds at a time.
        rounds: how often the grid fills the machine; 2.1 means two full rounds and a tenth of a third.
    """

    us: float
    limit: str
    parts: dict[str, float]
    machine: str
    resident: int
    rounds: float

    def __str__(self) -> str:
        return f"predicted {self.us:.2f} us on {self.machine}, limit {self.limit}"


def predict(row: Row, machine: Machine) -> Prediction:
    """The time of one launch.

    Raises:
        UnsupportedError: a kernel that the model does not know, code for another architecture, or code of which not one program fits.

    Example, which needs no GPU::

        [row] = examine(MatmulDesc(m=1, n=4096, k=4096, scheme=Scheme.parse("int4.g128"), layout="frag", ...))
        print(predict(row, machine_named("h200")))
    """
    if row.arch != machine.arch:
        raise UnsupportedError(f"the code is for {row.arch}, {machine} is {machine.arch}; compile it for that")
    resident = programs_resident(row)
    if not resident:
        what = f"{row.registers} registers x {32 * row.report.num_warps} threads, {row.shared} bytes of shared memory"
        raise UnsupportedError(f"{row.kernel} {row.tile} does not fit a multiprocessor of {machine}: {what}")
    sync = bool(row.matrix) and all(kind.startswith(("HMMA", "IMMA", "QMMA")) for kind in row.matrix)
    turns = any(kind.startswith("HGMMA") for kind in row.matrix)
    return combine(work(row), machine, resident=resident, warps=row.report.num_warps, mma_sync=sync, turns=turns)


def programs_resident(row: Row) -> int:
    """Programs that one multiprocessor (compute unit) holds at a time; 0 where not even one fits."""
    has = {"registers": row.registers, "shared": row.shared, "num_warps": row.report.num_warps}
    if isinstance(row.arch, str):
        return programs_per_compute_unit(**has)
    found = programs_per_multiprocessor(row.arch, **has)
    if found is None:
        raise UnsupportedError(f"occupancy of {row.arch} is not known")
    return found


def combine(todo: Work, machine: Machine, *, resident: int, warps: int, mma_sync: bool = False, turns: bool = False) -> Prediction:
    """The model itself. Programs run in rounds that fill the machine; a round takes as long as the resource it keeps busy longest.

    ``turns``: a program does nothing else while its products run, so that only another program on the multiprocessor hides them.
    """
    slots = resident * machine.multiprocessors
    whole, rest = divmod(todo.programs, slots)
    flops = machine.flops * (machine.mma_sync if mma_sync else 1.0)
    parts: dict[str, float] = {}
    seconds = 0.0
    for programs, times in ((slots, whole), (rest, 1)):
        if not programs or not times:
            continue
        took = _round(todo, machine, programs, warps, flops, turns)
        seconds += times * max(took.values())
        for name, value in took.items():
            parts[name] = parts.get(name, 0.0) + times * value
    fixed = {"launch": LAUNCH} | ({"reduction": REDUCTION} if todo.splits > 1 else {})
    limit = max(parts, key=parts.__getitem__)
    return Prediction(us=1e6 * (seconds + sum(fixed.values())), limit=limit, parts={k: 1e6 * v for k, v in (parts | fixed).items()},
                      machine=machine.name, resident=resident, rounds=todo.programs / slots)  # fmt: skip


def _round(todo: Work, machine: Machine, programs: int, warps: int, flops: float, turns: bool) -> dict[str, float]:
    """Seconds that each resource is busy while ``programs`` run side by side."""
    crowd = -(-programs // machine.multiprocessors)  # on the fullest multiprocessor
    share = programs / todo.programs
    even = programs / (crowd * machine.multiprocessors)
    cycle = 1 / machine.clock
    alone = todo.issue / min(SCHEDULERS, warps * WARP_IPC) * cycle / todo.passes  # a pass of a program that has the place to itself
    # Little's law, per program: so many passes are under way, each for a latency.
    wait = todo.passes * (LATENCY / todo.ahead if todo.ahead else LATENCY + alone)
    took = {
        "memory": todo.memory * share / machine.bytes_per_s,
        "l2": todo.cache * share / machine.l2,
        "latency": wait,
    }
    if todo.issue:
        took["issue"] = crowd * todo.issue / min(SCHEDULERS, crowd * warps * WARP_IPC) * cycle
        took |= {pipe: crowd * cycles * cycle for pipe, cycles in todo.pipes.items()}
    if todo.flops:
        took["tensor"] = todo.flops * share / (flops * even)
    if turns:
        took["turns"] = alone * todo.passes + todo.flops / todo.programs / (flops / machine.multiprocessors)
    return took
