"""Floor 4. NF4 weights in row pairs: byte ``[r, k]`` holds row ``2r`` in the low nibble and row ``2r + 1`` in the high nibble."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..errors import InvalidProblemError
from .core import PrecisionGuarantee, expect_type, underflow
from .seed_base import SeedPlan, given_or_empty, implementation, one_of, positive_refusals, size, tensor_refusals

_OUTPUTS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Nf4DequantizeDescriptor:
    """A weight ``[n, k]``, ``n`` even, with one absmax per ``block_size`` columns of a row; ``k`` is a multiple of ``block_size``."""

    n: int
    k: int
    block_size: int = 64
    output_dtype: torch.dtype = torch.float32

    def check(self) -> None:
        """Raise InvalidProblemError or UnsupportedError unless a plan can be made of this."""
        size(self.n, "n")
        size(self.k, "k")
        size(self.block_size, "block_size", 1)
        one_of(self.output_dtype, _OUTPUTS, "output_dtype")
        _check_layout(self.n, self.k, self.block_size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Nf4DequantizeArgs:
    """``weight`` uint8 ``[n / 2, k]`` or flat, ``absmax`` float32 ``[n, k / block_size]`` or flat, ``output`` ``[n, k]`` or None."""

    weight: torch.Tensor
    absmax: torch.Tensor
    output: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Nf4MatmulDescriptor:
    """``activation [m, k] @ weight [n, k].T``, the weight as in :class:`Nf4DequantizeDescriptor`; the output has the activation's dtype."""

    m: int
    n: int
    k: int
    block_size: int = 64
    activation_dtype: torch.dtype = torch.float32

    def check(self) -> None:
        """Raise InvalidProblemError or UnsupportedError unless a plan can be made of this."""
        for name in ("m", "n", "k"):
            size(getattr(self, name), name)
        size(self.block_size, "block_size", 1)
        one_of(self.activation_dtype, _OUTPUTS, "activation_dtype")
        _check_layout(self.n, self.k, self.block_size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Nf4MatmulArgs:
    """``weight``, ``absmax`` as in :class:`Nf4DequantizeArgs`; ``activation`` ``[m, k]`` (``[k]`` where m is 1) with any strides."""

    weight: torch.Tensor
    absmax: torch.Tensor
    activation: torch.Tensor
    output: torch.Tensor | None = None


def _check_layout(n: int, k: int, block_size: int) -> None:
    if n % 2:
        raise InvalidProblemError(f"a byte holds two neighbouring rows, so n must be even, got {n}; add a row of zeros (code 7)")
    if k % block_size:
        raise InvalidProblemError(f"k must be a multiple of block_size, got k={k}, block_size={block_size}; pad k with code 7")


class _Nf4Plan(SeedPlan):
    def _elements(self) -> tuple[torch.dtype, torch.dtype | None]:
        return getattr(self.desc, "output_dtype", None) or self.desc.activation_dtype, torch.uint8

    def _weight_refusals(self, args, device: torch.device) -> Iterator[str]:
        desc = self.desc
        blocks = desc.k // desc.block_size
        yield from tensor_refusals("weight", args.weight, torch.uint8, ((desc.n // 2, desc.k), (desc.n // 2 * desc.k,)), device)
        yield from tensor_refusals("absmax", args.absmax, torch.float32, ((desc.n, blocks), (desc.n * blocks,)), device)
        yield from positive_refusals("absmax", args.absmax, zero_allowed=True)

    def _weight(self, args) -> tuple[torch.Tensor, torch.Tensor]:
        return args.weight.view(self.desc.n // 2, self.desc.k), args.absmax.view(self.desc.n, self.desc.k // self.desc.block_size)


class Nf4DequantizePlan(_Nf4Plan):
    """``output[n, k] = level * absmax`` with the 16 float32 levels of bitsandbytes; a block with absmax 0 decodes to 0.

    Example:
        >>> plan = Nf4DequantizePlan.select(None, Nf4DequantizeDescriptor(n=2, k=2, block_size=2))
        >>> weight = torch.tensor([[0xF7, 0x0F]], dtype=torch.uint8)
        >>> plan.run(None, None, Nf4DequantizeArgs(weight=weight, absmax=torch.tensor([1.0, 2.0]))).tolist()
        [[0.0, 1.0], [2.0, -2.0]]
    """

    Descriptor, Args = Nf4DequantizeDescriptor, Nf4DequantizeArgs
    op, category, kernel = "nf4_dequantize", "dequantize", "nf4_row_pair"

    def _refusals(self, args: Nf4DequantizeArgs) -> Iterator[str]:
        device = expect_type(args.weight, torch.Tensor, "weight").device
        yield from self._weight_refusals(args, device)
        if args.output is not None:
            yield from tensor_refusals("output", args.output, self.desc.output_dtype, ((self.desc.n, self.desc.k),), device)

    def _execute(self, args: Nf4DequantizeArgs, workspace: torch.Tensor | None) -> torch.Tensor:
        out = given_or_empty(args.output, (self.desc.n, self.desc.k), self.desc.output_dtype, args.weight.device)
        if out.numel():
            implementation("linear", args.weight.device).nf4_dequantize(*self._weight(args), out=out)
        return out


class Nf4MatmulPlan(_Nf4Plan):
    """``output[m, n] = activation @ w_hat.T``, float32 products and sums, rounded once to the activation's dtype. ``k = 0`` gives zeros."""

    Descriptor, Args = Nf4MatmulDescriptor, Nf4MatmulArgs
    op, category, kernel = "nf4_matmul", "matmul", "nf4_row_pair"

    def precision_guarantee(self) -> PrecisionGuarantee:
        """The order of float32 sums is the kernel's, so the error is bounded by (k + 1) float32 roundings of ``|x| @ |w_hat|.T``."""
        dtype = self.desc.activation_dtype
        unit = 2.0**-24
        return PrecisionGuarantee(
            math_precision="float32", accumulator="float32", bitwise=False, relative=(self.desc.k + 1) * unit,
            output_eps=0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2, output_tiny=underflow(dtype, self.desc.k, "float32"),
        )  # fmt: skip

    def _shapes(self) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        desc = self.desc
        flat = desc.m == 1
        return ((desc.m, desc.k), (desc.k,))[: 1 + flat], ((desc.m, desc.n), (desc.n,))[: 1 + flat]

    def _refusals(self, args: Nf4MatmulArgs) -> Iterator[str]:
        x = expect_type(args.activation, torch.Tensor, "activation")
        shapes, out_shapes = self._shapes()
        yield from tensor_refusals("activation", x, self.desc.activation_dtype, shapes, x.device, contiguous=False)
        yield from self._weight_refusals(args, x.device)
        if args.output is not None:
            yield from tensor_refusals("output", args.output, self.desc.activation_dtype, out_shapes, x.device)

    def _execute(self, args: Nf4MatmulArgs, workspace: torch.Tensor | None) -> torch.Tensor:
        desc, x = self.desc, args.activation
        shape = (desc.m, desc.n) if x.dim() == 2 else (desc.n,)
        out = given_or_empty(args.output, shape, desc.activation_dtype, x.device)
        if not desc.k:
            return out.zero_()
        if out.numel():
            x2 = x if x.dim() == 2 else x.unsqueeze(0)
            implementation("linear", x.device).nf4_matmul(x2, *self._weight(args), out=out.view(desc.m, desc.n))
        return out
