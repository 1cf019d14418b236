"""Floor 4. The vocabulary of every plan: status, sku, guarantee, preference, target, workspace."""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from types import NoneType

import torch

from ..backend import backend as backend_name
from ..backend import named_device
from ..dtypes import dtype_name
from ..errors import InvalidProblemError, WorkspaceTooSmallError
from ..reference.fake_quantize import spread


@dataclass(frozen=True)
class Status:
    """Truthy when something is possible; falsy with the ``reason`` (and the way out) when it is not."""

    reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is None


OK = Status()


@cache
def _architecture(device: torch.device) -> int | str:
    properties = torch.cuda.get_device_properties(device)
    return properties.gcnArchName.split(":")[0] if torch.version.hip else properties.major * 10 + properties.minor


# Multiprocessors of the largest part of an architecture (A100, L40S, H100 and H200, B200, RTX 5090), for plans made without the device.
_MULTIPROCESSORS = {80: 108, 89: 142, 90: 132, 100: 148, 120: 170}


@cache
def _multiprocessors() -> dict[int | str, int]:
    """Of the devices that are here, by architecture; the first where several are alike."""
    found = {}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found.setdefault(_architecture(torch.device("cuda", i)), torch.cuda.get_device_properties(i).multi_processor_count)
    return _MULTIPROCESSORS | found


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a plan runs. ``arch`` is the compute capability times ten (90 for sm_90), ``"gfx942"`` on HIP, None on a CPU.

    ``multiprocessors``: of a device that is not here; None asks :func:`multiprocessors`.
    """

    backend: str
    device: str = "cpu"
    arch: int | str | None = None
    multiprocessors: int | None = None

    @classmethod
    def of(cls, device: torch.device | str | None = None) -> Target:
        """The target of tensors on ``device`` (None: cuda where there is one, else cpu)."""
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        device = named_device(device)
        arch: int | str | None = None
        if device.type == "cuda":
            arch = _architecture(device)
        return cls(backend=backend_name(device), device=device.type, arch=arch)

    def __str__(self) -> str:
        if self.arch is None:
            return f"{self.device}-{self.backend}"
        return f"sm_{self.arch}" if isinstance(self.arch, int) else self.arch


def multiprocessors(target: Target) -> int:
    """How many programs run side by side: as the target says, else of the device where there is one, else of the architecture, else 132."""
    return target.multiprocessors or _multiprocessors().get(target.arch, 132)


@dataclass(frozen=True, kw_only=True)
class PrecisionGuarantee:
    """What a plan promises about its result.

    ``bitwise``: equal, bit for bit, to ``tritonq.reference``. Otherwise
    ``|y - y_exact| <= (relative + output_eps) * (|x| @ |w_hat|.T) + weight_tiny * sum(|x|) + output_tiny`` elementwise, as long as the
    result does not overflow its dtype, nor a decoded weight ``math_precision``. For float zero schemes ``|w_hat|`` reads
    ``|scale * code| + |zero_point|``, which may cancel. What bias, activation and residual add, :meth:`bound` knows.
    """

    math_precision: str  # of the operands of products: "float16", "bfloat16", "float32" or "float64"
    accumulator: str
    bitwise: bool = True
    relative: float = 0.0
    output_eps: float = 0.0
    output_tiny: float = 0.0
    weight_tiny: float = 0.0  # what a decoded weight may lose below the normal numbers of math_precision
    sums_over: str = "k"  # dimension of the weight [N, K] that the product sums over; "n" in the backward
    deterministic: bool = True
    bit_stable_on_same_hardware: bool = True

    def bound(self, x: torch.Tensor, q, bias: torch.Tensor | None = None, activation: str | None = None,
              residual: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """Largest allowed ``|y - y_exact|`` for ``matmul(x, q, bias, activation, residual)``: float64, the shape of the result; 0 where
        bitwise.

        Of a backward's guarantee x is dy ``[..., N]``, and the bound that of dx ``[..., K]``.

        Raises:
            InvalidProblemError: arguments that a product refuses.
        """
        from .constraints import check  # rules of products, which stand on this file
        from .descriptors import MatmulBackwardDesc, MatmulDesc

        check(MatmulDesc.of(x, q, bias, activation, residual) if self.sums_over == "k" else MatmulBackwardDesc.of(x, q))
        x, magnitude = x.to(torch.float64), _magnitude(q.relayout("row"))
        if bias is None and activation is None and residual is None:
            weight = (self.relative + self.output_eps) * magnitude + self.weight_tiny
            return x.abs() @ (weight.T if self.sums_over == "k" else weight) + self.output_tiny
        eps = torch.finfo(getattr(torch, self.accumulator)).eps
        y, error = x @ q.dequantize(torch.float64).T, x.abs() @ (self.relative * magnitude + self.weight_tiny).T
        if bias is not None:
            y = y + bias.to(torch.float64)
            error = error + eps * y.abs() + eps * error
        if activation is not None:
            y, error = _behind_activation(y, error, activation, eps)
        if residual is not None:
            y = y + residual.to(torch.float64)
            error = error + eps * y.abs() + eps * error
        return error + self.output_eps * (y.abs() + error) + self.output_tiny


def underflow(dtype: torch.dtype, products: int, accumulator: str) -> float:
    """``output_tiny``: what a result of ``dtype`` may lose at the smallest numbers, itself and in each product that is summed."""
    result, sums = torch.finfo(dtype), torch.finfo(getattr(torch, accumulator))
    return result.smallest_normal * result.eps + products * sums.smallest_normal * sums.eps


# How much an error in front of each activation may grow: the largest slope, at 2.4 for silu (1.0998), at sqrt(2) for gelu (1.1289).
_SLOPES = {"relu": 1.0, "silu": 1.1, "gelu": 1.13, "swiglu": 1.1}


def _behind_activation(y: torch.Tensor, error: torch.Tensor, activation: str, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The activation of y ``[..., N]`` (of its first half times its second for swiglu) and what ``error`` has become.

    The functions themselves are held to ``4 eps (1 + |y|)``: exponentials of an argument that is rounded, a quotient, a product.
    """
    gated = activation == "swiglu"
    (y, up), (error, up_error) = (y.chunk(2, -1), error.chunk(2, -1)) if gated else ((y, None), (error, None))
    slope, own = _SLOPES[activation], 0.0 if activation == "relu" else 4 * eps * (1 + y.abs())
    y, error = getattr(torch.nn.functional, "silu" if gated else activation)(y), slope * error + own
    if gated:
        y, error = y * up, error * (up.abs() + up_error) + y.abs() * up_error
        error = error + eps * (y.abs() + error)
    return y, error


