"""Floor 4. Entries that decode the weight apart from the product: dequantize from any layout, large M, and the backward."""
from __future__ import annotations

from collections.abc import Callable

import torch

from ..dtypes import dtype_name
from ..kernels import dequantize_matmul as chunked
from ..kernels import dequantize_range, matmul_dx
from ..kernels.decode_tile import LAYOUTS
from ..kernels.split_k import workspace_size
from . import frag_entry
from .core import OK, PrecisionGuarantee, Status, multiprocessors, underflow
from .descriptors import DequantizeDesc, MatmulBackwardDesc, MatmulDesc
from .matmul_rules import split_ok
from .registry import KernelEntry, accumulated, always, exact
from .space import Config, among, around, space

_SHORT = (torch.float16, torch.bfloat16)


def crossover(desc: MatmulDesc | MatmulBackwardDesc) -> int:
    """From how many rows on to decode the weight once and multiply with the vendor's library.

    A model, not a measurement; entries of ``autotune_configs``, measured per shape, are to replace it. On an H200 the fused kernel unpacks
    every weight for every tile of x and reads x from L2 once per 128 rows of W, decoding first moves 2.5 bytes per weight through memory
    once: even between M = 430 and 480. Small matrices add the cost of two more launches. The portable kernels decode a weight for every 32
    rows, so they lose when they decode anything twice; and at once, where they would have to turn the layout back first.
    """
    if desc.layout == "row" or isinstance(desc, MatmulBackwardDesc):
        return 33
    if not frag_entry.can_implement(desc):
        return 1
    return 512 if desc.n * desc.k >= 2**22 else 1024


def _prefer(desc: MatmulDesc | MatmulBackwardDesc) -> Status:
    first = crossover(desc)
    return OK if desc.m >= first else Status(f"preferred from m={first} on")


def _can_chunk(desc: MatmulDesc | MatmulBackwardDesc) -> Status:
    """Layouts row and frag, 16-bit operands, chunks that fit the workspace."""
    if desc.dtype not in _SHORT:
        return Status(f"multiplies float16 or bfloat16, got {desc.dtype}; convert it")
    if desc.layout not in LAYOUTS:
        return Status(f"decodes layouts {', '.join(LAYOUTS)}; q.relayout('row') once")
    backward = isinstance(desc, MatmulBackwardDesc)
    needed = _backward_workspace(desc, _backward_config(desc)) if backward else _forward_workspace(desc, _forward_config(desc))
    if needed > chunked.MOST_WORKSPACE:
        what = "columns" if backward else "rows"
        rule = f"decodes 128 or more {what} of the weight at a time and takes {chunked.MOST_WORKSPACE} bytes at most"
        return Status(f"{rule}; here it would take {needed}")
    return OK


def _forward_config(desc: MatmulDesc) -> Config:
    return chunked.forward_config(desc.m, desc.n, desc.k, desc.activation, desc.epilogue is not None, multiprocessors(desc.target))


def _forward_workspace(desc: MatmulDesc, config: Config) -> int:
    return chunked.forward_workspace(desc.k, desc.activation, config)


def _backward_config(desc: MatmulBackwardDesc) -> Config:
    return chunked.backward_config(desc.m, desc.n, desc.k, multiprocessors(desc.target))


def _backward_workspace(desc: MatmulBackwardDesc, config: Config) -> int:
    return chunked.backward_workspace(desc.n, config)


_SPLITS = (1, 2, 4, 8, 16)
_DX_FIELDS = {"BLOCK_M": (16, 32), "BLOCK_N": (32, 64, 128), "BLOCK_K": (32, 64, 128), "SPLIT_K": _SPLITS, "num_warps": (2, 4, 8)}


def _forward_ok(desc: MatmulDesc, config: Config) -> Status:
    fixed = {**_forward_config(desc), "CHUNK_N": config.get("CHUNK_N")}
    return _chunk_ok("CHUNK_N", fixed, config, lambda: _forward_workspace(desc, config))


def _backward_ok(desc: MatmulBackwardDesc, config: Config) -> Status:
    return _chunk_ok("CHUNK_K", {"CHUNK_K": config.get("CHUNK_K")}, config, lambda: _backward_workspace(desc, config))


def _chunk_ok(name: str, fixed: Config, config: Config, workspace: Callable[[], int]) -> Status:
    """Chunks of whole steps that fit the workspace; how many rows wait for an epilogue is not tuned."""
    status = among(config, {field: (value,) for field, value in fixed.items()})
    if not status:
        return status
    if type(config[name]) is not int or config[name] < chunked.STEP or config[name] % chunked.STEP:
        return Status(f"{name}={config[name]!r} must be a multiple of {chunked.STEP}")
    if (needed := workspace()) > chunked.MOST_WORKSPACE:
        return Status(f"{name}={config[name]} takes a workspace of {needed} bytes, {chunked.MOST_WORKSPACE} is the most")
    return OK


def _forward_space(desc: MatmulDesc) -> list[Config]:
    first = _forward_config(desc)
    return space(first, {"CHUNK_N": around(first["CHUNK_N"])}, lambda config: _forward_ok(desc, config))


