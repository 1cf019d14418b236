"""Floor 6. Checkpoints on disk: opening, saving, quantizing and verifying them.

>>> import tritonq.checkpoints
>>> for name, value in tritonq.checkpoints.open("MiniLM-nf4"):  # doctest: +SKIP
...     print(name, value)  # a QTensor, or a torch.Tensor that was kept
"""
from .checkpoint import Checkpoint, open
from .saving import load, save
from .stream import quantize_checkpoint
from .verify import verify_checkpoint

__all__ = ["Checkpoint", "load", "open", "quantize_checkpoint", "save", "verify_checkpoint"]
