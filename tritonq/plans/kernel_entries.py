"""Floor 4. The Triton kernels as entries of the registry, best first."""
from __future__ import annotations

import torch

from .. import reference
from .._triton import triton
from ..qtensor import QTensor
from ..reference.parameters import double_quantize
from .core import OK, Status
from .descriptors import DequantizeDesc, MatmulDesc, QuantizeDesc
from .registry import KernelEntry, accumulated, always, exact
from .space import Config, among, around, space

KERNELS: list[KernelEntry] = []
_POWERS = [2**i for i in range(15)]

if triton is not None:
    from ..kernels import dequantize as dequantize_kernels
    from ..kernels import matmul as matmul_kernels
    from ..kernels import quantize as quantize_kernels
    from ..kernels import quantize_frag, quantize_ksplit
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

    def _writes(layout: str, kernels) -> KernelEntry:
        """Quantize straight into ``layout``, by the kernel of that module."""

        def can(desc: QuantizeDesc) -> Status:
            if desc.layout != layout or desc.n * desc.k == 0:
                asked = f"{desc.layout!r} and n={desc.n}, k={desc.k} are asked for"
                return Status(f"writes layout {layout!r} of a matrix that has elements; {asked}")
            if desc.k > MAX_K:
                return Status(f"takes at most {MAX_K} columns, got {desc.k}; quantize into 'row' and relayout")
            return Status(kernels.refuses(desc.scheme, desc.dtype, desc.k))

        def launch(desc, config, workspace, x):
            packed, scale, zero_point = kernels.quantize(x, desc.scheme, config)
            return QTensor(desc.scheme, tuple(x.shape), x.dtype, packed, scale, zero_point, layout=layout)

        return KernelEntry(op="quantize", name=f"quantize_{layout}", revision=1, can_implement=can, guarantee=exact,
                           config=lambda desc: kernels.config(desc.scheme, desc.n, desc.k), launch=launch)  # fmt: skip

    def _config(desc: QuantizeDesc) -> Config:
        return quantize_kernels.config(desc.scheme, desc.n, desc.k, desc.dtype)

    def _rows_ok(desc: QuantizeDesc, config: Config) -> Status:
        if not (status := among(config, {"BLOCK_N": _POWERS, "BLOCK_G": _POWERS, "num_warps": (1, 2, 4, 8, 16, 32)})):
            return status
        size = config["BLOCK_N"] * config["BLOCK_G"] * quantize_kernels.row_group(desc.scheme, desc.n, desc.k)
        most = max(quantize_kernels.LONGEST_ROW_GROUP, 2**14)
        return OK if size <= most else Status(f"BLOCK_N * BLOCK_G groups are {size} columns, {most} is the most")

    def _rows_space(desc: QuantizeDesc) -> list[Config]:
        first = _config(desc)
        tried = {name: around(first[name]) for name in ("BLOCK_N", "BLOCK_G", "num_warps")}
        return space(first, tried, lambda config: _rows_ok(desc, config))

    def _runs_ok(desc: DequantizeDesc, config: Config) -> Status:
        run = dequantize_kernels.run_length(desc.scheme, desc.dtype)
        fields = {"BLOCK_N": _POWERS, "THREADS": _POWERS, "BLOCK_K": _POWERS, "PER_THREAD": (run,), "num_warps": (1, 2, 4, 8)}
        if not (status := among(config, fields)):
            return status
        if config["BLOCK_N"] * config["THREADS"] != 32 * config["num_warps"]:
            return Status(f"BLOCK_N * THREADS must be the {32 * config['num_warps']} threads of num_warps={config['num_warps']}")
        once = config["THREADS"] * run
        if config["BLOCK_K"] % once or config["BLOCK_K"] > 16 * once:
            return Status(f"BLOCK_K={config['BLOCK_K']} must be 1, 2, 4, 8 or 16 times THREADS * PER_THREAD = {once}")
        return OK

    def _runs_space(desc: DequantizeDesc) -> list[Config]:
        first = _rows_config(desc)
        run = dequantize_kernels.run_length(desc.scheme, desc.dtype)
        shapes = [(threads, 32 * warps // threads, steps * threads * run, warps)
                  for warps in (1, 2, 4) for threads in (32, 64, 128) if threads <= 32 * warps for steps in (2, 4, 8)]  # fmt: skip
        every = [{**first, "THREADS": t, "BLOCK_N": n, "BLOCK_K": k, "num_warps": w} for t, n, k, w in shapes]
        return [first, *(config for config in every if config != first and _runs_ok(desc, config))]

    def _tile_ok(desc: MatmulDesc, config: Config) -> Status:
        if desc.dtype == torch.float64:
            return among(config, {name: (value,) for name, value in _matmul_config(desc).items()})
        return among(config, {"BLOCK_M": (16, 32, 64), "BLOCK_N": (32, 64, 128), "BLOCK_K": (32, 64, 128), "num_warps": (2, 4, 8)})

    def _tile_space(desc: MatmulDesc) -> list[Config]:
        tried = {"BLOCK_N": (32, 64), "BLOCK_K": (32, 64), "num_warps": (4, 8)}
        return space(_matmul_config(desc), tried, lambda config: _tile_ok(desc, config))

    def _has_runs(desc: DequantizeDesc) -> Status:
        return Status(dequantize_kernels.runs_refused(desc.scheme, desc.n, desc.k, desc.dtype))

    def _rows_config(desc: DequantizeDesc) -> Config:
        return dequantize_kernels.rows_config(desc.scheme, desc.n, desc.k, desc.dtype)

    def _bind_tiles(desc: MatmulDesc, config, x, q, bias, residual, shape):
        return matmul_kernels.bind(x, q, bias, residual, desc.activation, config, shape)

    def _matmul_config(desc: MatmulDesc) -> Config:
        return matmul_kernels.config(desc.m, desc.dtype)

    KERNELS += [
        _writes("frag", quantize_frag),
        _writes("ksplit", quantize_ksplit),
        KernelEntry(op="quantize", name="quantize_rows", revision=1, can_implement=_is_rows, config=_config, guarantee=exact,
                    space=_rows_space, config_ok=_rows_ok,
                    launch=_quantize),
        KernelEntry(op="quantize", name="quantize_area", revision=1, can_implement=_is_area, config=_config, guarantee=exact,
                    launch=_quantize),
        DEQUANTIZE_FRAG,
        KernelEntry(op="dequantize", name="dequantize_rows", revision=1, can_implement=_has_runs, config=_rows_config, guarantee=exact,
                    space=_runs_space, config_ok=_runs_ok,
                    launch=lambda desc, config, workspace, q: dequantize_kernels.dequantize_by_rows(q, desc.dtype, config)),
        KernelEntry(op="dequantize", name="dequantize_tiles", revision=1, can_implement=always, guarantee=exact,
                    config=lambda desc: dict(dequantize_kernels.TILES),
                    launch=lambda desc, config, workspace, q: dequantize_kernels.dequantize(q, desc.dtype, config)),
        DEQUANTIZE_MATMUL,
        MATMUL_FRAG,
        MATMUL_KSPLIT,
        KernelEntry(op="matmul", name="matmul_tiles", revision=1, can_implement=always, config=_matmul_config, guarantee=accumulated,
                    space=_tile_space, config_ok=_tile_ok, bind=_bind_tiles),
        DEQUANTIZE_MATMUL_DX,
        MATMUL_DX,
    ]  # fmt: skip
