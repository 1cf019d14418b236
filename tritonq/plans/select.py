"""Floor 4. From a descriptor to a plan: ``select`` chooses, ``explain`` says why, ``can_implement`` answers yes or no."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from ..backend import current_device, reshaped
from ..errors import InvalidProblemError, UnsupportedError
from ..qtensor import QTensor
from .bound import find, made
from .configs import Choice, choose
from .constraints import check, valid
from .core import OK, KernelSku, PlanPreference, PrecisionGuarantee, Status, check_workspace, expect_type, preference
from .descriptors import DequantizeDesc, Desc, MatmulBackwardDesc, MatmulDesc, QuantizeDesc
from .kernel_entries import KERNELS
from .registry import REFERENCE, KernelEntry
from .space import Config


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A kernel, its config and its promises for one descriptor. Holds no tensor; run it as often as you like."""

    desc: Desc
    kernel: KernelEntry
    config: Config = field(hash=False)

    @staticmethod
    def of(desc: Desc, kernel: KernelEntry, config: Config) -> Plan:
        """A plan with the ``run`` that its operation needs."""
        return (MatmulPlan if isinstance(desc, MatmulDesc) else Plan)(desc=desc, kernel=kernel, config=config)

    def sku(self) -> KernelSku:
        """The stable name of exactly what runs."""
        desc = self.desc
        return KernelSku(
            category="matmul" if desc.op.startswith("matmul") else "quantization", op=desc.op,
            kernel=f"{self.kernel.name}.r{self.kernel.revision}", element=desc.dtype,
            layout=desc.layout + ".act_order" * getattr(desc, "act_order", False),
            epilogue=getattr(desc, "epilogue", None), scheme=str(desc.scheme),
            target=desc.target, config=tuple(self.config.items()), precision_guarantee=self.precision_guarantee(),
        )  # fmt: skip

    def workspace_size(self) -> int:
        """Bytes of scratch that :meth:`run` needs; it allocates them when no workspace is given."""
        return self.kernel.workspace_size(self.desc, self.config)

    def precision_guarantee(self) -> PrecisionGuarantee:
        """What the result is held to."""
        return self.kernel.guarantee(self.desc, self.config)

    def can_implement(self, *tensors: torch.Tensor | QTensor, **epilogue) -> Status:
        """Whether these arguments are what the plan was made for."""
        try:
            got = self._describe(*tensors, **epilogue)
        except InvalidProblemError as error:
            return Status(str(error))
        if differ := [f"{name}={value}" for name, value in vars(got).items() if value != getattr(self.desc, name)]:
            return Status(f"the plan is for {self.desc}, the arguments have {', '.join(differ)}; select a plan for them")
        return OK

    def run(self, *tensors: torch.Tensor | QTensor, workspace: torch.Tensor | None = None):
        """``run(x)`` quantizes, ``run(q)`` dequantizes, ``run(dy, q)`` goes back to x; products: :meth:`MatmulPlan.run`.

        Raises:
            InvalidProblemError: the arguments are not what the plan was made for.
            WorkspaceTooSmallError: ``workspace`` (uint8, on the same device) holds fewer than :meth:`workspace_size` bytes.
        """
        self._expect(*tensors)
        if workspace is not None:
            self.check_workspace(workspace, *tensors)
        with current_device(tensors[0].device):
            if isinstance(self.desc, MatmulBackwardDesc):
                dy, q = tensors
                dx = self.kernel.launch(self.desc, self.config, workspace, dy.reshape(self.desc.m, q.shape[0]), q)
                return reshaped(dx.index_select(1, q.column_rank) if self.desc.act_order else dx, (*dy.shape[:-1], q.shape[1]))
            out = self.kernel.launch(self.desc, self.config, workspace, *tensors)
        if isinstance(out, QTensor):
            return out.relayout(self.desc.layout)
        sorted_outside = getattr(self.desc, "act_order", False) and not self.kernel.act_order(self.desc)
        return out.index_select(1, tensors[0].column_rank) if sorted_outside else out

    def _expect(self, *tensors, **epilogue) -> None:
        if not (status := self.can_implement(*tensors, **epilogue)):
            raise InvalidProblemError(status.reason)

    def check_workspace(self, workspace: torch.Tensor, *operands: torch.Tensor | QTensor | None) -> None:
        """Refuse one that :meth:`run` could not use with these."""
        tensors = [tensor for one in operands for tensor in (one.flat() if isinstance(one, QTensor) else [one]) if tensor is not None]
        check_workspace(workspace, self.workspace_size(), self.desc, tensors)

    def _describe(self, *tensors, **epilogue) -> Desc:
        want = 2 if isinstance(self.desc, MatmulDesc | MatmulBackwardDesc) else 1
        if len(tensors) != want:
            raise InvalidProblemError(f"{self.desc} takes {want} positional tensors, got {len(tensors)}")
        if isinstance(self.desc, QuantizeDesc):
            return QuantizeDesc.of(tensors[0], self.desc.scheme, self.desc.layout)
        if isinstance(self.desc, DequantizeDesc):
            return DequantizeDesc.of(tensors[0], self.desc.dtype)
        if isinstance(self.desc, MatmulBackwardDesc):
            return MatmulBackwardDesc.of(*tensors)
        return MatmulDesc.of(*tensors, activation=self.desc.activation, **epilogue)


