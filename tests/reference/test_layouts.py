"""Layouts: lossless both ways for every code, size and granularity; the same matrix in each; the documented order of bytes."""
import dataclasses
import pickle

import pytest
import torch

import tritonq
from tests.support.schemes import hostile, same_bits
from tritonq import QTensor
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.formats import FORMATS
from tritonq.layouts import by_group, byte_planes, frag, frag_codes
from tritonq.layouts.byte_planes import BytePlanes

BOOKS = ("nf4", "fp4_bnb", "fp4_e2m1")
SCHEMES = ("int4", "int4.g32", "int4.g48.full", "int4.channel", "int4.tensor", "int4.b3x5", "int4.b64x128.s16", "int4.dq", "int4.g7.s32",
           "int4.sbf16", "int4.se8m0", "int4.se4m3", "uint4", "uint4.g32.s32", "uint4.fz", "uint4.g64.fz.s32", "uint4.fz.se8m0",
           "uint4.channel.fz", "uint4.dq", "uint4.tensor", "nf4", "nf4.dq", "nf4.g1", "fp4_bnb", "fp4_e2m1.sbf16", "mxfp4",
           "nvfp4", "int8", "int8.g48.s16", "int8.tensor", "uint8", "uint8.g32.fz", "fp8_e4m3", "fp8_e4m3.g32.dq", "fp8_e4m3.b3x5.s16",
           "fp8_e5m2.g96", "fp8_e5m2.se8m0", "mxfp8", "int2", "int2.g7", "uint2.g32.fz", "int3", "uint3.g24", "uint3.tensor",
           "int3.dq")  # fmt: skip
SIZES = ((1, 1), (63, 128), (65, 129), (130, 300), (0, 64), (3, 0))
DTYPES = (torch.float16, torch.bfloat16, torch.float64)


