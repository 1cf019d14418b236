"""Whether a result is right, told by the plain torch reference; a wrong one gets no time.

Rows of x and of the weight are sampled evenly from first to last, so that every tile has its turn over the shapes of a run.
"""
from __future__ import annotations

import torch

from .. import reference
from ..errors import UnsupportedError
from ..plans.descriptors import MatmulBackwardDesc
from ..plans.select import Plan
from ..qtensor import QTensor

ROWS, COLUMNS = 64, 256


def wrong(got: torch.Tensor, x: torch.Tensor, q: QTensor, plan: Plan) -> str:
    """Why ``got = plan.run(x, q)``, forward or backward, breaks the plan's guarantee; "" where it holds."""
    if isinstance(plan.desc, MatmulBackwardDesc):
        return _beyond(*_backward(got, x, q, plan))
    return _beyond(*_forward(got, x, q, plan))


def _forward(got: torch.Tensor, x: torch.Tensor, q: QTensor, plan: Plan):
    x, got = x.reshape(-1, x.shape[-1]), got.reshape(-1, got.shape[-1])
    rows, features = sample(len(x), ROWS, x.device), sample(q.shape[0], COLUMNS, x.device)
    part, weight = decoded_rows(q, features)
    x, guarantee = x[rows], plan.precision_guarantee()
    bound = guarantee.bound(x, q)[:, features] if part is None else guarantee.bound(x, part)
    return got[rows][:, features], x.double() @ weight.T, bound


def _backward(got: torch.Tensor, dy: torch.Tensor, q: QTensor, plan: Plan):
    dy, got = dy.reshape(-1, dy.shape[-1]), got.reshape(-1, got.shape[-1])
    rows, columns = sample(len(dy), ROWS, dy.device), sample(q.shape[1], COLUMNS, dy.device)
    dy = dy[rows]
    exact = dy.double() @ reference.dequantize(q, torch.float64)[:, columns]
    return got[rows][:, columns], exact, plan.precision_guarantee().bound(dy, q)[:, columns]


def _beyond(got: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> str:
    error = (got.double() - exact).abs()
    if bool((error <= bound).all()):  # NaN is not
        return ""
    if bool(error.isnan().any()):
        return "incorrect: NaN"
    return f"incorrect by {float(error.max()):.3g}, {float((error / bound).max()):.3g} times its bound"


def product(plan: Plan, x: torch.Tensor, q: QTensor, judge: QTensor) -> str:
    """What :func:`wrong` says of ``plan.run(x, q)``; ``judge`` is the same weight in ``row``, which need not be turned back each time."""
    return wrong(plan.run(x, q), x, judge, plan)


def quantized(plan: Plan, x: torch.Tensor) -> str:
    """What :func:`wrong_quantized` says of ``plan.run(x)``."""
    return wrong_quantized(plan.run(x), x)


def decoded(plan: Plan, q: QTensor) -> str:
    """What :func:`wrong_decoded` says of ``plan.run(q)``."""
    return wrong_decoded(plan.run(q), q)


def sample(size: int, most: int, device: torch.device) -> torch.Tensor:
    """At most ``most`` indices of ``size``, evenly spread, the first and the last among them."""
    if size <= most:
        return torch.arange(size, device=device)
    return torch.linspace(0, size - 1, most, dtype=torch.float64, device=device).round().long()


def decoded_rows(q: QTensor, rows: torch.Tensor) -> tuple[QTensor | None, torch.Tensor]:
    """Some rows as a matrix of their own (None where rows share scales) and decoded by the reference, float64."""
    part = _some_rows(q, rows)
    if part is None:
        return None, reference.dequantize(q, torch.float64)[rows]
    return part, reference.dequantize(part, torch.float64)


def _some_rows(q: QTensor, rows: torch.Tensor) -> QTensor | None:
    try:
        return q.rows(rows) if q.column_order is None else None
    except UnsupportedError:
        return None


def wrong_quantized(got: QTensor, x: torch.Tensor) -> str:
    """Why ``got`` is not what the reference makes of ``x``, bit for bit; "" where it is."""
    rows = sample(len(x), ROWS, x.device)
    part = _some_rows(got, rows) if got.second_scale is None else None  # a scale of the whole tensor needs the whole tensor
    want = reference.quantize((x if part is None else x[rows]).cpu(), got.scheme)
    found = (got.relayout("row") if part is None else part).tensors()
    for name, tensor in want.tensors().items():
        if not same_bytes(found[name], tensor):
            return f"incorrect: {name} differs from the reference"
    return ""


def wrong_decoded(got: torch.Tensor, q: QTensor) -> str:
    """Why ``got`` is not what the reference decodes, bit for bit; "" where it is."""
    rows = sample(q.shape[0], ROWS, q.device)
    part = _some_rows(q, rows)
    want = reference.dequantize(q, got.dtype)[rows] if part is None else reference.dequantize(part, got.dtype)
    return "" if same_bytes(got[rows], want) else "incorrect: values differ from the reference"


def far(got: torch.Tensor, want: torch.Tensor, most: float) -> str:
    """Why ``got`` is further from ``want`` than ``most``, as a share of its norm; "" where it is not. For peers, who promise no bound."""
    distance = float((got.double() - want.double()).norm() / want.double().norm())
    return "" if distance <= most else f"incorrect: {distance:.2g} away from the product, at most {most:g}"


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bytes, wherever they are."""
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)) if a.numel() else True