def _backward_space(desc: MatmulBackwardDesc) -> list[Config]:
    first = _backward_config(desc)
    return space(first, {"CHUNK_K": around(first["CHUNK_K"])}, lambda config: _backward_ok(desc, config))


def _dx_ok(desc: MatmulBackwardDesc, config: Config) -> Status:
    """Whole tiles of the layout, splits of N that each have a tile, and counters for the tiles of K."""
    if desc.scheme.decode_dtype(desc.dtype) == torch.float64:
        return among(config, {name: (value,) for name, value in _dx_config(desc).items()})
    if not (status := among(config, _DX_FIELDS)):
        return status
    if desc.layout == "frag" and min(config["BLOCK_N"], config["BLOCK_K"]) < 64:
        return Status(f"decodes tiles of 64 rows and columns from layout frag, got {config['BLOCK_N']} x {config['BLOCK_K']}")
    return split_ok(config["SPLIT_K"], -(-desc.n // config["BLOCK_N"]), -(-desc.k // config["BLOCK_K"]) * -(-desc.m // config["BLOCK_M"]))


def _dx_space(desc: MatmulBackwardDesc) -> list[Config]:
    first = _dx_config(desc)
    return space(first, {"BLOCK_K": (64, 128), "BLOCK_N": (32, 64), "num_warps": (4, 8), "SPLIT_K": around(first["SPLIT_K"])},
                 lambda config: _dx_ok(desc, config))  # fmt: skip


def _rounded_weight(desc: MatmulDesc | MatmulBackwardDesc, config: Config) -> PrecisionGuarantee:
    """The weight is decoded as dequantize does and rounded once to the dtype of x (dy); every product of two such numbers is exact in
    float32. Sums: a tensor core may truncate, which costs a whole ulp, 2**-23. One cast of the result.
    """
    over = "n" if isinstance(desc, MatmulBackwardDesc) else "k"
    out = torch.finfo(desc.dtype)
    products = getattr(desc, over)
    terms = (products + 20) * 2.0**-23  # 16 more for a split sum
    relative = (1 + out.eps / 2) * (1 + 2.0**-22) / (1 - min(terms, 0.5)) - 1
    return PrecisionGuarantee(math_precision=dtype_name(desc.dtype), accumulator="float32", bitwise=False, relative=relative,
                              output_eps=out.eps / 2, output_tiny=underflow(desc.dtype, products, "float32"),
                              weight_tiny=out.smallest_normal * out.eps, sums_over=over)  # fmt: skip


def _matmul_dx_guarantee(desc: MatmulBackwardDesc, config: Config) -> PrecisionGuarantee:
    return (_rounded_weight if desc.dtype in _SHORT else accumulated)(desc, config)


def _holds_frag(desc: DequantizeDesc) -> Status:
    return OK if desc.layout == "frag" else Status(f"reads layout 'frag', the matrix is in {desc.layout!r}")


def _dx_config(desc: MatmulBackwardDesc) -> Config:
    return matmul_dx.config(desc.m, desc.n, desc.k, desc.scheme.decode_dtype(desc.dtype), multiprocessors(desc.target))


DEQUANTIZE_FRAG = KernelEntry(
    op="dequantize", name="dequantize_frag", revision=1, can_implement=_holds_frag, guarantee=exact,
    config=lambda desc: dequantize_range.config(desc.layout),
    launch=lambda desc, config, workspace, q:
        dequantize_range.dequantize_range(q, torch.empty(q.shape, dtype=desc.dtype, device=q.device)),
)  # fmt: skip

DEQUANTIZE_MATMUL = KernelEntry(
    op="matmul", name="dequantize_matmul", revision=1, can_implement=_can_chunk, prefer=_prefer, guarantee=_rounded_weight,
    config=_forward_config, space=_forward_space, config_ok=_forward_ok, workspace_size=_forward_workspace,
    launch=lambda desc, config, workspace, x, q, bias, residual:
        chunked.matmul(x, q, bias, desc.activation, residual, config, workspace),
)  # fmt: skip

DEQUANTIZE_MATMUL_DX = KernelEntry(
    op="matmul_backward", name="dequantize_matmul_dx", revision=1, can_implement=_can_chunk, prefer=_prefer, guarantee=_rounded_weight,
    config=_backward_config, space=_backward_space, config_ok=_backward_ok, workspace_size=_backward_workspace,
    launch=lambda desc, config, workspace, dy, q: chunked.matmul_backward(dy, q, config, workspace),
)  # fmt: skip

MATMUL_DX = KernelEntry(
    op="matmul_backward", name="matmul_dx", revision=1, can_implement=always, guarantee=_matmul_dx_guarantee, config=_dx_config,
    space=_dx_space, config_ok=_dx_ok,
    workspace_size=lambda desc, config: workspace_size(desc.m, desc.k, config),
    launch=lambda desc, config, workspace, dy, q: matmul_dx.matmul_dx(dy, q, config, workspace),
)  # fmt: skip
