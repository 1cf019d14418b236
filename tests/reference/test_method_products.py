"""Products of matrices and vectors under every pair of QuantizationMethods, held to exact arithmetic."""
from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import tritonq
from tritonq import QTensor, QuantizationMethod, QuantizationParams, QuantizedDataType
from tritonq.errors import InvalidProblemError

M = QuantizationMethod
METHODS = list(M)
WHOLE = [m for m in METHODS if not m.per_channel]


def exact_values(q: QTensor) -> list[list[Fraction]]:
    """What the QTensor means, without any rounding: from codes, scales and zero points alone."""
    if not q.scheme.has_scale:
        return [[Fraction(v) for v in row] for row in q.dequantize(torch.float64).tolist()]
    codes = q.codes().tolist()
    scale = [Fraction(s) for s in q.scale.flatten().tolist()]
    zero = [0] * len(scale) if q.zero_point is None else [Fraction(z) for z in q.zero_point.flatten().tolist()]
    pick = (lambda j: j) if q.scheme.granularity.kind == "column" else (lambda j: 0)
    if "fz" in q.scheme.options:
        return [[zero[0] + scale[0] * c for c in row] for row in codes]
    return [[scale[pick(j)] * (c - zero[pick(j)]) for j, c in enumerate(row)] for row in codes]


def check_product(y: torch.Tensor, a: list[list[Fraction]], b: list[list[Fraction]], parts: tuple[QTensor, QTensor]) -> None:
    """Every element within the bound: exact integer sums, at most k + 10 float64 roundings of the terms, one rounding to the result.

    The terms of the sum are as large as (|scale * c| + |offset|) on each side, although they may cancel.
    """
    k = len(b)
    size_a, size_b = (_sizes(q) for q in parts)
    size_b = size_b if len(size_b) == k else [list(column) for column in zip(*size_b)]
    for i, row in enumerate(y.reshape(len(a), -1).tolist()):
        for j, got in enumerate(row):
            exact = sum(a[i][t] * b[t][j] for t in range(k))
            magnitude = sum(size_a[i][t] * size_b[t][j] for t in range(k))
            allowed = Fraction(k + 10, 2**53) * magnitude + abs(exact) * (Fraction(1, 2**24) if y.dtype == torch.float32 else 0)
            assert abs(Fraction(got) - exact) <= allowed


def _sizes(q: QTensor) -> list[list[Fraction]]:
    if "fz" not in q.scheme.options:
        return [[abs(v) for v in row] for row in exact_values(q)]
    offset = Fraction(q.zero_point.item())
    return [[abs(v - offset) + abs(offset) for v in row] for row in exact_values(q)]


@pytest.mark.parametrize("right", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("left", METHODS, ids=lambda m: m.name)
def test_matmul_of_every_pair(left: M, right: M) -> None:
    for bits_a, bits_b, dtype, shift in ((8, 8, torch.float32, 0.0), (4, 7, torch.float32, 5.0), (3, 8, torch.float64, -2.0)):
        x, w = torch.randn(3, 9, dtype=dtype) + shift, torch.randn(9, 4, dtype=dtype) * 10 - shift
        a, pa = tritonq.quantize_matrix(x, bits_a, left)
        b, pb = tritonq.quantize_matrix(w, bits_b, right)
        y = tritonq.quantized_matmul(a, pa, b, pb)
        assert y.shape == (3, 4) and y.dtype == dtype
        check_product(y, exact_values(a), exact_values(b), (a, b))


@pytest.mark.parametrize("right", WHOLE, ids=lambda m: m.name)
@pytest.mark.parametrize("left", METHODS, ids=lambda m: m.name)
def test_matvec_and_dot_of_every_pair(left: M, right: M) -> None:
    x, v = torch.randn(5, 11) + 3, torch.randn(11) - 2
    a, pa = tritonq.quantize_matrix(x, 8, left)
    b, pb = tritonq.quantize_vector(v, 8, right)
    column = [[value] for value in exact_values(b)[0]]
    y = tritonq.quantized_matvec(a, pa, b, pb)
    assert y.shape == (5,)
    check_product(y, exact_values(a), column, (a, b))
    if left.per_channel:
        return
    a, pa = tritonq.quantize_vector(x[0], 8, left)
    y = tritonq.quantized_dot(a, pa, b, pb)
    assert y.shape == ()
    check_product(y, exact_values(a), column, (a, b))


def test_sums_of_codes_do_not_overflow() -> None:
    """300000 * 255 * 255 is beyond int32 by a factor of nine."""
    k = 300_000
    codes = torch.full((1, k), 255, dtype=torch.uint8)
    q = QTensor.from_tensors("uint8.tensor.s32", (1, k), torch.float32, {
        "packed": codes, "scale": torch.ones(1, 1), "zero_point": torch.zeros(1, 1, dtype=torch.uint8)})  # fmt: skip
    fields = {"bits": 8, "scale": 1.0, "zero_point": 0, "min_val": 0.0, "max_val": 255.0}
    params = QuantizationParams(**fields, method=M.AFFINE, data_type=QuantizedDataType.UINT8)
    assert tritonq.quantized_dot(q, params, q, params).item() == torch.tensor(float(k * 255 * 255)).item()


def test_shapes_that_do_not_multiply() -> None:
    x = torch.randn(2, 3)
    a, b, v = tritonq.quantize_matrix(x, 8, M.AFFINE), tritonq.quantize_matrix(x, 8, M.INT4), tritonq.quantize_vector(x[0], 8, M.UNIFORM)
    with pytest.raises(InvalidProblemError, match=r"shapes \(2, 3\) and \(2, 3\) do not multiply: 3 and 2"):
        tritonq.quantized_matmul(*a, *b)
    with pytest.raises(InvalidProblemError, match=r"x must be a vector, a QTensor of shape \(1, n\), got shape \(2, 3\)"):
        tritonq.quantized_matvec(*a, *b)
    w = tritonq.quantize_vector(torch.randn(4), 8, M.AFFINE)
    with pytest.raises(InvalidProblemError, match="a matrix of shape .* and a vector of 4 do not multiply"):
        tritonq.quantized_matvec(*a, *w)
    with pytest.raises(InvalidProblemError, match="vectors of 3 and 4 elements do not multiply"):
        tritonq.quantized_dot(*v, *w)
    with pytest.raises(InvalidProblemError, match="a must be a vector"):
        tritonq.quantized_dot(*a, *v)
    with pytest.raises(InvalidProblemError, match="b must be a QTensor, got Tensor"):
        tritonq.quantized_matmul(*a, x, a[1])
    with pytest.raises(InvalidProblemError, match="q must be a vector"):
        tritonq.dequantize_vector(*a)
