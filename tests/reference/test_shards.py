"""Pieces of a quantized matrix hold the bits of the whole, and cuts that would not are refused."""
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import tritonq
from tests.support.schemes import SCHEMES, every_code, hostile, same_bits, same_tensors
from tritonq import QTensor, Scheme, shards
from tritonq.errors import InvalidProblemError
from tritonq.formats import FORMATS

GEOMETRIES = [f"{name}.{granularity}" for name in ("int3", "uint4", "nf4", "fp8_e4m3", "int2")
              for granularity in ("tensor", "channel", "column", "g32", "g96", "g1000", "g7", "g1", "b3x5", "b4x32")]  # fmt: skip
EVERY = list(dict.fromkeys([*SCHEMES, *GEOMETRIES, "uint4.g4.dq", "int3.g8.dq", "int4.b2x4.dq", "int8.channel.dq", "int8.column.dq",
                            "uint4.g8.fz.dq", "nf4.g1.dq"]))  # fmt: skip


def places(scheme: Scheme, shape: tuple[int, int], axis: int) -> list[int]:
    every = shards.step(scheme, shape, axis)
    return [0, *(range(every, shape[axis], every) if every else ()), shape[axis]]


def part(w: torch.Tensor, axis: int, start: int, length: int) -> torch.Tensor:
    return w.narrow(axis, start, length).contiguous()