class MatmulPlan(Plan):
    """The plan of a :class:`MatmulDesc`."""

    def run(self, x: torch.Tensor, q: QTensor | None = None, *, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None,
            workspace: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """``activation(x @ w_hat.T + bias) + residual``.

        Raises:
            InvalidProblemError: the arguments are not what the plan was made for.
            WorkspaceTooSmallError: ``workspace`` (uint8, on the same device) holds fewer than :meth:`workspace_size` bytes.
        """
        choose = self._choose
        product = find(choose, choose, x, q, bias, residual, workspace) or made(choose, choose, x, q, bias, residual, workspace)
        return product.run(x, q, bias, residual, workspace)

    def prepare(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None = None, residual: torch.Tensor | None = None) -> None:
        """Compile and load what ``run(x, q, bias=, residual=)`` launches, and launch nothing: before a CUDA graph is captured.

        The tensors' dtypes, shapes, strides, alignment and devices count, not their values.
        """
        choose = self._choose
        (find(choose, choose, x, q, bias, residual) or made(choose, choose, x, q, bias, residual)).prepare(x, q, bias, residual)

    @cached_property
    def _choose(self) -> Callable:
        """What :func:`find` asks for a product's plan. Kept, since to bind a method takes time; one per plan, so that it is also the owner
        of what is found."""
        return self._itself

    def _itself(self, _, x, q, bias, residual) -> Plan:
        self._expect(*(x,) if q is None else (x, q), bias=bias, residual=residual)
        return self


class Verdict(NamedTuple):
    """What is said of one kernel: whether it can, and if so the config that it would have."""

    kernel: KernelEntry
    status: Status
    choice: Choice | None


def candidates(desc: Desc) -> list[Verdict]:
    """Every implementation of the descriptor's operation, best first, each with its verdict."""
    expect_type(desc, (QuantizeDesc, DequantizeDesc, MatmulDesc, MatmulBackwardDesc), "desc")
    status = valid(desc)
    kernels = desc.target.backend != "reference"
    entries = [entry for entry in KERNELS if entry.op == desc.op]
    if status:
        entries.sort(key=lambda entry: not entry.prefer(desc))
    rows = []
    for entry in [*entries, REFERENCE[desc.op]]:
        if not status:
            rows.append((entry, status))
        elif entry.name == "reference":
            forced = Status(f"the target is {desc.target}; TRITONQ_BACKEND=reference forces plain torch")
            rows.append((entry, forced if kernels else status))
        elif not kernels:
            rows.append((entry, Status(f"the target is {desc.target}; kernels run on a GPU or with TRITON_INTERPRET=1")))
        else:
            rows.append((entry, entry.can_implement(desc)))
    return _fastest_first([Verdict(entry, status, choose(entry, desc) if status else None) for entry, status in rows])


def _fastest_first(rows: list[Verdict]) -> list[Verdict]:
    """Where several kernels have been measured for this very problem, those in the order of their times, each in the place of another."""
    measured = {i: row.choice.us for i, row in enumerate(rows) if row.choice and row.choice.us}
    order = dict(zip(measured, sorted(measured, key=measured.get)))
    return [rows[order.get(i, i)] for i in range(len(rows))]


def can_implement(desc: Desc) -> Status:
    """Whether any kernel implements ``desc``; falsy with every refusal otherwise."""
    rows = candidates(desc)
    if any(row.status for row in rows):
        return OK
    reasons = dict.fromkeys(row.status.reason for row in rows)
    return Status("; ".join(reasons))


def select(desc: Desc, pref: PlanPreference | None = None) -> Plan:
    """The first kernel that implements ``desc`` and meets ``pref``. Pure: nothing is compiled, timed or launched.

    Raises:
        InvalidProblemError: the request itself breaks a rule.
        UnsupportedError: no kernel is left; the text lists each with its reason.

    Example:
        >>> import torch, tritonq
        >>> q = tritonq.quantize(torch.randn(8, 64), "nf4")
        >>> tritonq.select(tritonq.MatmulDesc.of(torch.randn(2, 64), q)).workspace_size()
        0
    """
    pref = preference(pref)
    rows = candidates(desc)
    check(desc)
    reasons = []
    for row in rows:
        if status := _meets(row, desc, pref):
            return Plan.of(desc, row.kernel, row.choice.config)
        reasons.append(f"{row.kernel.name}: {status.reason}")
    raise UnsupportedError(f"no kernel for {desc}: " + "; ".join(reasons))


def explain(desc: Desc, pref: PlanPreference | None = None) -> str:
    """One line per kernel: chosen, or refused and why; and where the chosen one's config comes from.

    Example:
        >>> import torch, tritonq
        >>> print(tritonq.explain(tritonq.QuantizeDesc.of(torch.randn(2, 64), "nf4")).splitlines()[0])
        quantize(n=2, k=64, nf4, float32, cpu-reference)
    """
    pref = preference(pref)
    rows = candidates(desc)
    lines, chosen = [str(desc)], None
    for row in rows:
        entry, choice = row.kernel, row.choice
        if not (status := _meets(row, desc, pref)):
            lines.append(f"  {entry.name:<18} refused: {status.reason}")
            continue
        if chosen:
            both = choice.us and chosen.us
            why = f"measured {choice.us:.1f} us, {chosen.us:.1f} above" if both else entry.prefer(desc).reason
            lines.append(f"  {entry.name:<18} possible, but {why or 'a kernel above is preferred'}")
            continue
        chosen = choice
        plan = Plan.of(desc, entry, choice.config)
        lines.append(f"  {entry.name:<18} chosen: {plan.sku()}, workspace {plan.workspace_size()} bytes")
        if plan.config:
            lines.append(f"  {'':<18} config: {choice.origin}")
    return "\n".join(lines)


def _meets(row: Verdict, desc: Desc, pref: PlanPreference) -> Status:
    entry = row.kernel
    if not row.status:
        return row.status
    if pref.prefer_kernel is not None and entry.name != pref.prefer_kernel:
        return Status(f"prefer_kernel={pref.prefer_kernel!r}")
    needed = entry.workspace_size(desc, row.choice.config)
    if needed > pref.max_workspace_bytes:
        return Status(f"needs a workspace of {needed} bytes, max_workspace_bytes={pref.max_workspace_bytes}")
    if pref.deterministic and not entry.guarantee(desc, row.choice.config).deterministic:
        return Status("its result may differ between runs; set deterministic=False to allow it")
    return OK
