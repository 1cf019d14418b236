"""Floor 4. The Triton kernels as entries of the registry, best first."""
from __future__ import annotations

from .. import reference
from .._triton import triton
from ..qtensor import QTensor
from ..reference.parameters import double_quantize
from .core import OK, Status
from .descriptors import DequantizeDesc, Desc, MatmulDesc, QuantizeDesc
from .registry import KernelEntry, accumulated, exact

KERNELS: list[KernelEntry] = []

if triton is not None:
    from ..kernels import dequantize as dequantize_kernels
    from ..kernels import matmul as matmul_kernels
    from ..kernels import quantize as quantize_kernels
    from ..kernels import quantize_frag as quantize_frag_kernels
    from .frag_entry import MATMUL_FRAG, MAX_K
    from .ksplit_entry import MATMUL_KSPLIT
    from .large_m import DEQUANTIZE_FRAG, DEQUANTIZE_MATMUL, DEQUANTIZE_MATMUL_DX, MATMUL_DX

    def _is_rows(desc: QuantizeDesc) -> Status:
        if quantize_kernels.row_group(desc.scheme, desc.n, desc.k):
            return OK
        rule = f"holds groups of one row and at most {quantize_kernels.LONGEST_ROW_GROUP} columns that fill whole bytes"
        return Status(f"{rule}; {desc.scheme} on k={desc.k} has others")

    def _is_area(desc: QuantizeDesc) -> Status:
        if desc.n * desc.k == 0:
            return OK
        return Status("quantize_rows reads each element once") if _is_rows(desc) else OK

    def _quantize(desc, config, workspace, x):
        if x.numel() == 0:
            return reference.quantize(x, desc.scheme)  # nothing to launch; the parameters of empty groups are the reference's
        packed, scale, zero_point, second = quantize_kernels.launch(x, desc.scheme, config)
        offset = None
        if "dq" in desc.scheme.options:  # the offset is the mean of all scales: known only when the last program is done
            scale, second, offset = double_quantize(scale)
        return QTensor(desc.scheme, tuple(x.shape), x.dtype, packed, scale, zero_point, second, offset)

    def _is_frag(desc: QuantizeDesc) -> Status:
        if desc.layout != "frag" or desc.n * desc.k == 0:
            return Status(f"writes layout 'frag' of a matrix that has elements; {desc.layout!r} and n={desc.n}, k={desc.k} are asked for")
        if desc.k > MAX_K:
            return Status(f"takes at most {MAX_K} columns, got {desc.k}; quantize into 'row' and relayout")
        return Status(quantize_frag_kernels.refuses(desc.scheme, desc.dtype, desc.k))

    def _quantize_frag(desc, config, workspace, x):
        packed, scale, zero_point = quantize_frag_kernels.quantize(x, desc.scheme, config)
        return QTensor(desc.scheme, tuple(x.shape), x.dtype, packed, scale, zero_point, layout="frag")

    def _config(desc: QuantizeDesc) -> dict[str, int]:
        return quantize_kernels.config(desc.scheme, desc.n, desc.k, desc.dtype)

    def _always(desc: Desc) -> Status:
        return OK

    def _has_runs(desc: DequantizeDesc) -> Status:
        reason = dequantize_kernels.runs_refused(desc.scheme, desc.n, desc.k, desc.dtype)
        return Status(reason) if reason else OK

    def _rows_config(desc: DequantizeDesc) -> dict[str, int]:
        return dequantize_kernels.rows_config(desc.scheme, desc.n, desc.k, desc.dtype)

    def _tiles_config(desc: DequantizeDesc) -> dict[str, int]:
        return dequantize_kernels.config(desc.k)

    def _bind_tiles(desc: MatmulDesc, config, x, q, bias, residual, shape):
        return matmul_kernels.bind(x, q, bias, residual, desc.activation, config, shape)

    def _matmul_config(desc: MatmulDesc) -> dict[str, int]:
        return matmul_kernels.config(desc.m, desc.dtype)

    KERNELS += [
        KernelEntry(op="quantize", name="quantize_frag", revision=1, can_implement=_is_frag, guarantee=exact,
                    config=lambda desc: quantize_frag_kernels.config(), launch=_quantize_frag),
        KernelEntry(op="quantize", name="quantize_rows", revision=1, can_implement=_is_rows, config=_config, guarantee=exact,
                    launch=_quantize),
        KernelEntry(op="quantize", name="quantize_area", revision=1, can_implement=_is_area, config=_config, guarantee=exact,
                    launch=_quantize),
        DEQUANTIZE_FRAG,
        KernelEntry(op="dequantize", name="dequantize_rows", revision=1, can_implement=_has_runs, config=_rows_config, guarantee=exact,
                    launch=lambda desc, config, workspace, q: dequantize_kernels.dequantize_by_rows(q, desc.dtype, config)),
        KernelEntry(op="dequantize", name="dequantize_tiles", revision=1, can_implement=_always, config=_tiles_config, guarantee=exact,
                    launch=lambda desc, config, workspace, q: dequantize_kernels.dequantize(q, desc.dtype, config)),
        DEQUANTIZE_MATMUL,
        MATMUL_FRAG,
        MATMUL_KSPLIT,
        KernelEntry(op="matmul", name="matmul_tiles", revision=1, can_implement=_always, config=_matmul_config, guarantee=accumulated,
                    bind=_bind_tiles),
        DEQUANTIZE_MATMUL_DX,
        MATMUL_DX,
    ]  # fmt: skip
