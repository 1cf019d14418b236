"""Layout ``ksplit``: lossless both ways for every code, size and granularity; the documented order of bytes; what it refuses."""
import dataclasses

import pytest
import torch

import tritonq
from tests.support.schemes import same_bits
from tests.support.weights import weight
from tritonq import QTensor
from tritonq.errors import UnsupportedError
from tritonq.layouts import by_group

SCHEMES = ("int4", "int4.g48", "int4.channel", "int4.tensor", "int4.b3x5", "int4.dq", "int4.g7.s32", "int4.se8m0", "int4.se4m3", "uint4",
           "uint4.fz", "uint4.fz.se8m0", "uint4.b64x128", "nf4", "nf4.dq", "nf4.g1", "fp4_bnb", "fp4_e2m1.sbf16", "mxfp4", "nvfp4", "int8",
           "uint8.g32", "uint8.fz", "fp8_e4m3", "fp8_e5m2", "mxfp8", "int3", "int3.g7", "uint3", "uint3.g48.fz", "int2", "uint2",
           "uint2.fz")  # fmt: skip
SIZES = ((1, 1), (63, 256), (65, 257), (130, 300), (0, 64), (3, 0))
DTYPES = (torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("scheme, dtype", [(scheme, DTYPES[i % 3]) for i, scheme in enumerate(SCHEMES)])
def test_there_and_back_is_the_same_bytes(scheme, dtype, shape):
    q = weight(scheme, *shape, dtype)
    there = q.relayout("ksplit")
    back = there.relayout("row")
    assert there.layout == "ksplit" and back.layout == "row" and there.shape == q.shape
    for f in dataclasses.fields(QTensor):
        was, is_now = getattr(q, f.name), getattr(back, f.name)
        assert same_bits(is_now, was) if isinstance(was, torch.Tensor) else is_now == was, f.name
    assert same_bits(there.codes(), q.codes()) and same_bits(there.dequantize(), q.dequantize())
    assert there.relayout("ksplit") is there


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_code_at_every_place_comes_back(bits):
    """256 columns, each with every code: NaN codes of fp8 too."""
    fmt = {2: "int2", 3: "uint3", 4: "nf4", 8: "fp8_e4m3"}[bits]
    codes = (torch.arange(256)[None] + torch.arange(2**bits)[:, None]) % 2**bits
    q = dataclasses.replace(weight(f"{fmt}.channel", 2**bits, 256, torch.float16), packed=tritonq.pack(codes, bits))
    assert same_bits(q.relayout("ksplit").relayout("row").packed, q.packed)


def test_from_frag_and_back():
    q = weight("uint4.g48", 70, 130, torch.float16)
    assert same_bits(q.relayout("frag").relayout("ksplit").packed, q.relayout("ksplit").packed)
    assert same_bits(q.relayout("ksplit").relayout("frag").packed, q.relayout("frag").packed)


def test_large_matrices_go_in_panels(monkeypatch):
    q = weight("uint3", 50, 260, torch.float16)
    whole = q.relayout("ksplit")
    monkeypatch.setattr(by_group, "_CHUNK", 512 * 20)
    assert len(by_group.panels(q.shape[0], 512)) == 3 and same_bits(q.relayout("ksplit").packed, whole.packed)
    assert same_bits(whole.relayout("row").packed, q.packed)


def brute_force(q: QTensor) -> torch.Tensor:
    """``packed`` word by word from the formula in docs/layouts.md."""
    bits, (n, k) = q.scheme.format.bits, q.shape
    codes = q.codes().int() + (2 ** (bits - 1) if q.scheme.format.signed else 0)
    wide = -(-k // 256) * 256
    out = torch.zeros(n, wide * bits // 16, dtype=torch.int64)
    for row in range(n):
        for column in range(k):
            code, block, c = int(codes[row, column]), column // 256 * 16 * bits, column % 256
            if bits == 3:
                out[row, block + 16 * (c // 128) + c % 16] |= (code & 3) << (2 * (c % 128 // 16))
                out[row, block + 32 + c % 16] |= (code >> 2) << (c // 16)
            else:
                out[row, block + c % (16 * bits)] |= code << (bits * (c // (16 * bits)))
    return torch.where(out >= 2**15, out - 2**16, out).to(torch.int16)


@pytest.mark.parametrize("scheme", ["int2", "uint3", "int3", "int4", "nf4", "uint8", "int8", "fp8_e5m2"])
def test_the_order_is_the_documented_one(scheme):
    q = weight(scheme, 5, 700, torch.float16)
    assert torch.equal(q.relayout("ksplit").packed, brute_force(q))


def test_scales_and_zero_points_by_group_then_row():
    q = weight("uint4.g64", 100, 200, torch.float16)
    there = q.relayout("ksplit")
    assert there.stored_scale.shape == there.zero_point.shape == (4, 128)
    assert there.stored_scale.dtype == torch.float16 and there.zero_point.dtype == torch.uint8
    assert torch.equal(there.stored_scale[:, :100].T, q.stored_scale) and torch.equal(there.zero_point[:, :100].T, q.zero_point)
    assert not there.stored_scale[:, 100:].any() and not there.zero_point[:, 100:].any()
    blocks = weight("int4.b3x5", 7, 300, torch.float16)
    there = blocks.relayout("ksplit").stored_scale
    assert there.shape == (103, 64), "512 padded columns"
    assert torch.equal(there[:60, :7].T, blocks.stored_scale.repeat_interleave(3, 0)[:7]) and not there[60:].any()


@pytest.mark.parametrize("scheme, reason", [("nf4.column", "along columns"), ("int4.s64", "float64"), ("fp16", "is a cast to 16 bits")])
def test_refusals(scheme, reason):
    q = tritonq.quantize(torch.randn(8, 64), scheme)
    with pytest.raises(UnsupportedError, match=reason):
        q.relayout("ksplit")


def test_bytes_are_those_in_memory():
    q = weight("int3.g128", 128, 512, torch.float16)
    assert q.relayout("ksplit").bits_per_weight == q.bits_per_weight == 3.125
    small = weight("int4.g128", 1, 1, torch.float16).relayout("ksplit")
    assert small.nbytes == 256 // 2 + 64 * 2 and "layout=ksplit" in repr(small)
