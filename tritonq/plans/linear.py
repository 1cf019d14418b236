"""Floor 4. Linear layers over int8 codes: QuantizedLinearPlan quantizes its activations, SmoothQuantLinearPlan is given codes."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..dtypes import compute_dtype, dtype_name
from ..errors import InvalidProblemError, UnsupportedError
from .core import PrecisionGuarantee, expect_type
from .seed_base import (
    FLOATS,
    SeedPlan,
    as_float,
    code_range,
    given_or_empty,
    implementation,
    one_of,
    positive_refusals,
    size,
    symmetric_range,
    tensor_refusals,
)


def _check_sum(k: int, largest: int) -> None:
    """Refuse a ``k`` whose int32 sum of products with weights down to -128 could overflow."""
    if k * largest * 128 >= 2**31:
        limit = (2**31 - 1) // (largest * 128)
        raise UnsupportedError(f"k={k} could overflow the int32 sum of codes up to {largest} times -128; k <= {limit} cannot, split k")


@dataclass(frozen=True, kw_only=True)
class QuantizedLinearDescriptor:
    """``[m, k] @ [c_out, k].T``: float activation, int8 weight. ``q_min..q_max`` are the activation's codes, 0 among them."""

    m: int
    c_out: int
    k: int
    q_min: int = -127
    q_max: int = 127
    activation_dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.int8

    def check(self) -> None:
        """Raise InvalidProblemError or UnsupportedError unless a plan can be made of this."""
        for name in ("m", "c_out", "k"):
            size(getattr(self, name), name)
        one_of(self.activation_dtype, FLOATS, "activation_dtype")
        one_of(self.weight_dtype, (torch.int8,), "weight_dtype")
        code_range(self.q_min, self.q_max, torch.int8)
        symmetric_range(self.q_min, self.q_max, "the activation's")
        _check_sum(self.k, max(abs(self.q_min), self.q_max))


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedLinearArgs:
    """``activation`` ``[m, k]`` and ``weight_q`` int8 ``[c_out, k]`` with any strides, ``weight_scale`` ``[c_out]`` like the activation.

    ``output`` ``[m, c_out]``, ``act_q_scratch`` int8 ``[m, k]`` and ``act_scale_scratch`` ``[m]`` (activation's dtype) may be given.
    """

    activation: torch.Tensor
    weight_q: torch.Tensor
    weight_scale: torch.Tensor
    output: torch.Tensor | None = None
    act_q_scratch: torch.Tensor | None = None
    act_scale_scratch: torch.Tensor | None = None


class QuantizedLinearPlan(SeedPlan):
    """W8A8: every activation row gets codes and a symmetric scale of its own, then ``output = (s_act[m] * s_weight[n]) * int32 sum``.

    The sums are exact, so the result equals the reference bit for bit. ``k = 0`` gives zeros. Two launches.

    Example:
        >>> plan = QuantizedLinearPlan.select(None, QuantizedLinearDescriptor(m=1, c_out=1, k=2))
        >>> plan.run(None, None, QuantizedLinearArgs(activation=torch.tensor([[127.0, 1.0]]),
        ...     weight_q=torch.tensor([[1, 3]], dtype=torch.int8), weight_scale=torch.tensor([0.5]))).tolist()
        [[65.0]]
    """

    Descriptor, Args = QuantizedLinearDescriptor, QuantizedLinearArgs
    op, category, kernel = "quantized_linear", "linear", "w8a8_linear"

    def _elements(self) -> tuple[torch.dtype, torch.dtype | None]:
        return self.desc.activation_dtype, self.desc.weight_dtype

    def precision_guarantee(self) -> PrecisionGuarantee:
        """Equal to the torch reference bit for bit; sums in int32, scales in float32 (float64 for float64)."""
        return _integer_guarantee(self.desc.activation_dtype)

    def _refusals(self, args: QuantizedLinearArgs) -> Iterator[str]:
        desc, x = self.desc, expect_type(args.activation, torch.Tensor, "activation")
        yield from tensor_refusals("activation", x, desc.activation_dtype, ((desc.m, desc.k),), x.device, contiguous=False)
        yield from tensor_refusals("weight_q", args.weight_q, torch.int8, ((desc.c_out, desc.k),), x.device, contiguous=False)
        yield from tensor_refusals("weight_scale", args.weight_scale, desc.activation_dtype, ((desc.c_out,),), x.device)
        optional = (
            ("output", desc.activation_dtype, (desc.m, desc.c_out)),
            ("act_q_scratch", torch.int8, (desc.m, desc.k)),
            ("act_scale_scratch", desc.activation_dtype, (desc.m,)),
        )
        for name, dtype, shape in optional:
            if getattr(args, name) is not None:
                yield from tensor_refusals(name, getattr(args, name), dtype, (shape,), x.device)
        yield from positive_refusals("weight_scale", args.weight_scale)

    def _execute(self, args: QuantizedLinearArgs, workspace: torch.Tensor | None) -> torch.Tensor:
        desc, x = self.desc, args.activation
        out = given_or_empty(args.output, (desc.m, desc.c_out), desc.activation_dtype, x.device)
        act_q = given_or_empty(args.act_q_scratch, (desc.m, desc.k), torch.int8, x.device)
        act_scale = given_or_empty(args.act_scale_scratch, (desc.m,), desc.activation_dtype, x.device)
        if not act_q.numel():
            act_scale.fill_(1)
            return out.zero_()
        zero_point = torch.empty((desc.m, 1), dtype=torch.int32, device=x.device)
        implementation("dynamic_range", x.device).quantize_rows(
            x, q_min=desc.q_min, q_max=desc.q_max, asymmetric=False, group_size=desc.k,
            scale=act_scale.view(-1, 1), zero_point=zero_point, out=act_q,
        )  # fmt: skip
        if out.numel():
            implementation("linear", x.device).w8a8(act_q, args.weight_q, act_scale, args.weight_scale, out=out)
        return out


