"""Floor 4. What all seed plans share: select, can_implement, run, sku, and the wording of refusals.

A plan is bound to a descriptor (shapes, ranges, dtypes; no tensor). ``can_implement`` lists, in order, every rule that
concrete tensors may break; ``run`` refuses with the first of them.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

import torch

from ..backend import current_device, uses_kernels
from ..dtypes import compute_dtype, dtype_name
from ..errors import InvalidProblemError, UnsupportedError
from ..kernels import affine as affine_kernels
from ..kernels import dynamic_range as dynamic_range_kernels
from ..kernels import linear as linear_kernels
from ..reference import affine, dynamic_range, linear
from .core import KernelSku, PlanPreference, PrecisionGuarantee, Status, Target, check_workspace, expect_dense, expect_type, preference

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CODES = (torch.int8, torch.uint8)
_INT32 = torch.iinfo(torch.int32)


def default_q_range(dtype: torch.dtype) -> tuple[int, int] | None:
    """The whole range of a code type: int8 (-128, 127), uint8 (0, 255), None for every other dtype."""
    return {torch.int8: (-128, 127), torch.uint8: (0, 255)}.get(dtype)


def one_of(dtype: torch.dtype, known: tuple[torch.dtype, ...], name: str) -> None:
    """Refuse a dtype that no kernel is written for."""
    expect_type(dtype, torch.dtype, name)
    if dtype not in known:
        raise UnsupportedError(f"{name} {dtype_name(dtype)} is not supported; it must be one of {', '.join(map(dtype_name, known))}")


def size(value: int, name: str, minimum: int = 0) -> None:
    """Refuse what is not an integer of at least ``minimum``."""
    if expect_type(value, int, name) < minimum:
        raise InvalidProblemError(f"{name} must be at least {minimum}, got {value}")


def code_range(q_min: int, q_max: int, dtype: torch.dtype) -> None:
    """Refuse a range of codes that is empty, or that the code type cannot hold."""
    one_of(dtype, CODES, "output_dtype")
    expect_type(q_min, int, "q_min")
    expect_type(q_max, int, "q_max")
    low, high = default_q_range(dtype)
    if q_min > q_max:
        raise InvalidProblemError(f"q_min must not exceed q_max, got q_min={q_min}, q_max={q_max}")
    if q_min < low or q_max > high:
        raise InvalidProblemError(
            f"codes {q_min}..{q_max} do not fit {dtype_name(dtype)}, which holds {low}..{high}; narrow the range or change output_dtype"
        )


def symmetric_range(q_min: int, q_max: int, whose: str = "a symmetric") -> None:
    """Refuse codes under which a scale ``absmax / q_max`` would be no scale, or zeros would not stay zeros."""
    if q_max <= 0:
        raise InvalidProblemError(f"{whose} scale is absmax / q_max, so q_max must be at least 1, got {q_max}")
    if q_min > 0:
        raise InvalidProblemError(f"{whose} scale has code 0 for zeros, so q_min must be at most 0, got {q_min}")


def as_float(value: float) -> float:
    """``value`` as a float; +-Inf for an integer that is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def tensor_refusals(
    name: str, t: Any, dtype: torch.dtype | None, shapes: tuple[tuple[int, ...], ...], device: torch.device, contiguous: bool = True
) -> Iterator[str]:
    """Why ``t`` cannot be the argument ``name``: wrong dtype, shape, device or strides. Raises where it is no tensor."""
    expect_type(t, torch.Tensor, name)
    if dtype is not None and t.dtype != dtype:
        yield f"{name} must be {dtype_name(dtype)}, got {dtype_name(t.dtype)}; pass {name}.to(torch.{dtype_name(dtype)})"
    if tuple(t.shape) not in shapes:
        yield f"{name} must have shape {' or '.join(str(list(s)) for s in shapes)}, got {list(t.shape)}"
    if t.device != device:
        yield f"{name} is on {t.device}, but the input is on {device}; move it with .to({str(device)!r})"
    try:
        expect_dense(t, name)
    except InvalidProblemError as error:
        yield str(error)
        return
    if contiguous and not t.is_contiguous():
        yield f"{name} must be contiguous, got strides {list(t.stride())}; pass {name}.contiguous()"