def random_q(scheme: str, shape: tuple[int, int], dtype: torch.dtype = torch.float16) -> QTensor:
    """Quantized data whose codes are then replaced by uniformly random ones."""
    q = tritonq.quantize(hostile(shape, dtype), scheme)
    packed = torch.randint(0, 256, q.packed.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    if shape[1] and shape[1] * q.scheme.format.bits % 8:
        packed[:, -1] &= (1 << shape[1] * q.scheme.format.bits % 8) - 1  # the padding of the last byte is zero
    return dataclasses.replace(q, packed=packed)


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("scheme, dtype", [(scheme, DTYPES[i % 3]) for i, scheme in enumerate(SCHEMES)])
def test_there_and_back_is_the_same_bytes(scheme, dtype, shape):
    q = random_q(scheme, shape, dtype)
    there = q.relayout("frag")
    back = there.relayout("row")
    assert there.layout == "frag" and back.layout == "row" and there.shape == q.shape
    for f in dataclasses.fields(QTensor):
        was, is_now = getattr(q, f.name), getattr(back, f.name)
        assert same_bits(is_now, was) if isinstance(was, torch.Tensor) else is_now == was, f.name
    assert same_bits(there.codes(), q.codes()) and torch.equal(there.dequantize().isnan(), q.dequantize().isnan())
    assert same_bits(there.dequantize().nan_to_num(), q.dequantize().nan_to_num())
    assert q.scale is None or same_bits(there.scale, q.scale) and same_bits(there.group_scale, q.group_scale)
    assert all(same_bits(there.tensors()[name], tensor) for name, tensor in q.tensors().items())
    assert there.relayout("frag") is there and q.relayout("row") is q


def test_large_matrices_go_in_panels(monkeypatch):
    q = random_q("uint4", (500, 260))
    whole = q.relayout("frag")
    monkeypatch.setattr(by_group, "_CHUNK", 64 * 384 * 3)
    assert len(frag_codes.tile_panels(500, 384)) == 3 and same_bits(q.relayout("frag").packed, whole.packed)
    assert same_bits(whole.relayout("row").packed, q.packed)


def brute_force(q: QTensor) -> torch.Tensor:
    """``packed`` bit by bit from the formulas in docs/layouts.md."""
    (n, k), fmt = q.shape, q.scheme.format
    codes = (q.codes().int() & (1 << fmt.bits) - 1).tolist()
    if fmt.is_integer:
        stored = [c ^ (1 << fmt.bits - 1 if fmt.signed else 0) for c in range(1 << fmt.bits)]
    else:
        stored = list(RELABEL[fmt.name] if fmt.bits == 4 else range(256))
    planes = {2: [(2, 0)], 3: [(2, 0), (1, 2)], 4: [(4, 0)], 8: [(8, 0)]}[fmt.bits]  # width, lowest bit
    multiple = 256 if fmt.bits == 3 else 128
    wide = -(-k // multiple) * multiple
    out = torch.zeros(-(-n // 64), wide * 2 * fmt.bits, dtype=torch.int64)
    for row in range(-(-n // 64) * 64):
        a, warp, h, g = row // 64, row // 16 % 4, row // 8 % 2, row % 8
        for column in range(wide):
            value = stored[codes[row][column]] if row < n and column < k else 0  # padding: of columns it meets zeros of x
            first = 0
            for bits, low in planes:
                per_word, columns = 8 // bits, 256 // bits
                b, w, u, t, e = column // columns, column % columns // (8 * per_word), column // 8 % per_word, column // 2 % 4, column % 2
                if bits == 1:
                    place = u % 2 + 2 * h + 4 * (u // 2) + 16 * e
                else:
                    place = h + 2 * u + 2 * per_word * e if fmt.is_integer else 2 * h + e if bits == 8 else h + 4 * u + 2 * e
                    place *= bits
                out[a, first + b * 512 + ((warp * 8 + g) * 4 + t) * 4 + w] |= (value >> low & (1 << bits) - 1) << place
                first += wide * 2 * bits
    return torch.where(out >= 2**31, out - 2**32, out).int()


@pytest.mark.parametrize("scheme", ["int4", "uint4", "nf4", "int8", "uint8", "fp8_e4m3", "int2", "uint2", "int3", "uint3"])
def test_the_order_is_the_documented_one(scheme):
    q = random_q(scheme, (70, 130))
    assert torch.equal(q.relayout("frag").packed, brute_force(q))


def test_scales_and_zero_points_by_group_then_row():
    q = tritonq.quantize(torch.randn(100, 200).half(), "uint4.g64")
    there = q.relayout("frag")
    assert there.stored_scale.shape == there.zero_point.shape == (4, 64) and there.stored_scale.dtype == torch.int32
    for row, group in ((0, 0), (37, 2), (99, 3), (24, 1)):
        at, half = row // 16 * 8 + row % 8, 16 * (row // 8 % 2)
        assert int(there.stored_scale[group, at]) >> half & 0xFFFF == int(q.stored_scale.view(torch.int16)[row, group]) & 0xFFFF
        assert int(there.zero_point[group, at]) >> half & 0xFFFF == int(q.zero_point[row, group])
    assert int(there.stored_scale[:, 52:].abs().sum()) == 0, "rows that do not exist have scale 0"
    wide = tritonq.quantize(torch.randn(100, 200), "nf4").relayout("frag")
    assert wide.stored_scale.dtype == torch.float32 and torch.equal(wide.stored_scale[:, :100].T, wide.scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BOOKS)
def test_byte_planes_give_the_levels(name, dtype):
    planes, levels = byte_planes.byte_planes(FORMATS[name], dtype), FORMATS[name].levels.double()
    assert sorted(planes.relabel) == list(range(16)) and 1 <= planes.factor < 2
    got = torch.tensor([decode(planes, nibble) for nibble in planes.relabel]).to(torch.int16).view(dtype).double() / planes.factor
    wrong = torch.where(levels == 0, got.abs(), ((got - levels) / levels).abs())
    assert float(wrong.max()) == planes.error <= torch.finfo(dtype).eps / 2
    assert planes.relabel == byte_planes.byte_planes(FORMATS[name], torch.float16).relabel, "one stored order for both dtypes"


def decode(planes: BytePlanes, nibble: int) -> int:
    """The 16-bit pattern of a stored nibble, by the definition of prmt, as a signed number."""

    def prmt(table: bytes, x: int) -> int:
        return table[x] if x < 8 else 255 * (table[x - 8] >> 7)

    table = b"".join(word.to_bytes(4, "little", signed=True) for word in planes.words)
    low, high = (prmt(table[i : i + 8], nibble) ^ prmt(table[i + 8 : i + 16], 15 - nibble) for i in (0, 16))
    return int.from_bytes(bytes((low, high)), "little", signed=True)


def test_the_stored_nibbles_of_code_books_do_not_change():
    """They are what packed tensors in memory hold; another choice of factors would change them."""
    assert {name: byte_planes.byte_planes(FORMATS[name], torch.float16).relabel for name in BOOKS} == RELABEL


RELABEL = {
    "nf4": (7, 6, 5, 13, 14, 15, 4, 12, 3, 1, 2, 0, 9, 8, 10, 11),
    "fp4_bnb": (4, 2, 0, 10, 3, 8, 1, 11, 9, 6, 12, 14, 7, 5, 13, 15),
    "fp4_e2m1": (4, 0, 2, 10, 8, 1, 3, 11, 9, 12, 6, 14, 5, 13, 7, 15),
}


@pytest.mark.parametrize("scheme, reason", [
    ("bf16", "has 16"), ("nf4.column", "along columns"), ("int4.s64", "float64"), ("fp16", "2, 3, 4 or 8 bits"),
])  # fmt: skip
def test_refusals(scheme, reason):
    q = tritonq.quantize(torch.randn(8, 64), scheme)
    with pytest.raises(UnsupportedError, match=reason):
        q.relayout("frag")


def test_bad_layouts_and_tensors():
    q = tritonq.quantize(torch.randn(8, 64), "int4")
    with pytest.raises(UnsupportedError, match="unknown layout 'fragment'; known layouts: row, frag"):
        q.relayout("fragment")
    with pytest.raises(InvalidProblemError, match="a layout is a name"):
        q.relayout(3)
    with pytest.raises(InvalidProblemError, match="in layout frag needs packed"):
        dataclasses.replace(q, layout="frag")
    with pytest.raises(InvalidProblemError, match="needs expanded_scale = None"):
        dataclasses.replace(q, expanded_scale=torch.zeros(1))


def test_bytes_are_those_in_memory():
    q = tritonq.quantize(torch.randn(128, 256).half(), "int4.g128")
    assert q.relayout("frag").bits_per_weight == q.bits_per_weight == 4.125
    small = tritonq.quantize(torch.randn(1, 1).half(), "int4.g128").relayout("frag")
    assert small.nbytes == 64 * 128 // 2 + 128 * 2 and "layout=frag" in repr(small)
    double = tritonq.quantize(torch.randn(128, 256), "nf4.dq")
    assert double.relayout("frag").nbytes == double.nbytes + 4 * 128 * 4
    assert same_bits(pickle.loads(pickle.dumps(double.relayout("frag"))).packed, double.relayout("frag").packed)


def test_files_hold_row(tmp_path):
    q = tritonq.quantize(torch.randn(70, 130), "nf4.dq")
    tritonq.save({"w": q.relayout("frag")}, tmp_path / "w.safetensors")
    again = tritonq.load(tmp_path / "w.safetensors")["w"]
    assert again.layout == "row" and same_bits(again.packed, q.packed) and same_bits(again.stored_scale, q.stored_scale)


def test_the_reference_takes_every_layout():
    x, q = torch.randn(3, 130), tritonq.quantize(torch.randn(70, 130), "uint4.g32")
    assert same_bits(tritonq.matmul(x, q.relayout("frag")), tritonq.matmul(x, q))


@pytest.mark.parametrize("stored", [torch.float8_e8m0fnu, torch.float8_e4m3fn], ids=str)
def test_eight_bit_scales_keep_their_value(stored):
    """Every code but NaN, which no QTensor may hold; the least e8m0 is a subnormal of bfloat16."""
    codes = torch.arange(255 if stored == torch.float8_e8m0fnu else 127, dtype=torch.uint8).view(stored)
    loaded = frag._to_pattern(codes).view(frag.loaded_dtype(stored))
    assert torch.equal(loaded.float(), codes.float()) and bool(loaded.float().isfinite().all())
    assert same_bits(frag._from_pattern(loaded.view(torch.int16), stored), codes)