def _magnitude(q) -> torch.Tensor:
    """float64 ``[N, K]``: |w_hat|, or at least ``|scale * code| + |zero_point|`` for float zero schemes."""
    weight = q.dequantize(torch.float64).abs()
    if q.scheme.float_zero:
        zero = spread(q.zero_point.to(torch.float64).abs(), q.scheme, q.shape)
        zero = zero if q.column_order is None else zero.index_select(1, q.column_rank)
        weight += 2 * zero  # |scale * code| <= |w_hat| + |zero_point|
    return weight


@dataclass(frozen=True, kw_only=True)
class KernelSku:
    """Stable name of exactly what runs: usable as a cache key, a benchmark row's key, a line of a bug report.

    ``str(sku)`` changes whenever the result or the code that computes it could change.
    """

    category: str  # "quantize", "dequantize", "matmul", "linear"
    op: str  # what is computed, e.g. "quantize_per_group"
    kernel: str  # what computes it, e.g. "affine_quantize" or "reference"
    element: torch.dtype
    aux_element: torch.dtype | None = None
    layout: str | None = None
    epilogue: str | None = None
    scheme: str | None = None
    target: Target = field(default_factory=Target.of)
    config: tuple[tuple[str, int], ...] = ()
    precision_guarantee: PrecisionGuarantee | None = None

    @property
    def arch(self) -> int | str | None:
        return self.target.arch

    @property
    def backend(self) -> str:
        return self.target.backend

    def __str__(self) -> str:
        parts = [self.op]
        if self.scheme:
            parts.append(self.scheme)
        parts.append(dtype_name(self.element) + (f"-{dtype_name(self.aux_element)}" if self.aux_element else ""))
        parts += [part for part in (self.layout, self.epilogue) if part]
        parts.append(str(self.target))
        parts.append(".".join([self.kernel] + [f"{name.removeprefix('BLOCK_').lower()}{value}" for name, value in self.config]))
        return "/".join(parts)


