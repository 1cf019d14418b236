"""Floor 6. Checkpoints on disk: opening, saving, quantizing, converting and verifying them.

>>> import tritonq.checkpoints
>>> for name, value in tritonq.checkpoints.open("MiniLM-nf4"):  # doctest: +SKIP
...     print(name, value)  # a QTensor, or a torch.Tensor that was kept
"""
from .checkpoint import Checkpoint, open
from .conversion import convert
from .quantize import quantize_checkpoint
from .saving import load, save
from .verify import verify_checkpoint

__all__ = ["Checkpoint", "convert", "load", "open", "quantize_checkpoint", "save", "verify_checkpoint"]
