"""Bad inputs of the public verbs: one line under tritonq.errors that names the value and the rule. And what the error classes are."""
import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tritonq
from tritonq import DequantizeDesc, MatmulDesc, PlanPreference, QuantizeDesc, dequantize, errors, matmul, quantize, select
from tritonq.errors import InvalidProblemError, UnsupportedError, WorkspaceTooSmallError

X = torch.randn(2, 64)
Q = quantize(torch.randn(4, 64), "int4.g32")
INT4 = QuantizeDesc.of(X, "int4")
PRODUCT = MatmulDesc.of(X, Q)
GUARANTEE = select(PRODUCT).precision_guarantee()


def change(**fields) -> QuantizeDesc:
    return dataclasses.replace(INT4, **fields)


REFUSED = {
    "list": (lambda: quantize([[1.0, 2.0]], "int4"), "x must be a Tensor, got list [[1.0, 2.0]]"),
    "numpy": (lambda: quantize(X.numpy(), "int4"), "x must be a Tensor, got ndarray"),
    "none": (lambda: quantize(None, "int4"), "x must be a Tensor, got NoneType None"),
    "qtensor": (lambda: quantize(Q, "int4"), "x must be a Tensor, got QTensor"),
    "int tensor": (lambda: quantize(X.int(), "int4"), "dtype int32 is not one of float16, bfloat16, float32, float64; convert with .to()"),
    "bool tensor": (lambda: quantize(torch.ones(2, 2, dtype=torch.bool), "int4"), "dtype bool is not one of"),
    "complex": (lambda: quantize(torch.ones(2, 2, dtype=torch.complex64), "int4"), "dtype complex64 is not one of"),
    "fp8 tensor": (lambda: quantize(X.to(torch.float8_e4m3fn), "int4"), "dtype float8_e4m3fn is not one of"),
    "0-D": (lambda: quantize(torch.tensor(1.0), "int4"), "x must be a matrix [N, K], got shape ()"),
    "1-D": (lambda: quantize(torch.ones(2), "int4"), "x must be a matrix [N, K], got shape (2,)"),
    "3-D": (lambda: quantize(torch.ones(2, 2, 2), "int4"), "x must be a matrix [N, K], got shape (2, 2, 2)"),
    "meta": (lambda: quantize(X.to("meta"), "int4"), "x must be a dense tensor with data, got a meta tensor"),
    "sparse": (lambda: quantize(torch.eye(4).to_sparse(), "int4"), "x must be a dense tensor with data, got torch.sparse_coo"),
    "scheme": (lambda: quantize(X, "int5"), "unknown format 'int5'; known formats"),
    "no scheme": (lambda: quantize(X, None), "a scheme is a Scheme or a text such as 'nf4.g64', got NoneType None"),
    "decode a tensor": (lambda: dequantize(X), "q must be a QTensor, got Tensor of shape (2, 64)"),
    "decode to int": (lambda: dequantize(Q, torch.int32), "dtype must be float16, bfloat16, float32 or float64, got torch.int32"),
    "decode to text": (lambda: dequantize(Q, "float32"), "dtype must be float16, bfloat16, float32 or float64, got 'float32'"),
    "decode to fp8": (lambda: Q.dequantize(torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
    "K": (lambda: matmul(torch.randn(2, 63), Q), "x has shape (2, 63); its last dimension must be K=64 of the weight [N, K] = (4, 64)"),
    "x scalar": (lambda: matmul(torch.tensor(1.0), Q), "x has shape (); its last dimension must be K=64"),
    "x int": (lambda: matmul(torch.ones(2, 64, dtype=torch.int64), Q), "dtype int64 is not one of"),
    "x list": (lambda: matmul([1.0], Q), "x must be a Tensor, got list [1.0]"),
    "x meta": (lambda: matmul(X.to("meta"), Q), "x must be a dense tensor with data, got a meta tensor"),
    "weight not quantized": (lambda: matmul(X, torch.randn(4, 64)), "q must be a QTensor, got Tensor of shape (4, 64)"),
    "swapped": (lambda: matmul(Q, X), "x must be a Tensor, got QTensor"),
    "bias shape": (lambda: matmul(X, Q, bias=torch.ones(5)), "bias must have shape (4,), got (5,)"),
    "bias list": (lambda: matmul(X, Q, bias=[1, 2, 3, 4]), "bias must be a Tensor, got list"),
    "bias int": (lambda: matmul(X, Q, bias=torch.ones(4).int()), "bias must be a tensor of float16, bfloat16, float32 or float64 on cpu"),
    "bias float8": (lambda: matmul(X, Q, bias=torch.ones(4).to(torch.float8_e4m3fn)), "on cpu, got torch.float8_e4m3fn"),
    "activation": (lambda: matmul(X, Q, activation="swish"), "unknown activation 'swish'; known activations: relu, silu, gelu, swiglu"),
    "odd swiglu": (lambda: matmul(X, quantize(torch.ones(3, X.shape[-1]), "int8"), activation="swiglu"),
                   "activation 'swiglu' needs a weight of as many gate rows as up rows, got n=3"),
    "activation function": (lambda: matmul(X, Q, activation=torch.relu), "activation must be a str, got builtin_function_or_method"),
    "residual": (lambda: matmul(X, Q, residual=torch.ones(2, 5)), "residual must have shape (2, 4), got (2, 5)"),
    "backend": (lambda: tritonq.backend("gpu9"), "device must name a torch device such as 'cpu' or 'cuda:0', got 'gpu9'"),
    "select nothing": (lambda: select(None), "or MatmulDesc or MatmulBackwardDesc, got NoneType None"),
    "preference": (lambda: select(INT4, pref="fast"), "pref must be a PlanPreference, got str 'fast'"),
    "falsy preference": (lambda: select(INT4, pref=0), "pref must be a PlanPreference, got int 0"),
    "tensor as preference": (lambda: select(INT4, pref=torch.ones(2)), "pref must be a PlanPreference, got Tensor of shape (2,)"),
    "workspace limit": (lambda: PlanPreference(max_workspace_bytes="1GiB"), "max_workspace_bytes must be an int, got str '1GiB'"),
    "kernel by number": (lambda: PlanPreference(prefer_kernel=3), "prefer_kernel must be a str or None, got int 3"),
    "explain falsy": (lambda: tritonq.explain(INT4, pref=0), "pref must be a PlanPreference, got int 0"),
    "explain preference": (lambda: tritonq.explain(INT4, pref=3), "pref must be a PlanPreference, got int 3"),
    "negative size": (lambda: select(change(n=-1)), "n=-1 is not in 0.."),
    "huge size": (lambda: select(change(k=2**40)), f"k={2**40} is not in 0.."),
    "text size": (lambda: select(change(n="1")), "n='1' is not a whole number"),
    "fraction": (lambda: select(change(n=1.5)), "n=1.5 is not a whole number"),
    "target text": (lambda: select(dataclasses.replace(PRODUCT, target="cpu")), "target must be a Target, got str 'cpu'"),
    "desc without scheme": (lambda: select(dataclasses.replace(PRODUCT, scheme=None)), "scheme must be a Scheme, got NoneType None"),
    "dtype text": (lambda: select(change(dtype="float16")), "dtype must be a dtype, got str 'float16'"),
    "explain flag": (lambda: tritonq.explain(dataclasses.replace(PRODUCT, act_order="x")), "act_order must be a bool, got str 'x'"),
    "bound of a tensor": (lambda: GUARANTEE.bound(X, X), "q must be a QTensor, got Tensor of shape (2, 64)"),
    "bound of K": (lambda: GUARANTEE.bound(X[:, :5], Q), "x has shape (2, 5); its last dimension must be K=64 of the weight"),
    "bound of N": (lambda: dataclasses.replace(GUARANTEE, sums_over="n").bound(X, Q), "its last dimension must be N=4"),
    "bound of bias": (lambda: GUARANTEE.bound(X, Q, torch.ones(5)), "bias must have shape (4,), got (5,)"),
    "bound of activation": (lambda: GUARANTEE.bound(X, Q, activation="swish"), "unknown activation 'swish'"),
    "other shape": (lambda: select(INT4).run(torch.randn(3, 64)), "the plan is for quantize(n=2, k=64, int4, float32"),
    "other layout": (lambda: select(DequantizeDesc.of(Q)).run(Q.relayout("frag")), "the arguments have layout=frag"),
    "other source": (lambda: select(DequantizeDesc.of(Q)).run(quantize(X.half(), "int4.g32")), "the arguments have n=2, source_dtype="),
    "too many": (lambda: select(INT4).run(X, X), "takes 1 positional tensors, got 2"),
    "too few": (lambda: select(MatmulDesc.of(X, Q)).run(X), "takes 2 positional tensors, got 1"),
    "plan kind": (lambda: select(INT4).run(Q), "x must be a Tensor, got QTensor"),
    "workspace": (lambda: select(INT4).run(X, workspace=3), "workspace must be a Tensor, got int 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, text = REFUSED[case]
    with pytest.raises(InvalidProblemError) as caught:
        call()
    assert text in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_no_kernel_is_left():
    with pytest.raises(UnsupportedError, match="no kernel for quantize.*reference: prefer_kernel='marlin'"):
        select(INT4, PlanPreference(prefer_kernel="marlin"))


def test_backend_variable(monkeypatch):
    monkeypatch.setenv("TRITONQ_BACKEND", "cuda")
    with pytest.raises(InvalidProblemError, match="TRITONQ_BACKEND='cuda' is not one of auto, reference, triton"):
        quantize(X, "int4")


def test_classes():
    assert issubclass(errors.UnsupportedError, NotImplementedError) and issubclass(errors.UnsupportedError, errors.TritonQError)
    for error in (errors.InvalidProblemError, errors.CheckpointError):
        assert issubclass(error, ValueError) and issubclass(error, errors.TritonQError)
    small = WorkspaceTooSmallError(100, 7)
    assert isinstance(small, errors.TritonQError) and (small.needed, small.got) == (100, 7) and "100 bytes, got 7" in str(small)


def test_inputs_that_need_a_gradient_are_fine():
    w = torch.randn(4, 64, requires_grad=True)
    assert torch.equal(quantize(w, "int4").packed, quantize(w.detach(), "int4").packed)


def test_a_tensor_cannot_be_decoded_where_operators_are_watched():
    with FakeTensorMode(), pytest.raises(InvalidProblemError, match="q must be a QTensor, got Tensor"):
        dequantize(X)
