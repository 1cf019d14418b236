"""Floor 4. ``matmul_frag`` as an entry of the registry: what it takes, how it is configured, what it promises."""
from __future__ import annotations

import torch

from ..dtypes import dtype_name
from ..kernels import frag_launch as kernels
from ..kernels.bound import BoundMatmul
from ..kernels.matmul import GATED
from ..kernels.split_k import workspace_size
from ..layouts import frag, frag_codes
from ..layouts.byte_planes import byte_planes
from .core import OK, PrecisionGuarantee, Status, multiprocessors, underflow
from .descriptors import MatmulDesc
from .matmul_rules import MIN_ARCH, SLOW_WAY, reads, splits_ok
from .registry import KernelEntry
from .space import Config, among, around
from .space import space as configs

# Offsets into scales are 32-bit, and those into one row of tiles.
MAX_K, MAX_WEIGHTS = 2**26, 2**35


def can_implement(desc: MatmulDesc) -> Status:
    """Layout frag, a 16-bit x, an NVIDIA GPU from sm_80 on, groups of a multiple of 16 columns or whole rows."""
    scheme, target = desc.scheme, desc.target
    if not (status := reads(desc, "frag")):
        return status
    if desc.activation in GATED and desc.features % kernels.GATED_ROWS:
        rule = f"pairs {kernels.GATED_ROWS} rows of the gate with as many of up, and {desc.features} of each are no multiple"
        return Status(f"{rule}; pad both halves. {SLOW_WAY}")
    if target.backend == "interpreter":
        return Status(f"uses inline PTX, which Triton's interpreter cannot run; {SLOW_WAY}")
    if isinstance(target.arch, str) or (target.arch is not None and target.arch < MIN_ARCH):
        return Status(f"needs an NVIDIA GPU from sm_{MIN_ARCH} on, the target is {target}; {SLOW_WAY}")
    group = kernels.group_constant(scheme, desc.k)
    if group % 16:
        return Status(f"takes groups of a multiple of 16 columns or of whole rows, {scheme} has {group}; {SLOW_WAY}")
    if desc.k > MAX_K or desc.n * desc.k > MAX_WEIGHTS:
        return Status(f"takes at most {MAX_K} columns and {MAX_WEIGHTS} weights, got {desc.n} x {desc.k}; split the matrix")
    return OK


def config(desc: MatmulDesc) -> Config:
    return kernels.config(desc.m, desc.n, desc.k, desc.scheme, multiprocessors(desc.target), desc.target.arch,
                          gated=desc.activation in GATED)


_FIELDS = {"BLOCK_M": (8, 16, 32, 64, 128), "BLOCK_N": (64, 128), "BLOCK_K": (128, 256), "SPLIT_K": (1, 2, 4, 8, 16), "STAGES": range(1, 8),
           "num_warps": (2, 4, 8)}  # fmt: skip
_OPTIONAL = {"maxnreg": (96, 128, 160, 192, 224)}


def config_ok(desc: MatmulDesc, config: Config) -> Status:
    """Tiles of whole steps of the layout, splits that each have one."""
    if not (status := among(config, _FIELDS, _OPTIONAL)):
        return status
    step, wide = frag_codes.k_multiple(desc.scheme.format), frag.wide(desc.scheme, (desc.n, desc.k))
    if config["BLOCK_K"] % step or wide % config["BLOCK_K"]:
        return Status(f"BLOCK_K={config['BLOCK_K']} must be a multiple of {step} that divides the {wide} columns of the layout")
    if desc.activation in GATED and desc.n % config["BLOCK_N"]:
        return Status(f"BLOCK_N={config['BLOCK_N']} must divide the {desc.n} rows of gate and up with {desc.activation}")
    return splits_ok(desc, config, wide // config["BLOCK_K"])


def space(desc: MatmulDesc) -> list[Config]:
    first = config(desc)
    if first["num_warps"] > 2:  # wgmma, and mma.sync with its own tiles beside it
        tried = {"BLOCK_M": (32, 64, 128), "BLOCK_N": (64, 128), "BLOCK_K": (first["BLOCK_K"],), "num_warps": (2, 4, 8), "STAGES": (3, 4)}
    else:
        rows = [size for size in (8, 16, 32, 64) if size <= max(8, 2 * desc.m)][-2:]
        tried = {"BLOCK_M": rows, "BLOCK_N": (64, 128), "BLOCK_K": (128, 256), "num_warps": (2, 4), "STAGES": (1, 3, 4)}
    return configs(first, {**tried, "SPLIT_K": around(first["SPLIT_K"])}, lambda config: config_ok(desc, config))


def guarantee(desc: MatmulDesc, config: Config) -> PrecisionGuarantee:
    """Every product of two 16-bit numbers is exact in float32. What is rounded:

    - a level of a code book, once, to x's dtype (integers less their zero point are exact), and the division by the book's factor;
    - sums inside a dot, over the dots of a row and over the splits: a tensor core may truncate, which costs a whole ulp, 2**-23;
    - the multiplication of each dot by its scale, and for nvfp4 that of the sum by the scale of the matrix.
    """
    fmt = desc.scheme.format
    level = byte_planes(fmt, desc.dtype).error if frag_codes.is_book(fmt) else 0.0
    columns = kernels.dot_columns(desc.k, desc.scheme, config)
    sums = min(columns, desc.k) + 2 * -(-desc.k // columns) + config["SPLIT_K"]
    terms = (sums + 4 + 2 * (desc.scheme.recipe == "nv")) * 2.0**-23
    out = torch.finfo(desc.dtype)
    relative = (1 + level) / (1 - min(terms, 0.5)) - 1
    return PrecisionGuarantee(math_precision=dtype_name(desc.dtype), accumulator="float32", bitwise=False, relative=relative,
                              output_eps=out.eps / 2, output_tiny=underflow(desc.dtype, desc.k, "float32"))  # fmt: skip


def bind(desc: MatmulDesc, config: Config, x, q, bias, residual, shape) -> BoundMatmul:
    return kernels.bind(x, q, bias, residual, desc.activation, config, shape, arch=desc.target.arch)


MATMUL_FRAG = KernelEntry(
    op="matmul", name="matmul_frag", revision=1, can_implement=can_implement, config=config, space=space,
    config_ok=config_ok, guarantee=guarantee, bind=bind,
    workspace_size=lambda desc, config: workspace_size(desc.m, desc.n, config),
    act_order=lambda desc: kernels.gathers(desc.m, desc.scheme),
)  # fmt: skip
