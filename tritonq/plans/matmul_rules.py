"""Floor 4. Rules of configs that several fused products share."""
from __future__ import annotations

from ..kernels.split_k import MOST_SPLIT_TILES
from .core import OK, Status
from .descriptors import MatmulDesc
from .space import Config


def splits_ok(desc: MatmulDesc, config: Config, steps: int) -> Status:
    """:func:`split_ok` of a product that splits K into ``steps``."""
    return split_ok(config["SPLIT_K"], steps, -(-desc.n // config["BLOCK_N"]) * -(-desc.m // config["BLOCK_M"]))


def split_ok(split: int, steps: int, tiles: int) -> Status:
    """Whether each split gets a step of the sum, and each tile of the result a counter."""
    if split > max(steps, 1):
        return Status(f"SPLIT_K={split} is more than the {steps} steps of the sum")
    if split > 1 and tiles > MOST_SPLIT_TILES:
        return Status(f"SPLIT_K={split} counts arrivals at {MOST_SPLIT_TILES} tiles at most, there are {tiles}; leave it 1")
    return OK
