"""QTensor: what it holds, what it refuses, and that its tensors make it again."""
import dataclasses
import pickle

import pytest
import torch

import tritonq
from tests.support.schemes import SCHEMES, hostile, same_bits, same_tensors
from tritonq import QTensor, Scheme
from tritonq.errors import InvalidProblemError, UnsupportedError


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_tensors_make_it_again(scheme, dtype):
    q = tritonq.quantize(hostile((9, 45), dtype), scheme)
    again = QTensor.from_tensors(str(q.scheme), list(q.shape), q.dtype, q.tensors())
    assert again.scheme == q.scheme and again.shape == q.shape == (9, 45) and again.dtype == dtype
    assert same_bits(again.dequantize(), q.dequantize()) and q.dequantize().dtype == dtype
    assert same_bits(pickle.loads(pickle.dumps(q)).dequantize(), q.dequantize())
    assert q.nbytes == sum(t.nbytes for t in q.tensors().values())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_are_what_is_packed(scheme):
    q = tritonq.quantize(hostile((4, 45), torch.float32), scheme)
    fmt, codes = q.scheme.format, q.codes()
    assert codes.shape == (4, 45)
    assert codes.dtype == (torch.int8 if fmt.signed else torch.int32 if fmt.bits == 16 else torch.uint8)
    if fmt.bits <= 8:
        assert torch.equal(tritonq.pack(codes, fmt.bits), q.packed)


def test_frozen_and_no_tensor():
    q = tritonq.quantize(torch.randn(2, 64), "int4")
    with pytest.raises(dataclasses.FrozenInstanceError):
        q.shape = (1, 1)
    with pytest.raises(TypeError):
        q + 1
    assert not isinstance(q, torch.Tensor) and "int4" in repr(q) and "(2, 64)" in repr(q)


def test_to_and_relayout():
    q = tritonq.quantize(torch.randn(2, 64), "int4.dq")
    assert q.to("cpu") is q and q.relayout("row") is q
    moved = q.to("meta")
    assert moved.device.type == "meta" and all(t.device.type == "meta" for t in moved.tensors().values())


def test_double_quantized_scales_are_expanded():
    w = torch.randn(64, 512)
    q, plain = tritonq.quantize(w, "nf4.dq"), tritonq.quantize(w, "nf4")
    assert q.stored_scale.dtype == torch.uint8 and q.scale.dtype == torch.float32
    assert q.second_scale.shape == (2,) and torch.equal(q.packed, plain.packed), "codes come from the plain scale"
    assert (q.scale - plain.scale).abs().max() < 0.05 and not torch.equal(q.scale, plain.scale)


SCHEME, SHAPE = "uint4.g32.fz", (4, 64)
GOOD = tritonq.quantize(torch.randn(SHAPE), SCHEME).tensors()
STRIDED = {name: tensor.repeat_interleave(2, 1)[:, ::2] for name, tensor in GOOD.items()}
SMALL = tritonq.quantize(torch.ones(1, 1), "int4")
NAN, INF = float("nan"), float("inf")


def build(scheme=SCHEME, shape=SHAPE, dtype=torch.float32, **changed):
    return QTensor.from_tensors(scheme, shape, dtype, {**GOOD, **changed})


def without(name: str) -> dict:
    return {key: value for key, value in GOOD.items() if key != name}