@dataclass(frozen=True, kw_only=True)
class PlanPreference:
    """What a caller wants of a plan.

    ``max_workspace_bytes``: refuse kernels that need more. ``prefer_kernel``: take this kernel or fail.
    ``deterministic``: refuse kernels whose result may differ between runs.
    """

    max_workspace_bytes: int = sys.maxsize
    prefer_kernel: str | None = None
    deterministic: bool = True

    def __post_init__(self):
        expect_type(self.max_workspace_bytes, int, "max_workspace_bytes")
        expect_type(self.prefer_kernel, (str, NoneType), "prefer_kernel")
        expect_type(self.deterministic, bool, "deterministic")


def preference(pref: PlanPreference | None) -> PlanPreference:
    """``pref``, or none in particular where it is None."""
    return expect_type(PlanPreference() if pref is None else pref, PlanPreference, "pref")


def check_workspace(workspace: torch.Tensor, needed: int, what: object, operands: Sequence[torch.Tensor]) -> None:
    """Refuse a workspace that cannot be used with these ``operands`` or has fewer than the ``needed`` bytes of ``what``."""
    if expect_dense(workspace, "workspace").nbytes < needed:
        raise WorkspaceTooSmallError(needed, workspace.nbytes, str(what))
    if not needed:
        return
    if workspace.device != operands[0].device:
        raise InvalidProblemError(f"workspace must be on {operands[0].device}, where the tensors are, got {workspace.device}")
    if workspace.data_ptr() % 16 or not workspace.is_contiguous():
        raise InvalidProblemError("workspace must be contiguous and start at a multiple of 16 bytes; torch.empty gives one that does")
    first, last = _memory(workspace)
    for tensor in operands:
        start, end = _memory(tensor)
        if tensor.numel() and start < last and first < end:
            raise InvalidProblemError(f"workspace overlaps a tensor of shape {tuple(tensor.shape)} that is read; give it memory of its own")


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    """The first address of its elements and the one behind the last."""
    reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.itemsize


def expect_type(value, kind: type | tuple[type, ...], name: str):
    """``value`` if it is a ``kind``, else an InvalidProblemError that names both. A bool is no int here."""
    allowed = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in allowed):
        kinds = " or ".join("None" if k is NoneType else k.__name__ for k in allowed)
        shown = f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else " ".join(repr(value).split())
        article = "an" if kinds[0] in "aeioAEIO" else "a"
        raise InvalidProblemError(f"{name} must be {article} {kinds}, got {type(value).__name__} {shown}"[:300])
    return value


def expect_dense(value, name: str) -> torch.Tensor:
    """``value`` if it is a tensor whose elements lie in memory as they are: not sparse, nested, meta, quantized or negated."""
    tensor = expect_type(value, torch.Tensor, name)
    kinds = {
        "a nested tensor": tensor.is_nested,
        f"{tensor.layout}": tensor.layout != torch.strided,
        "a meta tensor": tensor.device.type == "meta",
        "a torch quantized tensor": tensor.is_quantized,
        "a view that is negated when it is read (resolve_neg)": tensor.is_neg(),
    }
    if what := next((kind for kind, found in kinds.items() if found), None):
        shape = "" if tensor.is_nested else f" of shape {tuple(tensor.shape)}"
        raise InvalidProblemError(f"{name} must be a dense tensor with data, got {what}{shape}; make it dense first")
    return tensor
