"""Floor 0. Act-order: which group each column of a weight belongs to, as GPTQ's ``g_idx`` says it, and the order that makes groups runs.

GPTQ with ``desc_act`` quantizes columns by falling activation, so that the columns of a group lie scattered over the matrix. Kernels want
the columns of a group side by side: they are sorted once, when a weight is made, and the columns of x are gathered in the same order.
"""
from __future__ import annotations

import torch

from .errors import InvalidProblemError


def column_order(g_idx: torch.Tensor, k: int, group_size: int | None) -> torch.Tensor | None:
    """int32 ``[K]``: the column that comes i-th when columns are sorted by their group (stable); None where they are sorted already.

    Args:
        g_idx: integers ``[K]``, the group of each column.
        k: number of columns.
        group_size: columns of a group; None for schemes whose groups do not run along K.

    Raises:
        InvalidProblemError: not integers ``[K]``, a group that is not there, or a group of more or fewer than ``group_size`` columns
            (the last one holds the remainder).

    Example:
        >>> column_order(torch.tensor([1, 0, 1, 0]), 4, 2).tolist()
        [1, 3, 0, 2]
    """
    if group_size is None:
        raise InvalidProblemError("g_idx needs groups along K, such as 'int4.g128'; this scheme has none")
    if not isinstance(g_idx, torch.Tensor) or g_idx.dtype not in (torch.int32, torch.int64) or tuple(g_idx.shape) != (k,):
        got = f"{g_idx.dtype} of shape {tuple(g_idx.shape)}" if isinstance(g_idx, torch.Tensor) else type(g_idx).__name__
        raise InvalidProblemError(f"g_idx must be an int32 or int64 tensor of shape ({k},), one group per column, got {got}")
    if k == 0:
        return None
    groups = -(-k // group_size)
    low, high = int(g_idx.min()), int(g_idx.max())
    if low < 0 or high >= groups:
        wrong = low if low < 0 else high
        raise InvalidProblemError(f"g_idx holds group {wrong}; {k} columns in groups of {group_size} make the groups 0..{groups - 1}")
    sizes = torch.bincount(g_idx, minlength=groups).tolist()
    for group, size in enumerate(sizes):
        want = min(group_size, k - group * group_size)
        if size != want:
            raise InvalidProblemError(f"g_idx gives group {group} {size} columns; groups of {group_size} over {k} columns give it {want}")
    order = g_idx.argsort(stable=True).to(torch.int32)
    return None if bool((order[1:] > order[:-1]).all()) else order


def check_order(order: torch.Tensor) -> None:
    """Refuse a ``column_order`` that names a column twice or one that is not there."""
    k = order.numel()
    if not torch.equal(order.sort().values, torch.arange(k, dtype=order.dtype, device=order.device)):
        raise InvalidProblemError(f"column_order must hold every column 0..{k - 1} once; it repeats some or names others")


def inverse(order: torch.Tensor) -> torch.Tensor:
    """Where each column went: ``inverse(order)[order[i]] == i``."""
    rank = torch.empty_like(order)
    rank[order.long()] = torch.arange(order.numel(), dtype=order.dtype, device=order.device)
    return rank
