"""Floor 6. What to tune: one kernel on one weight shape, scheme and bucket of M."""
from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import product

import torch

from ..dtypes import dtype_name
from ..errors import InvalidProblemError
from ..layouts import LAYOUTS
from ..plans.config_file import bucket
from ..plans.core import OK, Status, Target
from ..plans.descriptors import Desc, describe
from ..plans.kernel_entries import KERNELS
from ..plans.large_m import crossover
from ..plans.registry import KernelEntry
from ..scheme import Scheme

# Layouts of the weight that a kernel is tuned on, the first that can hold the scheme; row for every other kernel.
_LAYOUTS = {
    "matmul_frag": ("frag",), "matmul_ksplit": ("ksplit",), "quantize_frag": ("frag",), "quantize_ksplit": ("ksplit",),
    "dequantize_frag": ("frag",), "dequantize_matmul": ("frag", "row"), "dequantize_matmul_dx": ("frag", "row"),
    "matmul_dx": ("frag", "row"),
}  # fmt: skip
_NEAR = 8  # decoding first is tried from an eighth of the modelled crossover on


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One kernel and what it is to do. ``m``: the end of its bucket, None where there is no M; ``shape``: what the user calls [n, k]."""

    shape: str
    kernel: KernelEntry
    desc: Desc
    m: int | None

    @property
    def name(self) -> str:
        """``matmul_frag int4.g128 bfloat16 4096x4096 m=16``."""
        desc = self.desc
        rows = "" if self.m is None else f" m={self.m}"
        return f"{self.kernel.name} {desc.scheme} {dtype_name(desc.dtype)} {desc.n}x{desc.k}{rows}"


def default_kernels(target: Target) -> list[str]:
    """The fused product of the architecture, and decoding first, against which its crossover is measured."""
    return ["matmul_ksplit" if isinstance(target.arch, str) else "matmul_frag", "dequantize_matmul"]


def problems(
    shapes: Iterable[tuple[str, int, int]], schemes: Collection[Scheme], rows: Collection[int], kernels: Collection[str],
    dtype: torch.dtype, target: Target,
) -> tuple[list[Problem], list[tuple[str, str]]]:  # fmt: skip
    """(problems, what is left out and why). Problems of one weight are neighbours, so that it is made once.

    Args:
        shapes: (name, N, K).
        rows: values of M, each rounded up to the end of its bucket.
        kernels: names of the registry.
    """
    known = {entry.name: entry for entry in KERNELS}
    if unknown := [name for name in kernels if name not in known]:
        raise InvalidProblemError(f"unknown kernel {unknown[0]!r}; known: {', '.join(known)}")
    buckets = sorted({bucket(m) for m in rows})
    found, left_out = [], []
    for (name, n, k), scheme, kernel in product(shapes, schemes, kernels):
        entry, seen = known[kernel], set()
        for m in buckets if entry.op.startswith("matmul") else [None]:
            problem = Problem(shape=name, kernel=entry, desc=_describe(entry, scheme, n, k, m, dtype, target), m=m)
            status = _refused(problem)
            if not status:
                if status.reason not in seen:
                    left_out.append((problem.name, status.reason))
                seen.add(status.reason)
                continue
            found.append(problem)
    return found, left_out


def _describe(entry: KernelEntry, scheme: Scheme, n: int, k: int, m: int | None, dtype: torch.dtype, target: Target) -> Desc:
    layouts = _LAYOUTS.get(entry.name, ("row",))
    layout = next((name for name in layouts if LAYOUTS[name].refuses(scheme, dtype) is None), layouts[0])
    return describe(entry.op, n=n, k=k, m=m, dtype=dtype, scheme=scheme, target=target, layout=layout)


def _refused(problem: Problem) -> Status:
    desc = problem.desc
    if reason := LAYOUTS[desc.layout].refuses(desc.scheme, getattr(desc, "source_dtype", desc.dtype)):
        return Status(reason)
    if not (status := problem.kernel.can_implement(desc)):
        return status
    if problem.kernel.name.startswith("dequantize_matmul") and (first := crossover(desc)) > _NEAR * desc.m:
        return Status(f"decoding first is far from paying below m={first // _NEAR}")
    return OK
