"""Results do not depend on what a caller has set around a call, and a result is an ordinary tensor."""
import pytest
import torch
from torch._subclasses import FakeTensorMode

import tritonq
from tests.support.schemes import same_bits, same_tensors
from tests.support.surroundings import default_dtype, forget_tables
from tritonq import QuantizationMethod as Method
from tritonq.errors import InvalidProblemError
from tritonq.matrix import create_params_from_range, fake_quantize, quantize_matrix
from tritonq.plans import SmoothQuantLinearArgs, SmoothQuantLinearDescriptor, SmoothQuantLinearPlan

SCHEMES = ("int4.g32", "nf4.g32", "fp4_bnb.g32", "nf4.dq", "uint4.g32.fz", "fp8_e4m3", "mxfp4", "nvfp4")
LAYOUTS = ("row", "frag", "ksplit")


def weight(n=32, k=128):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_default_dtype(dtype, scheme):
    want = tritonq.quantize(weight(), scheme)
    with default_dtype(dtype):
        got = tritonq.quantize(weight(), scheme)
        assert same_tensors(got.flat(), want.flat())
        for layout in LAYOUTS:
            turned = got.relayout(layout)
            assert same_tensors(turned.flat(), want.relayout(layout).flat()) and same_bits(turned.dequantize(), want.dequantize())


def smooth(act_scale):
    desc = SmoothQuantLinearDescriptor(m=4, n=8, k=128, act_scale=act_scale)
    generator = torch.Generator().manual_seed(0)
    act, w = (torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8) for shape in ((4, 128), (8, 128)))
    args = SmoothQuantLinearArgs(act_q=act, weight_q=w, weight_scale=torch.full((8,), 0.01, dtype=torch.float32))
    return SmoothQuantLinearPlan.select(None, desc).run(None, None, args)


def test_a_default_dtype_under_the_seed_systems():
    def results():
        return (create_params_from_range(8, -1.2345, 4.1234, False), quantize_matrix(weight(), 8, Method.PER_CHANNEL_AFFINE)[1],
                quantize_matrix(weight(), 4, Method.UINT4)[1])  # fmt: skip

    want, product = results(), smooth(0.0237)
    with default_dtype(torch.bfloat16):
        assert results() == want and same_bits(smooth(0.0237), product)


@pytest.mark.parametrize("scheme", ["int4.g32", "nf4.dq", "nvfp4", "uint2.g32"])
def test_tables_made_among_fake_tensors_are_real(scheme):
    x, w = weight(4), weight()
    want = tritonq.quantize(w, scheme).dequantize()
    q = tritonq.quantize(w, scheme)
    forget_tables()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for a in (mode.from_tensor(x), x):
            y = tritonq.matmul(a, q)
            assert isinstance(y, torch._subclasses.FakeTensor) and y.shape == (4, 32)
        assert isinstance(tritonq.dequantize(q), torch._subclasses.FakeTensor)
    assert same_bits(tritonq.dequantize(q), want)
    forget_tables()
    with torch.device("meta"):
        got = [tritonq.quantize(w, scheme).relayout(layout).dequantize() for layout in LAYOUTS]
    assert all(same_bits(values, want) for values in got)
    forget_tables()
    with torch.inference_mode():
        tritonq.quantize(w, scheme).dequantize()
    assert not any(fmt.levels.is_inference() for fmt in tritonq.formats.FORMATS.values() if fmt.bits <= 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_changes_no_product(dtype):
    q, x = tritonq.quantize(weight().to(dtype), "int8"), weight(16).to(dtype).requires_grad_()
    grad = weight(16, 32).to(dtype)

    def results():
        y = tritonq.matmul(x, q, activation="silu")
        return y.detach(), torch.autograd.grad(y, x, grad)[0]

    want = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_tensors(results(), want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 128), (2, 3, 128), (128,)])
def test_results_can_be_written_in_place(layout, shape):
    q = tritonq.quantize(weight(), "int4.g32").relayout(layout)
    x = torch.randn(shape, requires_grad=True)
    y = tritonq.matmul(x, q)
    y += 1
    y.relu_().sum().backward()
    dx = torch.ops.tritonq.matmul_dx(torch.randn(*shape[:-1], 32, requires_grad=True), *q.operands)
    dx += 1
    values = fake_quantize(x.reshape(-1), 8, Method.UNIFORM)
    values += 1
    assert x.grad.shape == x.shape and not y._is_view() and not dx._is_view()


def test_a_negated_view():
    def x():
        lazy = torch.randn(3, 128, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).conj().imag
        assert lazy.is_neg()
        return lazy

    q = tritonq.quantize(weight(), "int4.g32")
    assert same_bits(tritonq.matmul(x(), q), tritonq.matmul(x().resolve_neg(), q))
    assert same_bits(tritonq.quantize(x(), "int8").dequantize(), tritonq.quantize(x().resolve_neg(), "int8").dequantize())
    with pytest.raises(InvalidProblemError, match="resolve_neg"):
        tritonq.select(tritonq.MatmulDesc.of(x().resolve_neg(), q)).run(x(), q)


def test_arguments_that_are_no_plain_tensors():
    q, x = tritonq.quantize(weight(), "int4.g32"), torch.randn(2, 128)
    for _ in range(2):
        for wrong, text in ((x.to_mkldnn(), "_mkldnn"), (x.to_sparse(), "sparse"), (x.to("meta"), "meta"), ([1], "list"), (None, "None")):
            with pytest.raises(InvalidProblemError, match=text):
                tritonq.matmul(wrong, q)
        tritonq.matmul(x, q)
    with pytest.raises(InvalidProblemError, match="nested"):
        tritonq.quantize(torch.nested.nested_tensor([x, x]), "int8")


def test_vmap():
    q, x = tritonq.quantize(weight(), "int4.g32"), torch.randn(5, 2, 128)
    torch.testing.assert_close(torch.func.vmap(lambda a: tritonq.matmul(a, q))(x), tritonq.matmul(x, q))


@pytest.mark.parametrize("activation", ["silu", "swiglu", "gelu", "relu"])
def test_gradients_of_gradients_of_activations(activation):
    q = tritonq.quantize(torch.randn(8, 16, dtype=torch.float64), "int8")
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: tritonq.matmul(x, q, activation=activation), x)
