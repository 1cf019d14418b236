"""Floor 3. The range of a whole tensor: per program first, then from the partials."""
from __future__ import annotations

from .._triton import jit, tl
from .parameters import finite_or


@jit
def range_partials(
    x_ptr, low_ptr, high_ptr, N, K, x_row, x_col, programs_k,
    COMPUTE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """low[p], high[p] = least and greatest finite value of what program p reads: tiles p, p + programs_k, ... of x[N, K]."""
    pid = tl.program_id(0)
    low = tl.full((BLOCK_N, BLOCK_K), float("inf"), COMPUTE)
    high = tl.full((BLOCK_N, BLOCK_K), -float("inf"), COMPUTE)
    tiles_k = tl.cdiv(K, BLOCK_K)
    tile = pid.to(tl.int64)
    while tile < tl.cdiv(N, BLOCK_N) * tiles_k:
        rows = (tile // tiles_k) * BLOCK_N + tl.arange(0, BLOCK_N)
        cols = (tile % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = (rows < N)[:, None] & (cols < K)[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_row + cols[None, :] * x_col, mask=mask, other=float("nan")).to(COMPUTE)
        low = tl.minimum(low, finite_or(x, float("inf")))
        high = tl.maximum(high, finite_or(x, -float("inf")))
        tile += programs_k
    tl.store(low_ptr + pid, tl.min(tl.min(low, 1), 0))
    tl.store(high_ptr + pid, tl.max(tl.max(high, 1), 0))


@jit
def tensor_range(low_ptr, high_ptr, partials, COMPUTE: tl.constexpr, PARTIALS: tl.constexpr):
    """The range of the whole tensor from the partials, as two tensors of one element."""
    index = tl.arange(0, PARTIALS)
    low = tl.load(low_ptr + index, mask=index < partials, other=float("inf"))
    high = tl.load(high_ptr + index, mask=index < partials, other=-float("inf"))
    return tl.min(low, 0, keep_dims=True), tl.max(high, 0, keep_dims=True)