def one_nan(w: torch.Tensor) -> torch.Tensor:
    """Every NaN the same: which one a cast of fp16 codes gives depends on how many lie side by side."""
    return w.masked_fill(w.isnan(), float("nan"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scheme", EVERY)
def test_pieces_hold_the_bits_of_the_whole_and_make_it_again(scheme, dtype):
    for shape in ((12, 205), (33, 96)):  # short last groups and bytes; exact ones
        q = every_code(scheme, shape, dtype)
        whole = q.dequantize()
        for axis in (0, 1):
            at = places(q.scheme, shape, axis)
            at = at if len(at) < 9 else [*at[:3], *at[len(at) // 2 : len(at) // 2 + 2], *at[-3:]]
            pieces = []
            for start, stop in pairwise(at):
                piece = shards.narrow(q, axis, start, stop - start)
                assert piece.scheme == q.scheme and piece.dtype == dtype and piece.layout == "row"
                assert same_bits(one_nan(piece.dequantize()), one_nan(part(whole, axis, start, stop - start))), (axis, start, stop)
                pieces.append(piece)
            again = shards.concatenate(pieces, axis)
            mine, theirs = again.tensors(), q.tensors()
            assert again.shape == shape and list(mine) == list(theirs) and same_tensors(mine.values(), theirs.values())


@pytest.mark.parametrize("scheme", [*SCHEMES, *GEOMETRIES])
def test_every_cut_that_is_refused_would_lose_something(scheme):
    """Groups (of more than one element along the axis) or bytes lie across it; or dq blocks. All other places are legal."""
    scheme, shape = Scheme.parse(scheme), (9, 64)
    for axis in (0, 1):
        legal = set(places(scheme, shape, axis))
        group = scheme.group_shape(*shape)[axis] if scheme.granularity.kind in ("group", "block") else 1
        unit = scheme.format.unit if axis else 1
        for at in range(1, shape[axis]):
            assert (at in legal) == (at % group == 0 and at % unit == 0), (axis, at)


@pytest.mark.parametrize("scheme, shape, axis, every", [
    ("nf4.dq", (64, 4096), 0, 4),  # 64 scales a row: 4 rows make a block of 256
    ("nf4.dq", (64, 4096), 1, None),
    ("nf4.dq", (4, 4096), 1, 64),  # one block in all
    ("nf4.g16.dq", (8, 8192), 1, 4096),  # 512 scales a row
    ("nf4.g16.dq", (8, 8192), 0, 1),
    ("nf4.g16.dq", (1, 8000), 1, 4096),  # a single row: blocks lie along it
    ("int8.channel.dq", (1000, 64), 0, 256),
    ("int8.channel.dq", (1000, 64), 1, 1),
    ("int8.column.dq", (8, 1000), 0, 1),
    ("int8.column.dq", (8, 1000), 1, 256),
    ("int4.b2x8.dq", (64, 256), 0, 16),
    ("int3.g20", (8, 400), 1, 40),
    ("int4.g7", (8, 400), 1, 14),
    ("int4.b4x32", (8, 400), 0, 4),
    ("int4.g128", (8, 400), 1, 128),
    ("fp16", (8, 400), 1, 1),
])  # fmt: skip
def test_step(scheme, shape, axis, every):
    scheme = Scheme.parse(scheme)
    assert shards.step(scheme, shape, axis) == every
    q = every_code(str(scheme), shape, torch.float32)
    assert len(set(q.second_scale.tolist())) > 1 or q.second_scale.numel() == 1 if "dq" in scheme.options else True
    if every:
        for start, stop in pairwise(places(scheme, shape, axis)[:4]):
            assert same_bits(shards.narrow(q, axis, start, stop - start).dequantize(), part(q.dequantize(), axis, start, stop - start))


@pytest.mark.parametrize("scheme, shape, axis, legal", [
    ("int4.g128", (4096, 4096), 1, (1, 2, 4, 8, 16, 32)),
    ("int4.g128", (4096, 11008), 1, (1, 2, 43)),
    ("int4.g128", (4096, 11008), 0, (1, 2, 4, 8, 16, 32, 64)),
    ("int3.g64", (6, 192), 1, (1, 3)),
    ("int3.channel", (6, 48), 1, (1, 2, 3, 6)),
    ("int8", (6, 10), 1, (1, 2, 5, 10)),
    ("fp8_e4m3.b128x128", (384, 1), 0, (1, 3)),
    ("nf4", (64, 4096 + 32), 1, (1,)),
    ("nf4.dq", (64, 4096), 1, (1,)),
    ("int8", (0, 10), 0, (1,)),
])  # fmt: skip
def test_legal_parts(scheme, shape, axis, legal):
    scheme = Scheme.parse(scheme)
    assert shards.legal_parts(scheme, shape, axis) == legal
    for parts in range(1, 65):
        if parts in legal:
            shards.check_parts(scheme, shape, axis, parts)
        else:
            with pytest.raises(InvalidProblemError, match="Legal numbers of parts: " + ", ".join(map(str, legal))):
                shards.check_parts(scheme, shape, axis, parts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("scheme", [name for name in EVERY if "dq" in name])
def test_expanded_scales_decode_to_the_same_bits(scheme, dtype):
    for q in (tritonq.quantize(hostile((9, 700), dtype), scheme), every_code(scheme, (9, 700), dtype)):
        plain = shards.expand_scales(q)
        assert "dq" not in str(plain.scheme) and plain.scheme == shards.expanded_scheme(q.scheme)
        for to in (torch.bfloat16, torch.float32, torch.float64):
            assert same_bits(one_nan(plain.dequantize(to)), one_nan(q.dequantize(to)))
    assert shards.expand_scales(plain) is plain


def test_names_of_expanded_schemes():
    names = {"nf4.dq": "nf4.g64", "nf4.g32.dq": "nf4.g32", "int4.g64.dq.full": "int4.g64.full.s32", "uint4.fz.dq": "uint4.g128.fz.s32"}
    assert {name: str(shards.expanded_scheme(Scheme.parse(name))) for name in names} == names


def test_act_order_is_cut_along_n_only():
    w, g_idx = torch.randn(12, 96), torch.randperm(96) % 3
    q = tritonq.quantize(w, "int4.g32", g_idx=g_idx)
    top, rest = shards.narrow(q, 0, 0, 5), shards.narrow(q, 0, 5, 7)
    assert same_bits(torch.cat([top.dequantize(), rest.dequantize()]), q.dequantize())
    assert same_bits(shards.concatenate([top, rest]).dequantize(), q.dequantize())
    with pytest.raises(InvalidProblemError, match="act-order.*scattered"):
        shards.narrow(q, 1, 0, 32)
    with pytest.raises(InvalidProblemError, match=r"down: int4.g32 \[12, 96\].*3 equal.*along K: with act-order.*: 1; or cut along N"):
        shards.check_parts(q.scheme, q.shape, 1, 3, name="down", act_order=True)
    assert shards.legal_parts(q.scheme, q.shape, 1, act_order=True) == (1,) and shards.step(q.scheme, q.shape, 1, act_order=True) is None
    plain = tritonq.quantize(w, "int4.g32")
    for other in (plain, tritonq.quantize(w, "int4.g32", g_idx=torch.randperm(96) % 3)):
        with pytest.raises(InvalidProblemError, match="different orders|another than part 0"):
            shards.concatenate([q, other])


@pytest.mark.parametrize("layout", ["frag", "ksplit"])
def test_other_layouts_are_turned_back(layout):
    q = tritonq.quantize(torch.randn(64, 128), "nf4.g32")
    piece = shards.narrow(q.relayout(layout), 1, 32, 64)
    assert piece.layout == "row" and same_bits(piece.dequantize(), part(q.dequantize(), 1, 32, 64))
    assert same_bits(shards.concatenate([q.relayout(layout), q], 1).packed, torch.cat([q.packed, q.packed], 1))


def test_pieces_do_not_keep_the_whole_alive():
    q = tritonq.quantize(torch.randn(64, 128), "int4.g32")
    for axis in (0, 1):
        piece = shards.narrow(q, axis, 0, 32)
        assert piece.packed.is_contiguous() and piece.packed.untyped_storage().nbytes() == piece.packed.nbytes
        assert piece.scale.untyped_storage().nbytes() == piece.scale.nbytes


@pytest.mark.parametrize("scheme", [*FORMATS, "nvfp4", "nf4.dq", "int8.tensor", "int4.b4x32"])
def test_empty_pieces(scheme):
    q = tritonq.quantize(torch.randn(8, 256), scheme)
    for axis in (0, 1):
        empty = shards.narrow(q, axis, 0, 0)
        assert empty.dequantize().shape == ((0, 256), (8, 0))[axis]
        assert same_bits(shards.concatenate([empty, q, empty], axis).dequantize(), q.dequantize())
    nothing = tritonq.quantize(torch.randn(0, 256), scheme)
    assert shards.concatenate([shards.narrow(nothing, 0, 0, 0)] * 2).shape == (0, 256)


def q_of(scheme: str, n: int = 8, k: int = 512, seed: int = 0, dtype=torch.float32) -> QTensor:
    return tritonq.quantize(torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).to(dtype), scheme)


@pytest.mark.parametrize("call, text", [
    (lambda: shards.narrow(q_of("nf4"), 1, 0, 96), r"nf4 \[8, 512\] is cut along K at multiples of 64, not at 96: groups of 64 columns"),
    (lambda: shards.narrow(q_of("int3"), 1, 0, 100), r"multiples of 128, not at 100"),
    (lambda: shards.narrow(q_of("int3.channel"), 1, 4, 100), r"multiples of 8, not at 4: 8 codes of 3 bits fill whole bytes"),
    (lambda: shards.narrow(q_of("int4.g5"), 1, 5, 10), r"multiples of 10, not at 5: groups of 5 columns, 2 codes to whole bytes"),
    (lambda: shards.narrow(q_of("nf4.g8.dq"), 1, 0, 256), r"along K nowhere, not at 256: dq scales 256 neighbouring scales of 8 x 64"),
    (lambda: shards.narrow(q_of("int4.b4x32"), 0, 0, 6), r"along N at multiples of 4, not at 6: groups of 4 rows"),
    (lambda: shards.narrow(q_of("nf4"), 0, 5, 4), r"part of 4 from 5 on lies outside of N = 8"),
    (lambda: shards.narrow(q_of("nf4"), 0, -1, 4), r"outside"),
    (lambda: shards.narrow(q_of("nf4"), 0, 0, 2.0), r"outside"),
    (lambda: shards.narrow(q_of("nf4"), 2, 0, 4), r"axis must be 0 \(N\) or 1 \(K\), got 2"),
    (lambda: shards.narrow(torch.zeros(2, 2), 0, 0, 1), r"one of a QTensor, got Tensor"),
    (lambda: shards.concatenate([]), r"at least one part"),
    (lambda: shards.concatenate([q_of("nf4"), q_of("int8")]), r"one scheme to be joined along N; part 0 has nf4, part 1 int8"),
    (lambda: shards.concatenate([q_of("nf4"), q_of("nf4", dtype=torch.float16)]), r"one dtype"),
    (lambda: shards.concatenate([q_of("nf4"), q_of("nf4", k=256)]), r"one K"),
    (lambda: shards.concatenate([q_of("nf4"), q_of("nf4", n=4)], 1), r"one N"),
    (lambda: shards.concatenate([q_of("nf4", k=96), q_of("nf4", k=64)], 1), r"at multiples of 64, not at 96"),
    (lambda: shards.concatenate([q_of("int8.tensor"), q_of("int8.tensor", seed=1)]), r"share one stored_scale, and part 1 has another"),
    (lambda: shards.concatenate([q_of("int8"), q_of("int8", seed=1)], 1), r"share one stored_scale"),
    (lambda: shards.concatenate([q_of("nvfp4"), q_of("nvfp4", seed=1)]), r"share one second_scale"),
    (lambda: shards.concatenate([q_of("nf4.dq"), q_of("nf4.dq", seed=1)]), r"share one (second_scale|scale_offset)"),
    (lambda: shards.check_parts(Scheme.parse("nf4"), (64, 192), 1, 2, name="down_proj.weight"),
     r"down_proj.weight: nf4 \[64, 192\] cannot be cut into 2 equal parts along K: parts of 96 are no multiple of 64 "
     r"\(groups of 64 columns\)\. Legal numbers of parts: 1, 3; or take a smaller group size"),
    (lambda: shards.check_parts(Scheme.parse("nf4.dq"), (64, 4096), 1, 2),
     r"dq scales 256 neighbouring scales of 64 x 64 together. Legal numbers of parts: 1; or give each scale .*expand_scales"),
    (lambda: shards.check_parts(Scheme.parse("int8"), (63, 64), 0, 2),
     r"63 is no multiple of 2\. Legal numbers of parts: 1, 3, 7, 9, 21, 63"),
    (lambda: shards.check_parts(Scheme.parse("FP8_BLOCK"), (192, 512), 0, 3),
     r"no multiple of 128 \(groups of 128 rows\).*: 1; or cut along K"),
    (lambda: shards.check_parts(Scheme.parse("int8"), (64, 64), 0, 0), r"whole number >= 1, got 0"),
    (lambda: shards.check_parts(Scheme.parse("int8"), (64, 64), 0, True), r"whole number >= 1, got True"),
])  # fmt: skip
def test_refusals(call, text):
    with pytest.raises(InvalidProblemError, match=text):
        call()


def test_parts_that_agree_on_what_they_share_are_joined():
    q = q_of("nvfp4")
    other = replace(q_of("nvfp4", seed=1), second_scale=q.second_scale.clone())
    assert same_bits(shards.concatenate([q, other]).dequantize(), torch.cat([q.dequantize(), other.dequantize()]))


@pytest.mark.parametrize("scheme", ["int3.g24", "nf4.dq", "nvfp4", "uint4.g16.fz"])
def test_a_product_of_pieces_is_that_of_the_whole(scheme):
    q, x = q_of(scheme, 128, 768), torch.randn(3, 768)
    whole = tritonq.matmul(x, q)
    rows = torch.cat([tritonq.matmul(x, shards.narrow(q, 0, i, 64)) for i in (0, 64)], -1)
    torch.testing.assert_close(rows, whole, rtol=1e-6, atol=1e-5)
    q = shards.expand_scales(q)
    columns = sum(tritonq.matmul(x[:, i : i + 384].contiguous(), shards.narrow(q, 1, i, 384)) for i in (0, 384))
    torch.testing.assert_close(columns, whole, rtol=1e-5, atol=1e-4)
