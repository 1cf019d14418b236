"""Floor 7. The styles that a plan of ``torch.distributed.tensor.parallel.parallelize_module`` names for quantized layers."""
from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle

from ..errors import UnsupportedError
from ..nn.modules import QuantEmbedding, QuantLinear
from .linear import ShardedLinear, shard_


class _LinearStyle(ParallelStyle):
    axis: int
    input_layout: Placement
    output_layout: Placement

    def __init__(self, *, input_layouts: Placement | None = None, output_layouts: Placement | None = None,
                 use_local_output: bool = True, expand_scales: bool = False):  # fmt: skip
        super().__init__()
        self.input_layouts = (input_layouts or self.input_layout,)
        self.output_layouts = (output_layouts or self.output_layout,)
        self.use_local_output, self.expand_scales = use_local_output, expand_scales

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        if type(module) is not QuantLinear:
            mine = type(self).__name__
            if isinstance(module, ShardedLinear):
                way_out = "it holds a part already; name it once in the plan"
            elif isinstance(module, QuantEmbedding):
                way_out = "leave it out of the plan: every rank keeps the table"
            elif isinstance(module, torch.nn.Linear):
                way_out = f"take torch.distributed.tensor.parallel.{mine} for it, or quantize it"
            else:
                way_out = "what it does with its weight is not known"
            raise UnsupportedError(f"tritonq.distributed.{mine} splits a QuantLinear, got {type(module).__name__}; {way_out}")
        return shard_(module, device_mesh, self)

    def __repr__(self) -> str:
        return (f"{type(self).__name__}(input_layouts={self.input_layouts}, output_layouts={self.output_layouts}, "
                f"use_local_output={self.use_local_output}, expand_scales={self.expand_scales})")  # fmt: skip


class ColwiseParallel(_LinearStyle):
    """Split a :class:`tritonq.nn.QuantLinear` along its output features (N); every rank computes its share of y.

    Every rank gives the same whole weight and keeps its part; nothing is sent (``src_data_rank`` plays no part).

    Args:
        input_layouts: how x lies when it is a plain tensor: ``Replicate()`` by default, or e.g. ``Shard(1)`` for sequence parallel.
        output_layouts: how y is wanted: ``Shard(-1)`` by default, ``Replicate()`` gathers it.
        use_local_output: y as a plain tensor, the rank's own; else as a DTensor.
        expand_scales: a ``dq`` weight gets float32 scales of its own first, so that it can be cut anywhere (24 bits more per group).

    Raises (from ``parallelize_module``):
        InvalidProblemError: parts that are not equal or cut a block of rows; names the numbers that are legal.
        UnsupportedError: a module that is not exactly a QuantLinear.
    """

    axis, input_layout, output_layout = 0, Replicate(), Shard(-1)


class RowwiseParallel(_LinearStyle):
    """Split a :class:`tritonq.nn.QuantLinear` along its input features (K); the ranks' partial sums are added, then the bias, once.

    Args:
        input_layouts: how x lies when it is a plain tensor: ``Shard(-1)`` by default, which is what :class:`ColwiseParallel` gives.
        output_layouts: how y is wanted: ``Replicate()`` by default; ``Shard(1)`` scatters the sum over the sequence.
        use_local_output, expand_scales: see :class:`ColwiseParallel`.

    Partial sums are rounded to x's dtype before they are added, as with any linear layer under tensor parallelism.

    Raises (from ``parallelize_module``):
        InvalidProblemError: parts that would cut a group, a byte or a ``dq`` block, or act-order; names the numbers that are legal.
        UnsupportedError: a module that is not exactly a QuantLinear.
    """

    axis, input_layout, output_layout = 1, Shard(-1), Replicate()
