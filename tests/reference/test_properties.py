"""Properties that hold for every scheme, on examples that hypothesis makes up (the same ones every time)."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tritonq
from tests.support.schemes import SCHEMES, hostile, same_bits
from tritonq import Scheme, pack, unpack
from tritonq.formats import FORMATS

repeatable = settings(derandomize=True, max_examples=15, deadline=None, database=None)
ordinary = st.floats(-1000, 1000, width=32).map(lambda v: v if abs(v) > 1e-3 else 0.0)
matrices = hnp.arrays("float32", st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=ordinary).map(torch.from_numpy)
anything = hnp.arrays("float32", st.tuples(st.integers(0, 5), st.integers(0, 40)), elements=st.floats(width=32)).map(torch.from_numpy)


def widest_gap(fmt) -> float:
    levels = fmt.levels[fmt.levels.isfinite()].unique()
    reachable = levels[levels.abs() <= (fmt.max_abs if not fmt.is_integer else levels.abs().max())]
    return float(reachable.diff().max())


def per_element(values: torch.Tensor, q) -> torch.Tensor:
    rows, columns = q.scheme.group_shape(*q.shape)
    n, k = q.shape
    return values.double().repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]


CLOSE = [s for s in SCHEMES if "dq" not in s and Scheme.parse(s).has_scale and not Scheme.parse(s).recipe]


@pytest.mark.parametrize("scheme", CLOSE)
@repeatable
@given(x=matrices)
def test_error_is_at_most_half_a_gap(scheme, x):
    """|x - x_hat| <= half the widest gap between levels times the scale, where the scale reaches x."""
    q = tritonq.quantize(x, scheme)
    scale = per_element(q.scale.to(torch.float32) if q.scale.dtype.itemsize == 1 else q.scale, q)
    error = (q.dequantize(torch.float64) - x.double()).abs()
    fmt = q.scheme.format
    slack = 1 + 2.0**-20
    if fmt.is_integer:
        low, high = q.scheme.code_range
        zero = 0 if q.zero_point is None else per_element(q.zero_point, q)
        ends = (zero + scale * low, zero + scale * high) if q.scheme.float_zero else (scale * (low - zero), scale * (high - zero))
    else:
        ends = (-scale * fmt.max_abs, scale * fmt.max_abs)
    outside = torch.maximum(ends[0] - x, x - ends[1]).clamp(min=0)
    bound = torch.maximum(scale * widest_gap(fmt) / 2, outside) * slack + (x.abs() + scale * 16) * 2.0**-22
    assert (error <= bound).all(), (error - bound).max()


@pytest.mark.parametrize("scheme", SCHEMES)
@repeatable
@given(x=anything)
def test_nothing_decodes_to_nan(scheme, x):
    q = tritonq.quantize(x, scheme)
    for dtype in (torch.float32, torch.float64):
        decoded = q.dequantize(dtype)
        assert decoded.shape == x.shape and not decoded.isnan().any()
    low, high = q.scheme.format.code_range
    assert q.codes().numel() == 0 or (low <= int(q.codes().min()) and int(q.codes().max()) <= high)


ON_GRID = ("int8", "int4.g16", "int3.g8", "int2.g8", "uint8", "uint4.g16", "nf4", "fp4_e2m1", "fp8_e4m3", "fp16", "mxfp4", "mxfp8")


@pytest.mark.parametrize("scheme", ON_GRID)
@repeatable
@given(x=matrices)
def test_quantizing_twice_changes_nothing(scheme, x):
    """Decoded values are on the grid: their codes under the same scale are the codes they came from."""
    first = tritonq.quantize(x, scheme)
    decoded = first.dequantize(torch.float64)
    if first.stored_scale is None:
        assert torch.equal(tritonq.quantize(decoded, scheme).packed, first.packed)
        return
    fmt = first.scheme.format
    scale = per_element(first.group_scale, first)
    level = decoded / torch.where(scale == 0, 1.0, scale)
    if fmt.is_integer:
        zero = 0 if first.zero_point is None else per_element(first.zero_point, first)
        assert torch.equal(level.round() + zero, first.codes().double())
    else:
        near = level.float()
        assert torch.equal(fmt.levels[fmt.encode_ref(near).long()], near)


ONE_GROUP = ("int4.tensor", "uint4.tensor", "uint4.tensor.fz", "nf4.tensor", "fp4_bnb.tensor", "fp8_e5m2.tensor", "fp4_e2m1.tensor", "bf16")


@pytest.mark.parametrize("scheme", ONE_GROUP)
@repeatable
@given(x=matrices)
def test_order_is_kept(scheme, x):
    """Within a group, a larger value never decodes to a smaller one."""
    flat = x.flatten().sort().values[None]
    assert (tritonq.quantize(flat, scheme).dequantize().diff() >= 0).all()


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s not in ("fp16", "bf16")])
@repeatable
@given(x=matrices)
def test_zero_stays_zero(scheme, x):
    """Zero decodes to exactly 0 wherever zero is representable: everywhere but with a float zero point."""
    x[:, ::3] = 0.0
    q = tritonq.quantize(x, scheme)
    if q.scheme.float_zero:
        return
    assert (q.dequantize()[:, ::3] == 0).all()


@pytest.mark.parametrize("scheme", ["int4.g16", "int8", "nf4", "fp8_e4m3", "mxfp4", "nvfp4", "fp16"])
@repeatable
@given(x=matrices)
def test_symmetric_formats_negate(scheme, x):
    """x and -x share scales; where no tie rule or extra negative code interferes, values are mirrored."""
    a, b = tritonq.quantize(x, scheme), tritonq.quantize(-x, scheme)
    if a.stored_scale is not None:
        assert torch.equal(a.group_scale, b.group_scale)
    if scheme != "nf4":  # its negative levels are not the mirror of its positive ones
        assert torch.equal(a.dequantize(), -b.dequantize())


@repeatable
@given(data=st.data(), bits=st.sampled_from([2, 3, 4, 8]), order=st.sampled_from(["low_first", "high_first", "gptq_int32"]))
def test_unpack_undoes_pack(data, bits, order):
    length = data.draw(st.integers(0, 70))
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=length, max_size=length)), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits, order), bits, length, order), codes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_strides_do_not_matter(scheme):
    """Transposed, strided, expanded and offset inputs quantize like their contiguous copies, and stay as they were."""
    base = hostile((40, 60), torch.float32)
    views = [base.T, base[::2, ::3], base[5:, 7:], base[:1].expand(6, 60), base[:, :1].expand(40, 20), base.flip(0)]
    for view in views:
        before = view.clone()
        a, b = tritonq.quantize(view, scheme).tensors(), tritonq.quantize(view.contiguous(), scheme).tensors()
        assert a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)
        assert torch.equal(view.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (5, 0)])
def test_empty(scheme, shape):
    q = tritonq.quantize(torch.empty(shape), scheme)
    assert q.shape == shape and q.codes().shape == shape and q.dequantize().shape == shape
    assert q.packed.shape == (shape[0], FORMATS[q.scheme.format.name].row_bytes(shape[1]))
    y = tritonq.matmul(torch.empty(3, shape[1]), q)
    assert y.shape == (3, shape[0]) and (y == 0).all()
