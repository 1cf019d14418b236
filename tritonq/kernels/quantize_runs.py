"""Floor 3. What the kernels share that quantize straight into a product's layout: a run of a row is one group, or a step of several."""
from __future__ import annotations

from .._triton import jit, tl
from ..scheme import Scheme
from .parameters import finite_or


@jit
def run_range(x_ptr, rows, first, columns, N, K, x_row, x_col, COMPUTE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """(least, greatest) finite value ``[rows, PARTS]`` of the run of ``columns`` from ``first`` on, PARTS groups of WIDTH a step."""
    low = tl.full((rows.shape[0], PARTS), float("inf"), COMPUTE)
    high = tl.full((rows.shape[0], PARTS), -float("inf"), COMPUTE)
    for start in range(first, tl.minimum(first + columns, K), PARTS * WIDTH):
        x = load_step(x_ptr, rows, start, N, K, x_row, x_col, COMPUTE, PARTS * WIDTH).reshape(rows.shape[0], PARTS, WIDTH)
        low = tl.minimum(low, tl.min(finite_or(x, float("inf")), 2))
        high = tl.maximum(high, tl.max(finite_or(x, -float("inf")), 2))
    return low, high


@jit
def load_step(x_ptr, rows, start, N, K, x_row, x_col, COMPUTE: tl.constexpr, SPAN: tl.constexpr):
    """``[rows, SPAN]`` of x in COMPUTE; NaN outside of it, which enters no range."""
    column = start + tl.arange(0, SPAN)
    at = x_ptr + rows[:, None] * x_row + column.to(tl.int64)[None, :] * x_col
    return tl.load(at, mask=(rows < N)[:, None] & (column < K)[None, :], other=float("nan")).to(COMPUTE)


@jit
def spread(values, WIDTH: tl.constexpr):
    """``[rows, PARTS]`` per group to ``[rows, PARTS * WIDTH]``."""
    wide = tl.broadcast_to(values[:, :, None], (values.shape[0], values.shape[1], WIDTH))
    return wide.reshape(values.shape[0], values.shape[1] * WIDTH)


def refuses_groups(scheme: Scheme, k: int, span: int) -> str | None:
    """Why a kernel that takes ``span`` columns of a row at a time cannot make the scales of ``scheme``, or None."""
    if "dq" in scheme.options or scheme.recipe == "nv":
        return f"{scheme} has a second level of scales, which only a second launch can make"
    columns = scheme.group_shape(1, k)[1]
    if scheme.granularity.kind not in ("group", "channel", "token"):
        return f"holds groups along rows, {scheme} shares scales otherwise"
    if columns < k and span % columns and columns % span:
        return f"holds groups of 1, 2, 4, ... columns up to {span}, of multiples of {span}, or whole rows; {scheme} has {columns}"
    return None