def positive_refusals(name: str, scale: float | torch.Tensor, zero_allowed: bool = False) -> Iterator[str]:
    """Why a scale cannot be used: every value must be finite and positive. Reading a CUDA tensor waits for the GPU,
    so values are not read while a CUDA graph is captured."""
    if isinstance(scale, torch.Tensor):
        if scale.numel() == 0 or (scale.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        low, high = (v.item() for v in torch.aminmax(scale.detach().double()))
        worst = low if not (low > 0 or (zero_allowed and low == 0)) else high
    else:
        low = high = worst = as_float(scale)
    if not ((low > 0 or (zero_allowed and low == 0)) and high < float("inf")):
        rule = "not negative" if zero_allowed else "greater than 0"
        yield f"{name} must be finite and {rule}, found {worst}; an all-zero group takes {0 if zero_allowed else 1}"


def int32_refusals(name: str, value: int) -> Iterator[str]:
    if not _INT32.min <= value <= _INT32.max:
        yield f"{name} must fit int32, got {value}"


class SeedPlan:
    """One operation on one problem: ``select`` it from a descriptor, then ``run`` it on tensors.

    ``run(stream, workspace, args)`` launches on ``stream`` (a ``torch.cuda.Stream``; None is the current one) and returns the
    output. CPU tensors run the torch reference, or the kernels in Triton's interpreter, with the same bits. Outputs given in the
    args are written; those left None are allocated. An empty problem launches nothing.
    """

    Descriptor: ClassVar[type]
    Args: ClassVar[type]
    op: ClassVar[str]  # what is computed, as in the sku
    category: ClassVar[str] = "quantize"
    kernel: ClassVar[str] = "affine"

    def __init__(self, desc: Any, pref: PlanPreference, target: Target):
        self.desc, self.pref, self.target = desc, pref, target

    @classmethod
    def select(cls, stream: torch.cuda.Stream | None, desc: Any, pref: PlanPreference | None = None):
        """The plan for ``desc``.

        Raises:
            InvalidProblemError: the descriptor contradicts itself, or is of another type.
            UnsupportedError: no kernel for these dtypes, or none within ``pref``.
        """
        _check_stream(stream)
        expect_type(desc, cls.Descriptor, "desc")
        pref = preference(pref)
        desc.check()
        plan = cls(desc, pref, Target.of(stream.device if stream is not None else None))
        if pref.prefer_kernel not in (None, plan.kernel_name):
            raise UnsupportedError(
                f"{cls.__name__} runs the kernel {plan.kernel_name!r} here, prefer_kernel asks for {pref.prefer_kernel!r}; leave it None"
            )
        needed, limit = plan.workspace_size(), pref.max_workspace_bytes
        if needed > limit:
            raise UnsupportedError(f"{cls.__name__} needs {needed} bytes of workspace, max_workspace_bytes allows {limit}; raise the limit")
        return plan

    def can_implement(self, args: Any) -> Status:
        """Whether ``run`` accepts ``args``: dtypes, shapes, devices, strides, and that scales are finite and positive.

        Reading a CUDA scale's values waits for the GPU. Wrong Python types raise :class:`InvalidProblemError`.
        """
        expect_type(args, self.Args, "args")
        return Status(next(iter(self._refusals(args)), None))

    def workspace_size(self) -> int:
        """Bytes of workspace that ``run`` uses; it allocates them itself when ``workspace`` is None."""
        return 0

    def sku(self) -> KernelSku:
        """The stable name of what runs: operation, dtypes, target and kernel."""
        element, aux_element = self._elements()
        return KernelSku(
            category=self.category, op=self.op, kernel=self.kernel_name, element=element, aux_element=aux_element, target=self.target,
            precision_guarantee=self.precision_guarantee(),
        )  # fmt: skip

    def precision_guarantee(self) -> PrecisionGuarantee:
        """Equal to the torch reference bit for bit on every backend; float64 input is computed in float64, all other in float32."""
        math = dtype_name(compute_dtype(self._elements()[0]))
        return PrecisionGuarantee(math_precision=math, accumulator=math)

    def run(self, stream: torch.cuda.Stream | None, workspace: torch.Tensor | None, args: Any):
        """Compute, and return the output (or a tuple of outputs).

        Raises:
            InvalidProblemError: ``can_implement(args)`` is false; the text is its reason.
            WorkspaceTooSmallError: ``workspace`` is given, but smaller than ``workspace_size()``.
        """
        _check_stream(stream)
        status = self.can_implement(args)
        if not status:
            raise InvalidProblemError(f"{type(self).__name__} cannot run: {status.reason}")
        tensors = [value for value in vars(args).values() if isinstance(value, torch.Tensor)]
        if workspace is not None:
            check_workspace(workspace, self.workspace_size(), type(self).__name__, tensors)
        on_stream = torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext()
        with torch.no_grad(), current_device(tensors[0].device), on_stream:
            return self._execute(args, workspace)

    @property
    def kernel_name(self) -> str:
        return "reference" if self.target.backend == "reference" else self.kernel

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.desc})"

    def _elements(self) -> tuple[torch.dtype, torch.dtype | None]:
        """(input element, code element or None)."""
        raise NotImplementedError

    def _refusals(self, args: Any) -> Iterator[str]:
        raise NotImplementedError

    def _execute(self, args: Any, workspace: torch.Tensor | None):
        raise NotImplementedError


def _check_stream(stream: Any) -> None:
    if stream is not None and not isinstance(stream, torch.cuda.Stream):
        raise InvalidProblemError(f"stream must be a torch.cuda.Stream or None (the current one), got {type(stream).__name__}")


_IMPLEMENTATIONS = {
    "affine": (affine_kernels, affine),
    "dynamic_range": (dynamic_range_kernels, dynamic_range),
    "linear": (linear_kernels, linear),
}


def implementation(module: str, device: torch.device) -> ModuleType:
    """``tritonq.kernels.<module>`` where kernels run for tensors on ``device``, else ``tritonq.reference.<module>``: same functions."""
    kernels, reference = _IMPLEMENTATIONS[module]
    return kernels if uses_kernels(device) else reference


def given_or_empty(out: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=device) if out is None else out
