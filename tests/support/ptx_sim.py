"""Runs the PTX that Triton compiles, on the CPU, its threads vectorised in numpy: many blocks at a time where they share nothing.

It covers what Triton 3.6 to 3.9 emits for elementwise, reduction, atomic and matrix kernels on sm_80 (mma.sync, ldmatrix, cp.async) and
sm_90 (wgmma with A in registers or shared memory and any swizzle), with IEEE rounding for what is IEEE. Checked: bounds and alignment of
global and shared accesses, and that barriers, fences and atomics order what two warps do to one byte (see ``races``). Shared memory that
was never written is NaN.

Not modelled: TMA, mbarrier, clusters, tcgen05, local memory, races within a warp, time. Approximate division, reciprocal and roots are
moved by one unit in the last place on purpose (hardware differs from the rounded result too); ex2, lg2, tanh, sin and cos are rounded
from numpy's.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from .ptx import arithmetic, compare, convert, matrix, memory, warp  # noqa: F401 - these register the instructions
from .ptx.machine import Machine
from .ptx.program import PtxError, parse

__all__ = ["PtxError", "Run", "launch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What one launch did. ``unfenced`` counts wgmma operands in shared memory that were written by ordinary stores with no
    ``fence.proxy.async`` in between (meaningful with ``lazy``): right here, not promised by hardware."""

    steps: int
    unfenced: int


def launch(
    ptx: str,
    grid: Sequence[int],
    arguments: Sequence,
    *,
    num_warps: int = 4,
    shared: int = 0,
    lazy: bool = False,
    order: Callable[[int], Iterable[int]] | None = None,
    max_steps: int = 10**7,
) -> Run:
    """Run a kernel. ``arguments`` are CPU tensors (changed in place), ints and floats, without the constexprs.

    ``shared`` is the dynamic shared memory in bytes. ``lazy`` lets asynchronous copies and wgmma take effect as late as the wait
    instructions allow instead of at issue; running both ways catches missing waits and buffers reused too early. ``order`` maps the
    number of blocks to the sequence in which they run.

    Raises:
        PtxError: an access out of bounds or misaligned, an instruction that is not modelled, or more than ``max_steps`` of them.
    """
    machine = Machine(parse(ptx), grid, arguments, num_warps, shared, lazy, max_steps)
    machine.run(order)
    return Run(steps=machine.steps, unfenced=machine.unfenced)
