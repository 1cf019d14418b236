"""Floor 4. ``matmul_ksplit`` as an entry of the registry: what it takes, how it is configured, what it promises."""
from __future__ import annotations

import torch

from .._triton import LACKS_PROXY_FENCE
from ..dtypes import dtype_name
from ..kernels import ksplit_launch as kernels
from ..kernels.bound import BoundMatmul
from ..kernels.ksplit_codes import codec
from ..kernels.matmul import GATED
from ..kernels.split_k import workspace_size
from ..layouts import ksplit
from ..layouts.by_group import up
from .core import OK, PrecisionGuarantee, Status, Target, multiprocessors, underflow
from .descriptors import MatmulDesc
from .matmul_rules import MIN_ARCH, SLOW_WAY, reads, splits_ok
from .registry import KernelEntry
from .space import Config, among, around
from .space import space as configs


def can_implement(desc: MatmulDesc) -> Status:
    """Layout ksplit and a 16-bit x that holds the format's levels; every group, N and K; any AMD GPU, sm_80 on, the interpreter."""
    scheme, arch = desc.scheme, desc.target.arch
    if not (status := reads(desc, "ksplit")):
        return status
    if desc.activation in GATED:
        return Status(f"has no epilogue {desc.activation!r}; {SLOW_WAY}")
    if codec(scheme.format, desc.dtype) is None:
        return Status(f"rounds levels to {dtype_name(desc.dtype)}, which cannot hold those of {scheme.format.name}; {SLOW_WAY}")
    if isinstance(arch, int) and arch < MIN_ARCH:
        return Status(f"needs sm_{MIN_ARCH} or later, the target is {desc.target}; {SLOW_WAY}")
    return OK


def config(desc: MatmulDesc) -> Config:
    hip = isinstance(desc.target.arch, str)
    return kernels.config(desc.m, desc.n, desc.k, desc.scheme, multiprocessors(desc.target), hip)


_FIELDS = {"BLOCK_M": (8, 16, 32, 64), "BLOCK_N": (32, 64, 128), "BLOCK_K": (ksplit.BLOCK,), "SPLIT_K": (1, 2, 4, 8, 16),
           "STAGES": range(1, 6), "num_warps": (1, 2, 4, 8)}  # fmt: skip


def config_ok(desc: MatmulDesc, config: Config) -> Status:
    """Tiles within the layout's rows; splits that each have a block of columns; 16 rows of x on AMD; no wgmma on what a Triton before 3.9
    copies asynchronously."""
    if not (status := among(config, _FIELDS)):
        return status
    rows = up(desc.n, ksplit.N_MULTIPLE)
    if rows % config["BLOCK_N"]:
        return Status(f"BLOCK_N must divide the {rows} rows of the layout, for which there are scales, got {config['BLOCK_N']}")
    if isinstance(desc.target.arch, str) and config["BLOCK_M"] < 16:
        return Status(f"BLOCK_M must be 16 or more on AMD, whose matrix instructions take 16 rows, got {config['BLOCK_M']}")
    return splits_ok(desc, config, -(-desc.k // ksplit.BLOCK)) and _fence_ok(desc.target, config)


def _fence_ok(target: Target, config: Config) -> Status:
    """Whether what wgmma reads is sure to be there."""
    wgmma = target.arch == 90 and config["num_warps"] % 4 == 0 and config["BLOCK_N"] >= 64
    if wgmma and config["STAGES"] > 1 and LACKS_PROXY_FENCE:
        return Status(f"num_warps={config['num_warps']} is wgmma on sm_90, which needs STAGES=1 before Triton 3.9, got {config['STAGES']}")
    return OK


def space(desc: MatmulDesc) -> list[Config]:
    first = config(desc)
    rows = [size for size in _FIELDS["BLOCK_M"] if size <= max(first["BLOCK_M"], 2 * desc.m)][-2:]
    return configs(first, {
        "BLOCK_M": rows, "BLOCK_N": _FIELDS["BLOCK_N"], "num_warps": (1, 2, 4), "STAGES": (1, 2, 3), "SPLIT_K": around(first["SPLIT_K"]),
    }, lambda config: config_ok(desc, config))  # fmt: skip


def guarantee(desc: MatmulDesc, config: Config) -> PrecisionGuarantee:
    """Every product of two 16-bit numbers is exact in float32. What is rounded:

    - a level of a code book, once, to x's dtype; integers less their zero point and small floats are exact;
    - sums inside a run of columns, over the runs of a row and over the splits: a matrix unit may truncate, which costs a whole ulp, 2**-23;
    - the multiplication of each run by its scale.
    """
    run = kernels.run_columns(desc.scheme, desc.k)
    columns = max(run, 16)
    runs = -(-desc.k // columns)
    if run < 16:  # once more for each further group
        runs += -(-desc.k // desc.scheme.group_shape(1, desc.k)[1])
    sums = min(columns, desc.k) + 2 * runs + config["SPLIT_K"]
    terms = (sums + 4) * 2.0**-23
    out = torch.finfo(desc.dtype)
    relative = (1 + codec(desc.scheme.format, desc.dtype).error) / (1 - min(terms, 0.5)) - 1
    return PrecisionGuarantee(math_precision=dtype_name(desc.dtype), accumulator="float32", bitwise=False, relative=relative,
                              output_eps=out.eps / 2, output_tiny=underflow(desc.dtype, desc.k, "float32"))  # fmt: skip


def bind(desc: MatmulDesc, config: Config, x, q, bias, residual, shape) -> BoundMatmul:
    return kernels.bind(x, q, bias, residual, desc.activation, config, shape)


MATMUL_KSPLIT = KernelEntry(
    op="matmul", name="matmul_ksplit", revision=1, can_implement=can_implement, config=config, space=space,
    config_ok=config_ok, guarantee=guarantee, bind=bind,
    workspace_size=lambda desc, config: workspace_size(desc.m, desc.n, config),
)  # fmt: skip
