"""Floor 4. Rules of configs that several fused products share."""
from __future__ import annotations

from .._triton import RELEASE
from ..kernels.split_k import MOST_SPLIT_TILES
from .core import OK, Status, Target
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


def fence_ok(target: Target, config: Config) -> Status:
    """Whether what wgmma reads is sure to be there: Triton before 3.9 leaves out the proxy fence behind an asynchronous copy."""
    wgmma = target.arch == 90 and config["num_warps"] % 4 == 0 and config["BLOCK_N"] >= 64
    if wgmma and config["STAGES"] > 1 and RELEASE is not None and RELEASE < (3, 9):
        return Status(f"num_warps={config['num_warps']} is wgmma on sm_90, which needs STAGES=1 before Triton 3.9, got {config['STAGES']}")
    return OK
