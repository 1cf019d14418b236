"""Floor 6. ``Nf4Quantizer``: flat NF4 blocks, as bytes and float32 absmax values."""
from __future__ import annotations

from collections.abc import Sequence

import torch

from . import ops
from .dtypes import FLOAT_DTYPES
from .errors import InvalidProblemError
from .plans.core import expect_type
from .qtensor import QTensor
from .scheme import Scheme


class Nf4Quantizer:
    """NF4 over a flat run of numbers: blocks of ``block_size``, two codes per byte with the earlier one in the low nibble.

    The table is that of bitsandbytes; a value between two levels takes the nearer, a tie the lower. NaN is coded as zero, +-Inf
    as the end of the table, and neither enters absmax; a block without range has absmax 0, bytes 0x77 and decodes to zeros.

    Args:
        block_size: a positive even number.

    Raises:
        InvalidProblemError: a block size that is not.

    Example:
        >>> quantizer = Nf4Quantizer(block_size=4)
        >>> packed, absmax = quantizer.encode([1.0, 0.0, -1.0, 0.5])
        >>> packed.tolist(), absmax.tolist()
        ([127, 192], [1.0])
        >>> quantizer.decode(packed, absmax)[:3].tolist()
        [1.0, 0.0, -1.0]
    """

    def __init__(self, block_size: int = 64):
        if expect_type(block_size, int, "block_size") < 1 or block_size % 2:
            raise InvalidProblemError(f"block_size must be positive and even (two codes share a byte), got {block_size}; 64 is usual")
        self.block_size = block_size
        self._scheme = Scheme.parse(f"nf4.g{block_size}")

    def __repr__(self) -> str:
        return f"Nf4Quantizer(block_size={self.block_size})"

    def encode(self, x: torch.Tensor | Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """``n`` numbers -> (packed uint8 ``[n / 2]``, absmax float32 ``[n / block_size]``).

        Args:
            x: a float tensor ``[n]`` on any device, or a sequence of numbers (taken as float32).

        Raises:
            InvalidProblemError: nothing to encode, more than one dimension, a length that is no multiple of the block.
        """
        q = self._quantize(self._flat(x))
        return q.packed.flatten(), q.scale.flatten()

    def decode(self, packed: torch.Tensor | Sequence[int], absmax: torch.Tensor | Sequence[float]) -> torch.Tensor:
        """(packed uint8 ``[n / 2]``, absmax ``[n / block_size]``) -> float32 ``[n]``.

        Raises:
            InvalidProblemError: not bytes, an absmax that is negative or not finite, counts that do not belong together.
        """
        packed, absmax = _tensor(packed, torch.uint8, "packed"), _tensor(absmax, torch.float32, "absmax")
        n = 2 * packed.numel()
        self._check_length(n, f"packed holds {n} codes")
        if absmax.numel() != n // self.block_size:
            need = f"{n} codes in blocks of {self.block_size} need {n // self.block_size}"
            raise InvalidProblemError(f"absmax has {absmax.numel()} values, {need}; pass what encode returned")
        if not bool((absmax.isfinite() & (absmax >= 0)).all()):
            bad = absmax[~(absmax.isfinite() & (absmax >= 0))][0].item()
            raise InvalidProblemError(f"absmax must be finite and not negative, got {bad}")
        if packed.device != absmax.device:
            raise InvalidProblemError(f"packed is on {packed.device}, absmax on {absmax.device}; move one with .to()")
        rows = self._rows(n)
        tensors = {"packed": packed.reshape(rows, -1), "scale": absmax.reshape(rows, -1)}
        return ops.dequantize(QTensor.from_tensors(self._scheme, (rows, n // rows), torch.float32, tensors)).flatten()

    def quantization_mse(self, x: torch.Tensor | Sequence[float]) -> float:
        """Mean squared error of encode and decode over the finite elements, summed in float64; 0 where there is none."""
        x = self._flat(x)
        finite = x.isfinite()
        error = torch.where(finite, self._quantize(x).dequantize(torch.float32).flatten().double() - x.double(), 0)
        return (error.square().sum() / finite.sum().clamp(min=1)).item()

    def _quantize(self, x: torch.Tensor) -> QTensor:
        return ops.quantize(x.reshape(self._rows(x.numel()), -1), self._scheme)

    def _rows(self, n: int) -> int:
        """Rows of whole blocks, because a matrix of one row cannot be worked through row by row in little memory."""
        blocks = n // self.block_size
        return blocks // next(width for width in range(min(blocks, 1024), 0, -1) if blocks % width == 0)

    def _flat(self, x: torch.Tensor | Sequence[float]) -> torch.Tensor:
        x = x.detach() if isinstance(x, torch.Tensor) else _tensor(x, torch.float32, "x")
        if x.dtype not in FLOAT_DTYPES:
            raise InvalidProblemError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}; convert it with .float()")
        if x.dim() != 1:
            raise InvalidProblemError(f"x must be flat, [n], got shape {tuple(x.shape)}; pass x.flatten(), or use tritonq.quantize")
        self._check_length(x.numel(), f"x has {x.numel()} elements")
        return x

    def _check_length(self, n: int, what: str) -> None:
        if not n:
            raise InvalidProblemError(f"{what}: the input is empty; NF4 needs at least one block of {self.block_size}")
        if n % self.block_size:
            way_out = "pad it, or use tritonq.quantize, which takes a short last block"
            raise InvalidProblemError(f"{what}, no multiple of the block size {self.block_size}; {way_out}")


def _tensor(values: torch.Tensor | Sequence, dtype: torch.dtype, name: str) -> torch.Tensor:
    """``values`` as a flat tensor of ``dtype``: a tensor must have it, a sequence of numbers is converted."""
    if not isinstance(values, torch.Tensor):
        try:
            values = torch.tensor(list(values), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            got = f"{type(values).__name__} {values!r}"[:100]
            raise InvalidProblemError(f"{name} must be a tensor or a sequence of numbers, got {got}") from None
        if dtype == torch.uint8 and not bool(((values >= 0) & (values <= 255) & (values == values.trunc())).all()):
            raise InvalidProblemError(f"{name} must hold bytes, 0..255, got {values.tolist()}"[:300])
        values = values.to(dtype)
    if values.dtype != dtype:
        raise InvalidProblemError(f"{name} must be {dtype}, got {values.dtype}")
    if values.dim() != 1:
        raise InvalidProblemError(f"{name} must be flat, got shape {tuple(values.shape)}")
    return values
