"""Quantized matrices in which a wrong parameter shows, and the judgement of products with them."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.poison import fenced
from tritonq import QTensor, Scheme, reference
from tritonq.formats.packing import pack_row


def weight(scheme: str, n: int, k: int, dtype: torch.dtype, seed: int = 0, exact: bool = False) -> QTensor:
    """Random finite codes, and a different scale and zero point in every (row, group): one taken from a neighbour shows.

    ``exact``: scales are powers of two and float zeros small multiples of 1/8, so that small integer x give exact results.
    """
    generator = torch.Generator().manual_seed(seed)
    scheme = Scheme.parse(scheme)
    fmt = scheme.format
    q = reference.quantize(torch.zeros(n, k, dtype=dtype), scheme)
    groups = scheme.scale_shape(n, k)
    count = groups[0] * groups[1]
    finite = fmt.levels.isfinite().nonzero().flatten()
    codes = finite[torch.randint(0, finite.numel(), (n, k), generator=generator)].to(torch.uint8)
    fields = {"packed": pack_row(codes, fmt.bits).contiguous()}
    spread = torch.randperm(count, generator=generator).view(groups)
    if "dq" in scheme.options:
        fields["stored_scale"] = (spread % 256).to(torch.uint8)
        fields["scale_offset"] = torch.tensor(0.05)
        fields["second_scale"] = 0.01 + torch.rand(q.second_scale.shape, generator=generator)
    else:
        scale = 2.0 ** (spread % 5 - 2) if exact else (0.2 + (spread + 0.5) / count) / fmt.max_abs
        fields["stored_scale"] = scheme.scale_format(dtype).encode_ref(scale.float())
    if scheme.recipe == "nv":
        fields["second_scale"] = torch.tensor(0.7)
    if scheme.float_zero:
        zero = torch.randint(-8, 9, groups, generator=generator) / 8 if exact else torch.rand(groups, generator=generator) - 0.5
        fields["zero_point"] = scheme.zero_format(dtype).encode_ref(zero)
    elif fmt.affine:
        fields["zero_point"] = torch.randint(0, 2**fmt.bits, groups, dtype=torch.uint8, generator=generator)
    return dataclasses.replace(q, **fields)


def fence(q: QTensor) -> QTensor:
    """The same matrix with poison around each of its tensors."""
    fields = {f.name: getattr(q, f.name) for f in dataclasses.fields(q)}
    return dataclasses.replace(q, **{name: fenced(t) for name, t in fields.items() if isinstance(t, torch.Tensor) and t.dim()})


def expected(x, q, bias=None, activation=None, residual=None):
    """The product in float64."""
    y = x.double() @ reference.dequantize(q, torch.float64).T
    y = y if bias is None else y + bias.double()
    if activation == "swiglu":
        gate, up = y.chunk(2, -1)
        y = torch.nn.functional.silu(gate) * up
    elif activation is not None:
        y = getattr(torch.nn.functional, activation)(y)
    return y if residual is None else y + residual.double()


def bound(plan, x, q, *epilogue) -> torch.Tensor:
    """What the plan guarantees; the judge decodes without the kernels that it judges."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITONQ_BACKEND", "reference")
        return plan.precision_guarantee().bound(x, q, *epilogue)


def within(got, x, row, plan, bias=None, residual=None) -> bool:
    """Whether every element keeps the plan's guarantee; NaN does not."""
    activation = plan.desc.activation
    error = (got.double() - expected(x, row, bias, activation, residual)).abs()
    return bool((error <= bound(plan, x, row, bias, activation, residual)).all())