@dataclass(frozen=True, kw_only=True)
class SmoothQuantLinearDescriptor:
    """``[m, k] @ [n, k].T`` of int8 codes; ``act_scale`` is the activation's one scale, a float32 number known beforehand."""

    m: int
    n: int
    k: int
    act_scale: float
    activation_dtype: torch.dtype = torch.int8
    weight_dtype: torch.dtype = torch.int8
    output_dtype: torch.dtype = torch.float32

    def check(self) -> None:
        """Raise InvalidProblemError or UnsupportedError unless a plan can be made of this."""
        for name in ("m", "n", "k"):
            size(getattr(self, name), name)
        act_scale = as_float(expect_type(self.act_scale, (float, int), "act_scale"))
        as_float32 = torch.tensor(act_scale, dtype=torch.float32).item()
        if not 0 < as_float32 < math.inf:
            raise InvalidProblemError(f"act_scale must be a finite float32 greater than 0, got {act_scale}")
        one_of(self.activation_dtype, (torch.int8,), "activation_dtype")
        one_of(self.weight_dtype, (torch.int8,), "weight_dtype")
        one_of(self.output_dtype, FLOATS, "output_dtype")
        _check_sum(self.k, 128)


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothQuantLinearArgs:
    """``act_q`` int8 ``[m, k]`` and ``weight_q`` int8 ``[n, k]`` with any strides, ``weight_scale`` ``[n]`` in the output's dtype.

    ``act_scale_scratch`` ``[m]`` float32 (float64 for float64 output) may be given; it is filled with the descriptor's act_scale.
    """

    act_q: torch.Tensor
    weight_q: torch.Tensor
    weight_scale: torch.Tensor
    output: torch.Tensor | None = None
    act_scale_scratch: torch.Tensor | None = None


class SmoothQuantLinearPlan(SeedPlan):
    """``output = (act_scale * weight_scale[n]) * int32 sum``, the sums exact: equal to the reference bit for bit. ``k = 0`` gives zeros."""

    Descriptor, Args = SmoothQuantLinearDescriptor, SmoothQuantLinearArgs
    op, category, kernel = "smooth_quant_linear", "linear", "w8a8_linear"

    def _elements(self) -> tuple[torch.dtype, torch.dtype | None]:
        return self.desc.output_dtype, self.desc.weight_dtype

    def precision_guarantee(self) -> PrecisionGuarantee:
        """Equal to the torch reference bit for bit; sums in int32, scales in float32 (float64 for float64)."""
        return _integer_guarantee(self.desc.output_dtype)

    @property
    def _scale_dtype(self) -> torch.dtype:
        return compute_dtype(self.desc.output_dtype)

    def _refusals(self, args: SmoothQuantLinearArgs) -> Iterator[str]:
        desc, act = self.desc, expect_type(args.act_q, torch.Tensor, "act_q")
        yield from tensor_refusals("act_q", act, torch.int8, ((desc.m, desc.k),), act.device, contiguous=False)
        yield from tensor_refusals("weight_q", args.weight_q, torch.int8, ((desc.n, desc.k),), act.device, contiguous=False)
        yield from tensor_refusals("weight_scale", args.weight_scale, desc.output_dtype, ((desc.n,),), act.device)
        for name, dtype, shape in (("output", desc.output_dtype, (desc.m, desc.n)), ("act_scale_scratch", self._scale_dtype, (desc.m,))):
            if getattr(args, name) is not None:
                yield from tensor_refusals(name, getattr(args, name), dtype, (shape,), act.device)
        yield from positive_refusals("weight_scale", args.weight_scale)

    def _execute(self, args: SmoothQuantLinearArgs, workspace: torch.Tensor | None) -> torch.Tensor:
        desc, device = self.desc, args.act_q.device
        out = given_or_empty(args.output, (desc.m, desc.n), desc.output_dtype, device)
        as_float32 = torch.tensor(float(desc.act_scale), dtype=torch.float32).item()
        act_scale = given_or_empty(args.act_scale_scratch, (1,), self._scale_dtype, device).fill_(as_float32)
        if not args.act_q.numel():
            return out.zero_()
        if out.numel():
            implementation("linear", device).w8a8(args.act_q, args.weight_q, act_scale, args.weight_scale, out=out)
        return out


def _integer_guarantee(dtype: torch.dtype) -> PrecisionGuarantee:
    return PrecisionGuarantee(math_precision=dtype_name(compute_dtype(dtype)), accumulator="int32")
