"""Floor 4. Rules that several fused products share."""
from __future__ import annotations

import torch

from ..kernels.split_k import MOST_SPLIT_TILES
from ..layouts import LAYOUTS
from .core import OK, Status
from .descriptors import MatmulDesc
from .space import Config

MIN_ARCH = 80  # asynchronous copies, mma.sync of bfloat16
SLOW_WAY = "matmul_tiles turns the layout back in every call, q.relayout('row') does it once"


def reads(desc: MatmulDesc, layout: str) -> Status:
    """Whether the weight is in the one layout that a product reads, and x has 16 bits."""
    if desc.layout != layout:
        reason = LAYOUTS[layout].refuses(desc.scheme, desc.source_dtype)
        return Status(reason or f"takes layout {layout!r}; q.relayout({layout!r}) once, when the weight is loaded")
    if desc.dtype not in (torch.float16, torch.bfloat16):
        return Status(f"multiplies float16 or bfloat16, x is {desc.dtype}; convert x. {SLOW_WAY}")
    return OK


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
