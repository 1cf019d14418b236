"""Floor 4. Entries that decode the weight apart from the product: dequantize from any layout, large M, and the backward."""
from __future__ import annotations

import torch

from ..kernels import dequantize_matmul as chunked
from ..kernels import dequantize_range, matmul_dx
from ..kernels.decode_tile import LAYOUTS
from ..kernels.split_k import workspace_size
from . import frag_entry
from .core import OK, PrecisionGuarantee, Status, dtype_name, multiprocessors
from .descriptors import DequantizeDesc, MatmulBackwardDesc, MatmulDesc
from .registry import KernelEntry, accumulated, exact

_SHORT = (torch.float16, torch.bfloat16)


def crossover(desc: MatmulDesc | MatmulBackwardDesc) -> int:
    """From how many rows on to decode the weight once and multiply with the vendor's library.

    A model, not a measurement; entries of ``autotune_configs``, measured per shape, are to replace it. On an H200 the fused kernel
    spends instructions on every weight for every tile of x, decoding first moves 2.5 bytes per weight through memory once: even between
    M = 430 and 540. Small matrices add the cost of two more launches. The portable kernels decode a weight for every 32 rows, so they
    lose when they decode anything twice; and at once, where they would have to turn the layout back first.
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


def _forward_config(desc: MatmulDesc) -> dict[str, int]:
    return chunked.forward_config(desc.m, desc.n, desc.k, desc.activation, desc.epilogue is not None, multiprocessors(desc.target))


def _forward_workspace(desc: MatmulDesc, config: dict[str, int]) -> int:
    return chunked.forward_workspace(desc.k, desc.activation, config)


def _backward_config(desc: MatmulBackwardDesc) -> dict[str, int]:
    return chunked.backward_config(desc.m, desc.n, desc.k, multiprocessors(desc.target))


def _backward_workspace(desc: MatmulBackwardDesc, config: dict[str, int]) -> int:
    return chunked.backward_workspace(desc.n, config)


def _rounded_weight(desc: MatmulDesc | MatmulBackwardDesc) -> PrecisionGuarantee:
    """The weight is decoded as dequantize does and rounded once to the dtype of x (dy); every product of two such numbers is exact in
    float32. Sums: a tensor core may truncate, which costs a whole ulp, 2**-23. One cast of the result.
    """
    over = "n" if isinstance(desc, MatmulBackwardDesc) else "k"
    out = torch.finfo(desc.dtype)
    terms = (getattr(desc, over) + 20) * 2.0**-23  # 16 more for a split sum
    relative = (1 + out.eps / 2) * (1 + 2.0**-22) / (1 - min(terms, 0.5)) - 1
    tiny = out.smallest_normal * out.eps
    return PrecisionGuarantee(math_precision=dtype_name(desc.dtype), accumulator="float32", bitwise=False, relative=relative,
                              output_eps=out.eps / 2, output_tiny=tiny, weight_tiny=tiny, sums_over=over)  # fmt: skip


def _matmul_dx_guarantee(desc: MatmulBackwardDesc) -> PrecisionGuarantee:
    return _rounded_weight(desc) if desc.dtype in _SHORT else accumulated(desc)


def _holds_frag(desc: DequantizeDesc) -> Status:
    return OK if desc.layout == "frag" else Status(f"reads layout 'frag', the matrix is in {desc.layout!r}")


def _dx_config(desc: MatmulBackwardDesc) -> dict[str, int]:
    return matmul_dx.config(desc.m, desc.n, desc.k, desc.scheme.decode_dtype(desc.dtype), multiprocessors(desc.target))


DEQUANTIZE_FRAG = KernelEntry(
    op="dequantize", name="dequantize_frag", revision=1, can_implement=_holds_frag, guarantee=exact,
    config=lambda desc: dequantize_range.config(desc.layout),
    launch=lambda desc, config, workspace, q:
        dequantize_range.dequantize_range(q, torch.empty(q.shape, dtype=desc.dtype, device=q.device)),
)  # fmt: skip

DEQUANTIZE_MATMUL = KernelEntry(
    op="matmul", name="dequantize_matmul", revision=1, can_implement=_can_chunk, prefer=_prefer, guarantee=_rounded_weight,
    config=_forward_config, workspace_size=_forward_workspace,
    launch=lambda desc, config, workspace, x, q, bias, residual:
        chunked.matmul(x, q, bias, desc.activation, residual, config, workspace),
)  # fmt: skip

DEQUANTIZE_MATMUL_DX = KernelEntry(
    op="matmul_backward", name="dequantize_matmul_dx", revision=1, can_implement=_can_chunk, prefer=_prefer, guarantee=_rounded_weight,
    config=_backward_config, workspace_size=_backward_workspace,
    launch=lambda desc, config, workspace, dy, q: chunked.matmul_backward(dy, q, config, workspace),
)  # fmt: skip

MATMUL_DX = KernelEntry(
    op="matmul_backward", name="matmul_dx", revision=1, can_implement=lambda desc: OK, guarantee=_matmul_dx_guarantee, config=_dx_config,
    workspace_size=lambda desc, config: workspace_size(desc.m, desc.k, config),
    launch=lambda desc, config, workspace, dy, q: matmul_dx.matmul_dx(dy, q, config, workspace),
)  # fmt: skip
