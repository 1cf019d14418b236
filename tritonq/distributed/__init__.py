"""Floor 7. Tensor parallel on ``torch.distributed``: one quantized model over several devices.

>>> from torch.distributed.tensor.parallel import parallelize_module  # doctest: +SKIP
>>> parallelize_module(model, mesh, {"layers.*.up": ColwiseParallel(), "layers.*.down": RowwiseParallel()})  # doctest: +SKIP

Importing it also teaches ``torch.ops.tritonq.matmul`` and ``matmul_dx`` to take DTensors. See docs/tensor_parallel.md.
"""
from . import operators as _operators  # noqa: F401 (registers)
from .experts import ExpertParallel, ShardedExperts
from .linear import ShardedLinear, gather
from .loading import load_sharded
from .placements import distribute_weight, weight_placements
from .styles import ColwiseParallel, RowwiseParallel

__all__ = ["ColwiseParallel", "ExpertParallel", "RowwiseParallel", "ShardedExperts", "ShardedLinear", "distribute_weight", "gather",
           "load_sharded", "weight_placements"]
