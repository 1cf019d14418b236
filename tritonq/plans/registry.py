"""Floor 4. Every implementation of every operation, in order of preference."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .. import reference
from ..backend import current_device
from ..dtypes import compute_dtype, dtype_name
from .core import OK, PrecisionGuarantee, Status, underflow
from .descriptors import Desc, MatmulBackwardDesc, MatmulDesc
from .space import Config


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelEntry:
    """One implementation. ``revision`` rises when its arithmetic changes, so that a sku never names two results.

    ``prefer``: falsy, with the reason, where an entry further down should be taken if there is one: a crossover in M.
    ``space``: configs that a tuner may try, the heuristic's first. ``config_ok``: the one statement of which configs this kernel takes
    for a problem; heuristic, tuner and the files of ``autotune_configs`` are held to it.
    ``act_order``: whether it reads ``column_order`` itself; otherwise the plan gathers the columns of x for it and puts decoded columns
    back.
    """

    op: str
    name: str
    revision: int
    can_implement: Callable[[Desc], Status]
    launch: Callable | None = None  # (desc, config, workspace, *tensors) -> result
    bind: Callable | None = None  # of a matmul, in place of launch: see product()
    config: Callable[[Desc], Config] = lambda desc: {}
    workspace_size: Callable[[Desc, Config], int] = lambda desc, config: 0
    space: Callable[[Desc], list[Config]] | None = None  # None: the heuristic's alone
    config_ok: Callable[[Desc, Config], Status] | None = None  # None: the heuristic's alone
    guarantee: Callable[[Desc, Config], PrecisionGuarantee]
    prefer: Callable[[Desc], Status] = lambda desc: OK
    act_order: Callable[[Desc], bool] = lambda desc: False

    def __post_init__(self):
        if self.space is None:
            object.__setattr__(self, "space", lambda desc: [self.config(desc)])
        if self.config_ok is None:
            object.__setattr__(self, "config_ok", self._only)

    def _only(self, desc: Desc, config: Config) -> Status:
        only = self.config(desc)
        return OK if config == only else Status(f"{self.name} is not tuned: it takes {only}, got {config}")

    def product(self, desc, config: Config, x, q, bias, residual, shape: tuple[int, ...]):
        """What multiplies matrices like these, into a result of ``shape``: ``run(x, q, bias, residual, workspace)`` and ``prepare``."""
        return Unbound(self, desc, config) if self.bind is None else self.bind(desc, config, x, q, bias, residual, shape)

    def __repr__(self) -> str:
        return f"KernelEntry({self.name}.r{self.revision})"


class Unbound:
    """A product that binds nothing: it is launched with its descriptor every time."""

    def __init__(self, entry: KernelEntry, desc: MatmulDesc, config: Config):
        self.entry, self.desc, self.config = entry, desc, config

    def run(self, x, q, bias, residual, workspace=None):
        with current_device(x.device):
            return self.entry.launch(self.desc, self.config, workspace, x, q, bias, residual)

    def prepare(self, x, q, bias, residual):
        """Nothing is known of what it launches."""


def exact(desc: Desc, config: Config) -> PrecisionGuarantee:
    """Bit for bit the reference."""
    precision = dtype_name(compute_dtype(desc.dtype))
    return PrecisionGuarantee(math_precision=precision, accumulator="none")


def accumulated(desc: MatmulDesc | MatmulBackwardDesc, config: Config) -> PrecisionGuarantee:
    """Sums of K (backward: N) products in any order: each of K additions and the three roundings of product and decode costs half an ulp.

    (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1: gamma_n = n u / (1 - n u).)
    """
    unit = 2.0**-53 if desc.dtype == torch.float64 else 2.0**-24
    over = "n" if isinstance(desc, MatmulBackwardDesc) else "k"
    products = getattr(desc, over)
    terms = (products + 4) * unit
    precision = dtype_name(compute_dtype(desc.dtype))
    out = torch.finfo(desc.dtype)
    return PrecisionGuarantee(math_precision=precision, accumulator=precision, bitwise=False, relative=terms / (1 - min(terms, 0.5)),
                              output_eps=out.eps / 2, output_tiny=underflow(desc.dtype, products, precision), sums_over=over)  # fmt: skip


def always(desc: Desc) -> Status:
    """There is nothing that it does not implement."""
    return OK


def _everywhere(desc: Desc) -> bool:
    return True


def _reference_matmul(desc, config, workspace, x, q, bias, residual):
    with torch.no_grad():  # as a kernel: what has gradients is the operator
        return reference.matmul(x, q, bias, desc.activation, residual)


REFERENCE = {
    "quantize": KernelEntry(op="quantize", name="reference", revision=1, can_implement=always, guarantee=exact,
                            launch=lambda desc, config, workspace, x: reference.quantize(x, desc.scheme)),
    "dequantize": KernelEntry(op="dequantize", name="reference", revision=1, can_implement=always, guarantee=exact, act_order=_everywhere,
                              launch=lambda desc, config, workspace, q: reference.dequantize(q, desc.dtype)),
    "matmul": KernelEntry(op="matmul", name="reference", revision=1, can_implement=always, guarantee=accumulated, act_order=_everywhere,
                          launch=_reference_matmul),
    "matmul_backward": KernelEntry(op="matmul_backward", name="reference", revision=1, can_implement=always, guarantee=accumulated,
                                   launch=lambda desc, config, workspace, dy, q: reference.matmul_backward(dy, q)),
}  # fmt: skip
