"""Matrices and vectors under a QuantizationMethod: codes, parameters, gradients, refusals. Products: test_method_products.py."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tritonq
from tests.oracles.plain_methods import plain_columns, plain_group, round_ties
from tritonq import QuantizationMethod, QuantizedDataType
from tritonq.errors import InvalidProblemError
from tritonq.matrix import gradient_mask
from tritonq.methods import method_scheme

M = QuantizationMethod
METHODS = list(M)
WHOLE = [m for m in METHODS if not m.per_channel]
SCALED = [m for m in METHODS if not m.is_cast]
BITS = (2, 3, 4, 5, 6, 7, 8)
ROUNDINGS = ("half_even", "half_away")
KIND = {m: "symmetric" if m.symmetric else "float_zero" if m.float_zero else "affine" for m in SCALED}


def plain_of(rows: list[list[float]], bits: int, method: M, away: bool) -> tuple[list, list[list[int]], list[list[float]]]:
    """The groups, codes and values of a matrix, from the oracle."""
    bits = 4 if method in (M.INT4, M.UINT4) else bits
    if method.per_channel:
        groups = plain_columns(rows, bits, KIND[method], away=away)
        at = [[(column, i) for column in groups] for i in range(len(rows))]
    else:
        flat = [v for row in rows for v in row]
        groups = [plain_group(flat, bits, KIND[method], away=away, power_of_two=method is M.POWER_OF_TWO)]
        at = [[(groups[0], i * len(rows[0]) + j) for j in range(len(rows[0]))] for i in range(len(rows))]
    return groups, [[g.codes[i] for g, i in row] for row in at], [[g.decoded[i] for g, i in row] for row in at]


# quantize and decode -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", SCALED, ids=lambda m: m.name)
def test_codes_values_and_params_are_those_of_the_rules(method: M, bits: int, rounding: str) -> None:
    x = torch.randn(5, 6) * 3 + torch.arange(-2, 4)  # columns on both sides of zero, and some on one side
    x[1, 2], x[2, 3], x[3, 4] = math.nan, math.inf, -math.inf
    x[:, 5] = 2.0**-3  # a column without extent
    q, params = tritonq.quantize_matrix(x, bits, method, rounding)
    groups, codes, decoded = plain_of(x.tolist(), bits, method, rounding == "half_away")
    assert q.codes().tolist() == codes
    assert tritonq.dequantize_matrix(q, params).tolist() == decoded
    finite = x[x.isfinite()]
    assert (params.min_val, params.max_val) == (finite.min().item(), finite.max().item())
    assert params.bits == method.code_bits(bits) and params.method is method
    low, high = method.code_range(bits)
    assert min(min(row) for row in codes) >= low and max(max(row) for row in codes) <= high
    if method.per_channel:
        assert params.channel_scales == tuple(g.scale for g in groups) and params.channel_zero_points == tuple(g.zero_point for g in groups)
        assert params.scale == pytest.approx(sum(params.channel_scales) / 6, rel=1e-6)
        assert params.zero_point == round_ties(sum(params.channel_zero_points) / 6, rounding == "half_away")
    else:
        assert params.scale == groups[0].scale and params.channel_scales is None and params.channel_zero_points is None
        if method is M.UINT4:
            assert params.zero_point == round_ties(-params.min_val / params.scale, rounding == "half_away")
        else:
            assert params.zero_point == groups[0].zero_point


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", SCALED, ids=lambda m: m.name)
def test_ties_follow_the_rounding(method: M, bits: int) -> None:
    x = torch.tensor([[0.0, 0.5, 1.5, 2.5, 2.0 ** (method.code_bits(bits) - method.symmetric) - 1]]).T
    if method is M.PER_CHANNEL_SYMMETRIC or method.symmetric:
        x = torch.cat([x, -x])
    for rounding, ties in (("half_even", [0, 2, 2]), ("half_away", [1, 2, 3])):
        q, params = tritonq.quantize_matrix(x, bits, method, rounding)
        assert params.scale == 1.0 and q.codes().flatten().tolist()[1:4] == ties
        if method.symmetric:
            assert q.codes().flatten().tolist()[6:9] == [-t for t in ties]


@pytest.mark.parametrize(("rounding", "zero_point"), [("half_even", 2), ("half_away", 3)])
def test_the_zero_point_of_uint4_follows_the_rounding(rounding: str, zero_point: int) -> None:
    _, params = tritonq.quantize_matrix(torch.tensor([[-2.5, 12.5]]), 4, M.UINT4, rounding)
    assert (params.scale, params.zero_point) == (1.0, zero_point)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_zero_decodes_to_zero(method: M) -> None:
    """For UNIFORM and its kin only where the data hold the zero as their least value: it is no code otherwise."""
    x = torch.tensor([[0.0, 0.7], [0.3, 2.0]])
    q, params = tritonq.quantize_matrix(x, 8, method)
    assert tritonq.dequantize_matrix(q, params)[0, 0].item() == 0.0
    if not method.float_zero:
        q, params = tritonq.quantize_matrix(torch.cat([x, -3.3 * x]), 8, method)
        assert tritonq.dequantize_matrix(q, params)[[0, 2], 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30, math.nan, math.inf])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_constants(method: M, value: float) -> None:
    q, params = tritonq.quantize_matrix(torch.full((2, 3), value), 8, method)
    decoded = tritonq.dequantize_matrix(q, params)
    assert decoded.isfinite().all() and (decoded == decoded[0, 0]).all()
    if math.isfinite(value) and not (method.is_cast and value == 1e-30):
        assert decoded[0, 0].item() == pytest.approx(value, rel=1e-6, abs=0)
    if math.isnan(value):
        assert decoded[0, 0].item() == 0.0
    if not method.is_cast and (not math.isfinite(value) or value == 0 or method.float_zero):
        assert params.scale == 1.0
    assert (params.min_val, params.max_val) == ((torch.tensor(value).item(),) * 2 if math.isfinite(value) else (0.0, 0.0))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty(method: M, shape: tuple[int, int]) -> None:
    q, params = tritonq.quantize_matrix(torch.empty(shape), 8, method)
    assert tritonq.dequantize_matrix(q, params).shape == shape and params.scale == 1.0 and params.zero_point == 0
    b, pb = tritonq.quantize_matrix(torch.ones(shape[1], 2), 8, method)
    y = tritonq.quantized_matmul(q, params, b, pb)
    assert y.shape == (shape[0], 2) and not y.any()
    assert tritonq.fake_quantize(torch.empty(shape), 8, method).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_dtypes_and_strides(method: M, dtype: torch.dtype) -> None:
    x = torch.randn(6, 8).to(dtype)
    q, params = tritonq.quantize_matrix(x.T.contiguous().T[::2, 1:], 8, method)
    expected, same = tritonq.quantize_matrix(x[::2, 1:].contiguous(), 8, method)
    assert torch.equal(q.packed, expected.packed) and params == same
    decoded = tritonq.dequantize_matrix(q, params)
    assert decoded.dtype == dtype and tritonq.dequantize_matrix(q, params, torch.float64).dtype == torch.float64
    # Half a step of the code, and two roundings of the value in the dtype; scales are float32 for every dtype.
    largest = x.abs().max().item()
    step = 0.0 if method.is_cast else max(params.channel_scales or (params.scale,))
    cast = {M.FLOAT16: torch.float16, M.BFLOAT16: torch.bfloat16}.get(method, dtype)
    unit = max(torch.finfo(d).eps for d in (dtype, torch.float32, cast))
    assert (decoded.double() - x[::2, 1:].double()).abs().max() <= step / 2 * (1 + 2.0**-20) + 2 * unit * largest
    if not method.is_cast:
        assert q.scale.dtype == torch.float32


def test_float64_is_not_rounded_to_float32_first() -> None:
    x = torch.tensor([[127.0, 2.5 + 1e-9, 2.5 - 1e-9]], dtype=torch.float64)
    q, _ = tritonq.quantize_matrix(x, 8, M.SYMMETRIC)
    assert q.codes().tolist() == [[127, 3, 2]]


def test_half_of_uint8_is_reachable() -> None:
    """Unsigned 8-bit codes reach 255: a signed container would saturate at 127."""
    x = torch.linspace(-1, 4.1, 256)[None]
    for method in (M.UNIFORM, M.AFFINE, M.PER_CHANNEL_AFFINE):
        q, params = tritonq.quantize_matrix(x if not method.per_channel else x.T, 8, method)
        assert q.codes().max().item() == 255 and params.data_type is QuantizedDataType.UINT8
        assert (tritonq.dequantize_matrix(q, params).flatten() - x.flatten()).abs().max() <= params.scale / 2 * 1.0001


def test_data_types_and_schemes() -> None:
    table = {(m.name, bits): (m.data_type(bits).name, str(method_scheme(m, bits))) for m in METHODS for bits in (3, 4, 7, 8)}
    per_channel = {bits: table["PER_CHANNEL_AFFINE", bits] for bits in (4, 8)}
    assert table["SYMMETRIC", 8] == ("INT8", "int8.tensor.s32") and table["SYMMETRIC", 4] == ("INT4", "int4.tensor.s32")
    assert table["SYMMETRIC", 3] == ("INT8", "int3.tensor.s32") and table["AFFINE", 7] == ("UINT8", "uint8.tensor.s32")
    assert table["UNIFORM", 8] == ("UINT8", "uint8.tensor.fz.s32") and table["POWER_OF_TWO", 4] == ("UINT4", "uint4.tensor.fz.pow2.s32")
    assert table["INT4", 8] == ("INT4", "int4.tensor.s32") and table["UINT4", 8] == ("UINT4", "uint4.tensor.fz.s32")
    assert table["FLOAT16", 8] == ("FLOAT16", "fp16") and table["BFLOAT16", 3] == ("BFLOAT16", "bf16")
    assert per_channel == {4: ("UINT4", "uint4.column.s32"), 8: ("UINT8", "uint8.column.s32")}
    assert table["PER_CHANNEL_SYMMETRIC", 8] == ("INT8", "int8.column.s32")
    assert {m.value for m in M} >= {d.value for d in QuantizedDataType} - {"Int8", "UInt8"} and len(M) == 10 and len(QuantizedDataType) == 6
    assert [tritonq.determine_data_type(bits).name for bits in (4, 8, 16, 6)] == ["INT4", "INT8", "FLOAT16", "INT8"]


def test_vectors() -> None:
    x = torch.randn(7)
    for method in WHOLE:
        q, params = tritonq.quantize_vector(x, 8, method)
        row, of_row = tritonq.quantize_matrix(x[None], 8, method)
        assert q.shape == (1, 7) and torch.equal(q.packed, row.packed) and params == of_row
        decoded = tritonq.dequantize_vector(q, params)
        assert decoded.shape == (7,) and torch.equal(decoded, tritonq.dequantize_matrix(q, params)[0])


# ranges ------------------------------------------------------------------------------------------------------------------------


def test_find_min_max() -> None:
    assert tritonq.find_min_max(torch.tensor([[[1.0, math.nan]], [[-math.inf, -4.0]]])) == (-4.0, 1.0)
    assert tritonq.find_min_max(torch.tensor([math.nan])) == tritonq.find_min_max(torch.empty(0, 3)) == (0.0, 0.0)
    assert tritonq.find_min_max(torch.tensor(2.5, dtype=torch.float64)) == (2.5, 2.5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("ends", [(-5.0, 5.0), (1.0, 9.0), (-9.0, -1.0), (0.0, 0.0), (-0.1, 7.3), (1e-30, 2e-30), (-2.5, 4.5)])
def test_params_from_a_range_are_those_of_data_in_it(bits: int, ends: tuple[float, float]) -> None:
    for symmetric in (True, False):
        for rounding in ROUNDINGS:
            _, expected = tritonq.quantize_matrix(torch.tensor([ends]), bits, M.SYMMETRIC if symmetric else M.AFFINE, rounding)
            assert tritonq.create_params_from_range(bits, *ends, symmetric=symmetric, rounding=rounding) == expected


# fake quantize -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_fake_quantize_is_quantize_and_decode(method: M, rounding: str) -> None:
    x = torch.randn(4, 6, dtype=torch.float16)
    q, params = tritonq.quantize_matrix(x, 5, method, rounding)
    y = tritonq.fake_quantize(x, 5, method, rounding)
    assert y.dtype == x.dtype and torch.equal(y, tritonq.dequantize_matrix(q, params))
    if not method.per_channel:
        assert torch.equal(tritonq.fake_quantize(x[0], 5, method, rounding), tritonq.fake_quantize(x[:1], 5, method, rounding)[0])


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bits", (4, 7, 8))
@pytest.mark.parametrize("method", SCALED, ids=lambda m: m.name)
def test_gradient_passes_where_the_unclamped_code_is_in_range(method: M, bits: int, rounding: str) -> None:
    x = torch.randn(6, 4)
    x[0, 0], x[1, 1], x[2, 2] = math.inf, -math.inf, math.nan
    x.requires_grad_()
    upstream = torch.randn(6, 4)
    tritonq.fake_quantize(x, bits, method, rounding).backward(upstream)
    groups, _, _ = plain_of(x.tolist(), bits, method, rounding == "half_away")
    low, high = method.code_range(bits)
    for i, row in enumerate(x.tolist()):
        for j, value in enumerate(row):
            group = groups[j if method.per_channel else 0]
            if math.isinf(value):
                passes = False
            else:
                quotient = torch.tensor(0.0 if math.isnan(value) else value) - group.offset
                code = round_ties((quotient / torch.tensor(group.scale)).item(), rounding == "half_away") + group.zero_point
                passes = low <= code <= high
            assert x.grad[i, j].item() == (upstream[i, j].item() if passes else 0.0)


def test_gradient_mask_is_inclusive_and_unclamped() -> None:
    # scale 1, both ends are ties: the zero point is 8, and the greatest value has code 8 + 8, one past the end
    x = torch.tensor([-7.5, -1.0, 0.5, 7.5], requires_grad=True)
    tritonq.fake_quantize(x, 4, M.AFFINE).sum().backward()
    q, params = tritonq.quantize_vector(x, 4, M.AFFINE)
    unclamped = (x.detach() / params.scale).round() + params.zero_point
    assert unclamped.tolist() == [0.0, 7.0, 8.0, 16.0] and q.codes().tolist() == [[0, 7, 8, 15]]
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 0.0]
    # 7-bit codes lie in bytes, their range ends at 127: the same tie at the end
    x = torch.tensor([-63.5, 63.5], requires_grad=True)
    tritonq.fake_quantize(x, 7, M.AFFINE).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]
    # ties away from zero: zero point 9 and 6.5 -> 7, where half to even says 8 and 6
    for rounding, expected in (("half_away", [1.0, 0.0]), ("half_even", [1.0, 1.0])):
        x = torch.tensor([-8.5, 6.5], requires_grad=True)
        tritonq.fake_quantize(x, 4, M.AFFINE, rounding).sum().backward()
        assert x.grad.tolist() == expected
    ones, _ = tritonq.quantize_vector(torch.tensor([127.0]), 8, M.SYMMETRIC)
    probe = torch.tensor([[-128.0, -128.5, -128.51, 127.0, 127.49, 127.5]])
    assert gradient_mask(probe, ones).tolist() == [[True, True, False, True, True, False]]
    assert gradient_mask(probe, ones, -127, 127).tolist() == [[False, False, False, True, True, False]]


def test_gradient_of_casts_stops_at_overflow() -> None:
    x = torch.tensor([1.0, 65519.9, 65520.0, -1e6, math.nan, math.inf], requires_grad=True)
    y = tritonq.fake_quantize(x, 16, M.FLOAT16)
    y.sum().backward()
    assert y.tolist() == [1.0, 65504.0, 65504.0, -65504.0, 0.0, 65504.0]
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    near = torch.tensor([[65520 - 1e-9, 65520.0]], dtype=torch.float64)  # float32 would round the first one up to the second
    q, _ = tritonq.quantize_matrix(near, 16, M.FLOAT16)
    assert gradient_mask(near, q).tolist() == [[True, False]]


def test_fake_quantize_trains() -> None:
    """A regression through 8-bit weights reaches the loss that the grid allows."""
    x, target = torch.randn(256, 8), torch.randn(8, 3)
    w = torch.zeros(8, 3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (x @ tritonq.fake_quantize(w, 8, M.PER_CHANNEL_SYMMETRIC) - x @ target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


# refusals ----------------------------------------------------------------------------------------------------------------------

X = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: tritonq.quantize_matrix(X, 9, M.AFFINE), "AFFINE has no codes of 9 bits; bits must be one of 2, 3, 4, 5, 6, 7, 8"),
        (lambda: tritonq.quantize_matrix(X, 1, M.SYMMETRIC), "no codes of 1 bits"),
        (lambda: tritonq.quantize_matrix(X, 16, M.UNIFORM), "16: FLOAT16, BFLOAT16"),
        (lambda: tritonq.quantize_matrix(X, 8.0, M.AFFINE), "bits must be an int, got float 8.0"),
        (lambda: tritonq.quantize_matrix(X, True, M.INT4), "bits must be an int, got bool"),
        (lambda: tritonq.quantize_matrix(X, "8", M.FLOAT16), "bits must be an int, got str '8'"),
        (lambda: tritonq.quantize_matrix(X, 8, "AFFINE"), "method must be a QuantizationMethod, got str 'AFFINE'; known: UNIFORM"),
        (lambda: tritonq.quantize_matrix(X, 8, M.AFFINE, "up"), "rounding must be one of half_even, half_away, got 'up'"),
        (lambda: tritonq.quantize_matrix(X[0], 8, M.AFFINE), r"got shape \(3,\)"),
        (lambda: tritonq.quantize_matrix(X.int(), 8, M.AFFINE), "int32"),
        (lambda: tritonq.quantize_matrix([[1.0]], 8, M.AFFINE), "list"),
        (lambda: tritonq.quantize_vector(X, 8, M.AFFINE), r"x must be a vector \[n\], got shape \(2, 3\)"),
        (lambda: tritonq.quantize_vector(X[0], 8, M.PER_CHANNEL_AFFINE), "one per element; use AFFINE"),
        (lambda: tritonq.quantize_vector(X[0], 8, "x"), "method must be a QuantizationMethod"),
        (lambda: tritonq.quantize_matrix_per_channel(X, 8, M.AFFINE), "takes the PER_CHANNEL methods, got AFFINE; use quantize_matrix"),
        (lambda: tritonq.fake_quantize(X[None], 8, M.AFFINE), r"got shape \(1, 2, 3\)"),
        (lambda: tritonq.fake_quantize(X[0], 8, M.PER_CHANNEL_SYMMETRIC), "one per element; use SYMMETRIC"),
        (lambda: tritonq.fake_quantize(X, 12, M.AFFINE), "no codes of 12 bits"),
        (lambda: tritonq.find_min_max(X.int()), "x must be float16, bfloat16, float32 or float64, got torch.int32"),
        (lambda: tritonq.find_min_max(X.to(torch.float8_e4m3fn)), r"got torch.float8_e4m3fn; convert it with .float\(\)"),
        (lambda: tritonq.find_min_max(X.to("meta")), "x must be a dense tensor with data, got a meta tensor"),
        (lambda: tritonq.find_min_max(3.0), "x must be a Tensor, got float"),
        (lambda: tritonq.create_params_from_range(8, 2.0, 1.0, symmetric=True), "min_val=2.0 is greater than max_val=1.0"),
        (lambda: tritonq.create_params_from_range(8, math.nan, 1.0, symmetric=True), "min_val must be finite, got nan"),
        (lambda: tritonq.create_params_from_range(8, 0.0, math.inf, symmetric=False), "max_val must be finite, got inf"),
        (lambda: tritonq.create_params_from_range(33, 0.0, 1.0, symmetric=False), "no codes of 33 bits"),
        (lambda: tritonq.create_params_from_range(8, 0.0, 1.0, symmetric=1), "symmetric must be a bool, got int 1"),
        (lambda: tritonq.determine_data_type(32), "no data type holds codes of 32 bits"),
        (lambda: tritonq.determine_data_type("8"), "no data type holds codes of '8' bits"),
    ],
)  # fmt: skip
def test_refusals(call, text: str) -> None:
    with pytest.raises(InvalidProblemError, match=text):
        call()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_parameters_of_another_call_are_refused(method: M) -> None:
    q, params = tritonq.quantize_matrix(X, 8, method)
    for other in METHODS:
        _, wrong = tritonq.quantize_matrix(X, 8, other)
        if method_scheme(other, 8) != method_scheme(method, 8):
            with pytest.raises(InvalidProblemError, match=f"its parameters say {other.name} with"):
                tritonq.dequantize_matrix(q, wrong)
    if method.is_cast:
        return
    _, wrong = tritonq.quantize_matrix(X * 2, 8, method)
    with pytest.raises(InvalidProblemError, match="q holds scale=.*, its parameters say .*; pass those that its quantize call returned"):
        tritonq.dequantize_matrix(q, wrong)
    with pytest.raises(InvalidProblemError, match="b holds scale="):
        tritonq.quantized_matmul(*tritonq.quantize_matrix(X.T, 8, method), q, wrong)
    fields = ["channel_scales", "channel_zero_points"] if method.per_channel else ["min_val"] if method.float_zero else ["zero_point"]
    for field in fields:
        value = getattr(params, field)
        changed = (value[0] + 1, *value[1:]) if isinstance(value, tuple) else value + 1
        with pytest.raises(InvalidProblemError, match=f"q holds {field}="):
            tritonq.dequantize_matrix(q, replace(params, **{field: changed}))
    with pytest.raises(InvalidProblemError, match="must be a QuantizationParams, got dict"):
        tritonq.dequantize_matrix(q, {})
    with pytest.raises(InvalidProblemError, match="q must be a QTensor, got Tensor"):
        tritonq.dequantize_matrix(X, params)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scale": 0.0}, "a scale must be finite and positive, got 0.0"),
        ({"scale": math.nan}, "finite and positive, got nan"),
        ({"scale": -1.0}, "finite and positive, got -1.0"),
        ({"scale": "1"}, "scale must be int or float, got str '1'"),
        ({"zero_point": 1.0}, "zero_point must be int, got float 1.0"),
        ({"bits": True}, "bits must be int, got bool True"),
        ({"scale": 10**400}, "a scale must be finite and positive, got 1000"),
        ({"min_val": math.nan}, "min_val must be finite, got nan"),
        ({"max_val": 10**400}, "max_val must be finite, got 1000"),
        ({"bits": -1}, "AFFINE has no codes of -1 bits"),
        ({"bits": 8, "method": M.INT4}, "codes of INT4 have 4 bits, got bits=8"),
        ({"method": "AFFINE"}, "method must be QuantizationMethod, got str"),
        ({"data_type": "INT8"}, "data_type must be QuantizedDataType, got str"),
        ({"channel_scales": (1.0,)}, "channel_scales of AFFINE must be None"),
        ({"method": M.PER_CHANNEL_AFFINE}, "channel_scales of PER_CHANNEL_AFFINE must be one per column, got None"),
        ({"method": M.PER_CHANNEL_AFFINE, "channel_scales": (1.0,), "channel_zero_points": (1, 2)}, "1 channel_scales and 2 channel_zero"),
        ({"method": M.PER_CHANNEL_AFFINE, "channel_scales": (math.inf,), "channel_zero_points": (1,)}, "finite and positive, got inf"),
    ],
)  # fmt: skip
def test_params_refuse_nonsense(change: dict, text: str) -> None:
    _, params = tritonq.quantize_matrix(X, 8, M.AFFINE)
    with pytest.raises(InvalidProblemError, match=text):
        replace(params, **change)


# properties --------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=12),
    method=st.sampled_from(SCALED),
    bits=st.sampled_from(BITS),
    rounding=st.sampled_from(ROUNDINGS),
)
def test_any_numbers_follow_the_rules(values: list[float], method: M, bits: int, rounding: str) -> None:
    x = torch.tensor([values, values[::-1]])
    q, params = tritonq.quantize_matrix(x, bits, method, rounding)
    _, codes, decoded = plain_of(x.tolist(), bits, method, rounding == "half_away")
    assert q.codes().tolist() == codes and tritonq.dequantize_matrix(q, params).tolist() == decoded
