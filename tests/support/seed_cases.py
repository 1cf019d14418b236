"""Problems for every seed plan, with values that separate right from nearly right: ties, huge, tiny, NaN, Inf, far zero points."""
from __future__ import annotations

from collections.abc import Iterator

import torch

from tritonq import plans as P

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CODES = (torch.int8, torch.uint8)
RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
_SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -2.5, 1e30, -1e30, 1e-40, 8388607.5, -4194304.5)


def values(shape: tuple[int, ...], dtype: torch.dtype, spread: float = 40.0) -> torch.Tensor:
    """Random values in which every special one occurs."""
    x = torch.randn(shape, dtype=torch.float64) * spread
    flat = x.view(-1)
    flat[torch.randperm(flat.numel())[: len(_SPECIAL)]] = torch.tensor(_SPECIAL, dtype=torch.float64)[: flat.numel()]
    return x.to(dtype)


def scales(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Positive: powers of two (exact ties) beside arbitrary ones."""
    s = torch.rand(shape, dtype=torch.float64) + 0.05
    return torch.where(torch.rand(shape) < 0.3, 0.5, s).to(dtype)


def zero_points(shape: tuple[int, ...]) -> torch.Tensor:
    """Mostly small, some at the ends of int32."""
    z = torch.randint(-20, 20, shape, dtype=torch.int32)
    far = torch.rand(shape)
    return torch.where(far < 0.1, 2**31 - 1, torch.where(far > 0.9, -(2**31), z)).to(torch.int32)


def _granularities() -> Iterator[tuple[str, dict, tuple[int, ...], tuple[int, ...] | None]]:
    """(name, descriptor fields, tensor shape, scale shape)."""
    yield "PerTensor", {"numel": 1003}, (17, 59), None
    shapes = ((0, (5, 300)), (1, (7, 130)), (-1, (3, 5, 7, 11)), (1, (3, 5, 7, 2)), (2, (2, 3, 70, 3)), (-2, (3, 6, 9)), (0, (19,)))
    for axis, shape in shapes:
        yield "PerChannel", {"shape": shape, "axis": axis}, shape, (shape[axis],)
    for n, d in ((33, 70), (3, 2500)):
        yield "PerToken", {"n": n, "d": d}, (n, d), (n,)
    for outer, axis, group in ((9, 100, 32), (5, 96, 96), (40, 10, 3), (3, 30, 1000), (2, 1500, 1), (2, 2500, 48)):
        yield "PerGroup", {"outer_size": outer, "axis_size": axis, "group_size": group}, (outer, axis), (outer, -(-axis // group))


def granularity_cases(
    name: str, fields: dict, shape: tuple[int, ...], scale_shape: tuple[int, ...] | None, dtype: torch.dtype, code_dtype: torch.dtype
) -> Iterator[tuple[str, P.QuantizePerTensorPlan, object]]:
    """(name, plan, args) of the four plans of one granularity and problem."""
    low, high = RANGES[code_dtype]
    common = {
        "scale": 0.1 if scale_shape is None else scales(scale_shape, dtype),
        "zero_point": 3 if scale_shape is None else zero_points(scale_shape),
    }
    x, dy = values(shape, dtype), torch.randn(shape).to(dtype)
    codes = torch.randint(low, high + 1, shape).to(code_dtype)
    to_codes = getattr(P, f"Quantize{name}Descriptor")(**fields, q_min=low, q_max=high - 3, input_dtype=dtype, output_dtype=code_dtype)
    from_codes = getattr(P, f"Dequantize{name}Descriptor")(**fields, input_dtype=code_dtype, output_dtype=dtype)
    for kind, desc, args in (
        (f"Quantize{name}", to_codes, {"input": x, **common}),
        (f"Quantize{name}Backward", to_codes, {"input": x, "d_output": dy, **common}),
        (f"Dequantize{name}", from_codes, {"input": codes, **common}),
        (f"Dequantize{name}Backward", from_codes, {"d_output": dy, "scale": common["scale"]}),
    ):
        yield f"{kind} {name}{fields}", getattr(P, f"{kind}Plan").select(None, desc), getattr(P, f"{kind}Args")(**args)


def affine(dtype: torch.dtype, code_dtype: torch.dtype) -> Iterator[tuple[str, P.QuantizePerTensorPlan, object]]:
    """(name, plan, args) of the plans that are given scale and zero point."""
    low, high = RANGES[code_dtype]
    for granularity in _granularities():
        yield from granularity_cases(*granularity, dtype, code_dtype)
    desc = P.FakeQuantizeDescriptor(numel=1003, q_min=low, q_max=high, input_dtype=dtype)
    x, dy = values((1003,), dtype), torch.randn(1003).to(dtype)
    for zero_point, scale in ((7, 0.3), (2**24 + 3, 1.0)):  # float32 has no 2**24 + 3, but has its distance to the codes
        args = P.FakeQuantizeArgs(input=x, scale=scale, zero_point=zero_point)
        yield f"FakeQuantize zero point {zero_point}", P.FakeQuantizePlan.select(None, desc), args
    yield (
        "FakeQuantizeBackward",
        P.FakeQuantizeBackwardPlan.select(None, desc),
        P.FakeQuantizeBackwardArgs(input=x, scale=0.3, zero_point=7, d_output=dy),
    )


SCOPES = {
    "tensor": P.DynamicRangeScope.tensor(),
    "token": P.DynamicRangeScope.token(),
    "channel0": P.DynamicRangeScope.channel(0),
    "channel1": P.DynamicRangeScope.channel(1),
    "group1": P.DynamicRangeScope.group(1, 48),
    "group1_small": P.DynamicRangeScope.group(1, 3),
    "group0": P.DynamicRangeScope.group(0, 8),
}


def range_data(dtype: torch.dtype, n: int = 21, d: int = 1100) -> torch.Tensor:
    """Rows that are zero, constant, one-sided, tiny, huge, NaN, Inf, and ordinary ones."""
    x = torch.randn(n, d, dtype=torch.float64)
    info = torch.finfo(dtype)
    x[0] = 0
    x[1] = -5
    x[2] = x[2].abs() + 2
    x[3] = info.tiny * info.eps * torch.randint(-3, 4, (d,))
    x[4] = info.max
    x[4, ::2] = -info.max
    x[5] = float("nan")
    x[6, :4] = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0], dtype=torch.float64)
    x[7] = float("inf")
    x[8] = -356 * info.tiny * info.eps  # 356 / 255 steps round to a scale of one step, so the zero point needs its clamp
    return x.to(dtype)


def dynamic_range(
    dtype: torch.dtype, code_dtype: torch.dtype, n: int = 21, d: int = 1100
) -> Iterator[tuple[str, P.DynamicRangeQuantizePlan, object]]:
    """(name, plan, args) for every scope and both modes; rows longer than 1024 are read in several tiles."""
    low, high = RANGES[code_dtype]
    x = range_data(dtype, n, d)
    for scope_name, scope in SCOPES.items():
        for mode in P.DynamicRangeMode:
            # One huge row would make a scale of all others' codes 0: the whole tensor and columns leave it out.
            data = x if scope_name in ("token", "channel0", "group1", "group1_small") else torch.cat((x[:4], x[5:]))
            desc = P.DynamicRangeQuantizeDescriptor(
                n=data.shape[0], d=data.shape[1], q_min=low, q_max=high, mode=mode, scope=scope, input_dtype=dtype, output_dtype=code_dtype
            )
            yield f"{scope_name} {mode.value}", P.DynamicRangeQuantizePlan.select(None, desc), P.DynamicRangeQuantizeArgs(input=data)


def linear(dtype: torch.dtype) -> Iterator[tuple[str, P.QuantizedLinearPlan, object]]:
    """(name, plan, args) of W8A8 and SmoothQuant: ragged, one row, one column, nothing to sum."""
    for m, n, k in ((37, 70, 100), (1, 33, 257), (70, 1, 64), (3, 5, 0), (0, 4, 8), (130, 129, 40)):
        weight, scale = torch.randint(-128, 128, (n, k), dtype=torch.int8), scales((n,), dtype)
        desc = P.QuantizedLinearDescriptor(m=m, c_out=n, k=k, activation_dtype=dtype)
        args = P.QuantizedLinearArgs(activation=torch.randn(m, k).to(dtype), weight_q=weight, weight_scale=scale)
        yield f"W8A8 {m}x{n}x{k}", P.QuantizedLinearPlan.select(None, desc), args
        desc = P.SmoothQuantLinearDescriptor(m=m, n=n, k=k, act_scale=0.017, output_dtype=dtype)
        act = torch.randint(-128, 128, (k, m), dtype=torch.int8).T
        args = P.SmoothQuantLinearArgs(act_q=act, weight_q=weight, weight_scale=scale)
        yield f"Smooth {m}x{n}x{k}", P.SmoothQuantLinearPlan.select(None, desc), args


def nf4(dtype: torch.dtype, matmul: bool) -> Iterator[tuple[str, P.Nf4DequantizePlan, object]]:
    """(name, plan, args) of row-paired NF4."""
    for m, n, k, block in ((5, 34, 96, 16), (1, 2, 64, 64), (40, 70, 150, 50)):
        weight = torch.randint(0, 256, (n // 2, k), dtype=torch.uint8)
        absmax = torch.rand(n, k // block)
        absmax[0, 0] = 0
        name = f"{m}x{n}x{k} block {block}"
        if matmul:
            desc = P.Nf4MatmulDescriptor(m=m, n=n, k=k, block_size=block, activation_dtype=dtype)
            args = P.Nf4MatmulArgs(weight=weight, absmax=absmax, activation=torch.randn(m, k).to(dtype))
            yield name, P.Nf4MatmulPlan.select(None, desc), args
        else:
            desc = P.Nf4DequantizeDescriptor(n=n, k=k, block_size=block, output_dtype=dtype)
            yield name, P.Nf4DequantizePlan.select(None, desc), P.Nf4DequantizeArgs(weight=weight, absmax=absmax)


def assert_same_bits(got, want, where: str) -> None:
    """Equal type, shape and bits, the sign of zero included; NaN equals NaN."""
    if isinstance(want, tuple):
        for g, w in zip(got, want, strict=True):
            assert_same_bits(g, w, where)
        return
    assert got.dtype == want.dtype and got.shape == want.shape, where
    if got.is_floating_point():
        assert torch.equal(got.isnan(), want.isnan()), where
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
        got, want = (torch.where(t.isnan(), 0, t).view(integer) for t in (got, want))
    different = (got != want).sum().item()
    assert not different, f"{where}: {different} of {got.numel()} elements differ"
