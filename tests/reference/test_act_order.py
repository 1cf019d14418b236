"""Act-order: weights whose groups are scattered over the columns, as GPTQ's g_idx says."""
import copy
import pickle

import pytest
import torch

import tritonq
from tritonq import QTensor
from tritonq.errors import InvalidProblemError

N, K, GROUP = 6, 70, 16  # the last group has 6 columns


def scattered(seed: int = 0) -> torch.Tensor:
    return (torch.arange(K) // GROUP)[torch.randperm(K, generator=torch.Generator().manual_seed(seed))]


def made_of_codes(g_idx: torch.Tensor, dtype=torch.float32) -> tuple[QTensor, torch.Tensor]:
    """A weight with a scale and a zero point of its own for every row and group, and its values by the definition."""
    codes = torch.randint(0, 16, (N, K))
    scale, zero = torch.rand(N, 5) + 0.1, torch.randint(0, 16, (N, 5), dtype=torch.uint8)
    values = (scale[:, g_idx].double() * (codes - zero[:, g_idx].int())).to(dtype)
    return QTensor.from_codes("uint4.g16", codes, scale, zero, dtype=dtype, g_idx=g_idx), values


def test_decodes_every_column_with_its_own_group():
    g_idx = scattered()
    q, values = made_of_codes(g_idx)
    assert torch.equal(q.dequantize(), values) and torch.equal(q.g_idx, g_idx.int())
    x = torch.randn(3, K)
    torch.testing.assert_close(tritonq.matmul(x, q), x @ values.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scheme", ["int4.g16", "uint3.g16", "nf4.g16", "nvfp4", "nf4.g16.dq", "uint8.g16.fz"])
def test_quantize_equals_quantizing_the_sorted_matrix(scheme):
    g_idx, w = scattered(), torch.randn(N, K)
    order = g_idx.argsort(stable=True)
    plain, q = tritonq.quantize(w[:, order], scheme), tritonq.quantize(w, scheme, g_idx=g_idx)
    assert torch.equal(q.codes()[:, order], plain.codes()) and torch.equal(q.dequantize()[:, order], plain.dequantize())
    assert torch.equal(q.codes(), tritonq.quantize(w, scheme, g_idx=g_idx).codes())


def test_gradients_flow_through_the_order():
    q, values = made_of_codes(scattered(), torch.float64)
    x = torch.randn(2, 3, K, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(tritonq.matmul(x, q).square().sum(), x)
    (want,) = torch.autograd.grad((x @ values.T).square().sum(), x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q)), lambda q: q.to("cpu"),
                                    lambda q: q.relayout("frag"), lambda q: q.relayout("frag").relayout("row"),
                                    lambda q: QTensor.from_tensors(q.scheme, q.shape, q.dtype, q.tensors())])  # fmt: skip
def test_survives(copier):
    q, values = made_of_codes(scattered())
    assert torch.equal(copier(q).dequantize(), values)


def test_survives_a_file(tmp_path):
    q, values = made_of_codes(scattered())
    tritonq.save({"layer.weight": q}, tmp_path / "w.safetensors")
    assert torch.equal(tritonq.load(tmp_path / "w.safetensors")["layer.weight"].dequantize(), values)


def test_columns_in_their_own_order_need_no_order():
    w = torch.randn(N, K)
    q = tritonq.quantize(w, "int4.g16", g_idx=torch.arange(K) // GROUP)
    assert q.column_order is None and torch.equal(q.packed, tritonq.quantize(w, "int4.g16").packed)
    assert tritonq.quantize(torch.empty(3, 0), "int4.g16", g_idx=torch.empty(0, dtype=torch.int64)).shape == (3, 0)


def test_codes_without_scales_or_order():
    assert torch.equal(QTensor.from_codes("bf16", torch.tensor([[0x3F80, 0x4000]]), dtype=torch.float32).dequantize(),
                       torch.tensor([[1.0, 2.0]]))  # fmt: skip
    w = torch.randn(4, 40)
    for scheme in ("int3.g8", "uint2.g8", "int8", "fp8_e4m3", "nf4.g8", "mxfp4"):
        q = tritonq.quantize(w, scheme)
        again = QTensor.from_codes(scheme, q.codes(), q.scale, q.zero_point, dtype=torch.float32)
        assert torch.equal(again.packed, q.packed) and torch.equal(again.dequantize(), q.dequantize())


W, G = torch.randn(N, K), scattered()


def changed(at: int, value: int) -> torch.Tensor:
    other = G.clone()
    other[at] = value
    return other


REFUSED = {
    "negative": (lambda: tritonq.quantize(W, "int4.g16", g_idx=changed(0, -1)),
                 "g_idx holds group -1; 70 columns in groups of 16 make the groups 0..4"),
    "too large": (lambda: tritonq.quantize(W, "int4.g16", g_idx=changed(0, 5)), "g_idx holds group 5"),
    "uneven": (lambda: tritonq.quantize(W, "int4.g16", g_idx=changed(int((G == 0).nonzero()[0]), 1)),
               "g_idx gives group 0 15 columns; groups of 16 over 70"),
    "length": (lambda: tritonq.quantize(W, "int4.g16", g_idx=G[1:]), "g_idx must be an int32 or int64 tensor of shape (70,)"),
    "float": (lambda: tritonq.quantize(W, "int4.g16", g_idx=G.float()), "got torch.float32 of shape (70,)"),
    "list": (lambda: tritonq.quantize(W, "int4.g16", g_idx=G.tolist()), "got list"),
    "no groups": (lambda: tritonq.quantize(W, "int8", g_idx=G), "g_idx needs groups along K, such as 'int4.g128'"),
    "twice": (lambda: QTensor.from_tensors("int8", (1, 2), torch.float32, {
        "packed": torch.zeros(1, 2, dtype=torch.uint8), "scale": torch.ones(1, 1), "column_order": torch.zeros(2, dtype=torch.int32)}),
        "column_order must hold every column 0..1 once"),
    "order dtype": (lambda: QTensor.from_tensors("int8", (1, 2), torch.float32, {
        "packed": torch.zeros(1, 2, dtype=torch.uint8), "scale": torch.ones(1, 1), "column_order": torch.arange(2)}),
        "needs column_order = ((2,), torch.int32)"),
    "code": (lambda: QTensor.from_codes("int4.g2", torch.tensor([[8, 0]]), torch.ones(1, 1), dtype=torch.float32),
             "codes of int4 must be in -8..7, got 0..8"),
    "code dtype": (lambda: QTensor.from_codes("int4.g2", torch.ones(1, 2), torch.ones(1, 1), dtype=torch.float32),
                   "codes must be an integer tensor [N, K]"),
    "second level": (lambda: QTensor.from_codes("nvfp4", torch.ones(1, 16).int(), torch.ones(1, 1), dtype=torch.float32),
                     "second level of scales"),
    "scale": (lambda: QTensor.from_codes("int4.g2", torch.tensor([[1, 0]]), torch.ones(1, 2), dtype=torch.float32),
              "needs stored_scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, text = REFUSED[name]
    with pytest.raises(InvalidProblemError) as caught:
        call()
    assert text in str(caught.value)
