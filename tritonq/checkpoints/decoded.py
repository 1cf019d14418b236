"""Weights decoded again, in the shape and dtype that they had: what every reader of safetensors files takes."""
from __future__ import annotations

import torch

from ..qtensor import QTensor
from .family import Record, Target
from .tensorfile import DTYPE_NAMES
from .writer import Stored


class Decoded(Target):
    """The target of this file."""

    name = "safetensors"

    def stored(self, name: str, record: Record, *, act_order: bool) -> Stored:
        return {name: (DTYPE_NAMES[record.dtype], record.shape)}

    def tensors(self, name: str, record: Record, q: QTensor) -> dict[str, torch.Tensor]:
        return {name: q.dequantize(record.dtype).view(record.shape)}

    def record(self, record: Record) -> None:
        return None