NVFP4 = tritonq.quantize(torch.randn(2, 32), "nvfp4").tensors()
REFUSED = [
    (lambda: build(scale=GOOD["scale"] * NAN), "scale holds NaN or Inf, which would decode to NaN; scales and zero points must be finite"),
    (lambda: build(scale=GOOD["scale"] * INF), "scale holds NaN or Inf"),
    (lambda: build(zero_point=GOOD["zero_point"] * NAN), "zero_point holds NaN or Inf"),
    (lambda: QTensor.from_tensors("nvfp4", (2, 32), torch.float32, {**NVFP4, "second_scale": torch.tensor(NAN)}), "second_scale holds NaN"),
    (lambda: QTensor.from_tensors("mxfp4", (1, 32), torch.float32, {
        "packed": torch.zeros(1, 16, dtype=torch.uint8), "scale": torch.full((1, 1), 255, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    }), "scale holds NaN or Inf"),
    (lambda: QTensor.from_codes("uint4.g2", torch.ones(1, 4).int(), torch.ones(1, 2), torch.tensor([[3, 17]], dtype=torch.uint8),
                                dtype=torch.float32), "zero points of uint4.g2 must be in 0..16, got 17"),
    (lambda: QTensor.from_codes("int8", torch.tensor([[2**63]], dtype=torch.uint64), torch.ones(1, 1), dtype=torch.float32),
     "code 9223372036854775808 fits no format; codes have 16 bits at most"),
    (lambda: QTensor.from_flat(5, SMALL.form), "from_flat takes a list of tensors, what flat() gives; got int 5"),
    (lambda: QTensor.from_flat(SMALL.flat(), []), "then maybe ' act_order'; got []"),
    (lambda: tritonq.QStack.from_flat(5, SMALL.form), "from_flat takes a list of tensors, what flat() gives; got int 5"),
    (lambda: build(scheme="int9"), "unknown format 'int9'"),
    (lambda: build(scheme="uint4.g16.fz"), "needs stored_scale = ((4, 4), torch.float32), got ((4, 2), torch.float32)"),
    (lambda: build(scheme="uint4.g32"), "needs zero_point = ((4, 2), torch.uint8), got ((4, 2), torch.float32)"),
    (lambda: build(scheme="int4.g32"), "needs zero_point = None, got ((4, 2), torch.float32)"),
    (lambda: build(shape=(4, 66)), "needs packed = ((4, 33), torch.uint8), got ((4, 32), torch.uint8)"),
    (lambda: build(shape=(4,)), "shape must be two non-negative integers (N, K), got (4,)"),
    (lambda: build(shape=(4, 64, 1)), "shape must be two non-negative integers"),
    (lambda: build(shape=(4.5, 64)), "got (4.5, 64)"),
    (lambda: build(shape=(-4, 64)), "got (-4, 64)"),
    (lambda: build(shape="4x64"), "got '4x64'"),
    (lambda: build(shape=4), "got 4"),
    (lambda: build(dtype=torch.int8), "dtype must be float16, bfloat16, float32 or float64, got torch.int8"),
    (lambda: build(dtype="float32"), "dtype must be float16, bfloat16, float32 or float64, got float32"),
    (lambda: build(dtype=torch.float16), "needs stored_scale = ((4, 2), torch.float16), got ((4, 2), torch.float32)"),
    (lambda: build(packed=GOOD["packed"].int()), "needs packed = ((4, 32), torch.uint8), got ((4, 32), torch.int32)"),
    (lambda: build(packed=[1]), "packed must be a Tensor, got list"),
    (lambda: build(scale=[1.0]), "stored_scale must be a Tensor, got list"),
    (lambda: build(scale=None), "needs stored_scale = ((4, 2), torch.float32), got None"),
    (lambda: build(scale=GOOD["scale"].to("meta")), "stored_scale is on meta, packed on cpu; move both to one device"),
    (lambda: dataclasses.replace(build(), packed=STRIDED["packed"]), "packed must be contiguous, got shape (4, 32) with strides (64, 2)"),
    (lambda: dataclasses.replace(build(), stored_scale=STRIDED["scale"]), "stored_scale must be contiguous"),
    (lambda: build(zeros=GOOD["scale"]), "unknown tensors zeros; a QTensor holds packed, scale, zero_point, second_scale, scale_offset"),
    (lambda: QTensor.from_tensors(SCHEME, SHAPE, torch.float32, without("packed")), "tensor 'packed' is missing; got scale, zero_point"),
    (lambda: QTensor.from_tensors(SCHEME, SHAPE, torch.float32, without("scale")), "needs stored_scale"),
    (lambda: QTensor.from_tensors(SCHEME, SHAPE, torch.float32, [GOOD["packed"]]), "tensors must be a dict of packed, scale"),
    (lambda: QTensor(SCHEME, SHAPE, torch.float32, GOOD["packed"]), "scheme must be a Scheme, got str; use Scheme.parse"),
    (lambda: SMALL.to("gpu9"), "device must name a torch device such as 'cpu' or 'cuda:0', got 'gpu9'"),
    (lambda: SMALL.to(None), "device must name a torch device such as 'cpu' or 'cuda:0', got None"),
]  # fmt: skip


@pytest.mark.parametrize("call, text", REFUSED, ids=[text[:50] for _, text in REFUSED])
def test_refused(call, text):
    with pytest.raises(InvalidProblemError) as caught:
        call()
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_strided_tensors_are_copied():
    assert all(not tensor.is_contiguous() for tensor in STRIDED.values())
    q = build(**STRIDED)
    assert all(tensor.is_contiguous() for tensor in q.tensors().values()) and torch.equal(q.dequantize(), build().dequantize())


def test_a_zero_point_may_be_one_beyond_the_codes():
    """GPTQ stores the zero point less one, so that readers find 2**bits."""
    q = QTensor.from_codes("uint4", torch.tensor([[15]]), torch.ones(1, 1), torch.tensor([[16]], dtype=torch.uint8), dtype=torch.float32)
    assert q.dequantize().item() == -1.0


def test_unknown_layout():
    q = tritonq.quantize(torch.ones(1, 2), "int8")
    for call in (lambda: q.relayout("marlin"), lambda: dataclasses.replace(q, layout="marlin")):
        with pytest.raises(UnsupportedError, match="unknown layout 'marlin'; known layouts: row"):
            call()
    assert isinstance(Scheme.parse("int8"), Scheme)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", [*SCHEMES, "nf4.dq", "uint4.g32.fz", "int4.g16 act_order"])
@pytest.mark.parametrize("how", ["copy_", "data", "swap_tensors"])
def test_what_is_written_into_its_tensors_is_seen(scheme, dtype, how):
    """As DistributedDataParallel writes buffers in every forward."""
    scheme, *order = scheme.split(" ")
    g_idx = torch.arange(96) % 6 if order else None
    w, x, dy = torch.randn(3, 40, 96).to(dtype), torch.randn(3, 96).to(dtype), torch.randn(3, 40).to(dtype)

    def results(q):
        return tritonq.matmul(x, q), torch.ops.tritonq.matmul_dx(dy, *q.operands), q.dequantize()

    q = tritonq.quantize(w[0], scheme, g_idx=g_idx)
    for other in w[1:]:
        before, new = results(q), tritonq.quantize(3 * other, scheme, g_idx=None if g_idx is None else g_idx.flip(0))
        for mine, theirs in zip(q.flat(), new.flat(), strict=True):
            if how == "copy_":
                mine.copy_(theirs)
            elif how == "data":
                mine.data = theirs.clone()
            else:
                torch.utils.swap_tensors(mine, theirs.clone())
        assert same_tensors(results(q), results(new)) and not any(map(same_bits, results(q), before))


def test_what_is_derived_is_made_once():
    q = tritonq.quantize(torch.randn(40, 96), "nvfp4")
    kept = q.group_scale
    assert q.group_scale is kept
    q.second_scale.mul_(2)
    assert q.group_scale is kept and torch.equal(kept, q.stored_scale.float() * q.second_scale), "where kernels read it"
