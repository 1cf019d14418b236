"""Which family a product of many rows takes, what the backward keeps and computes, and what is refused."""
import pytest
import torch

import tritonq
from tritonq import MatmulBackwardDesc, MatmulDesc, PlanPreference, Scheme, explain, reference, select
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.plans.core import Target

SM90 = Target(backend="triton", device="cuda", arch=90)


def forward(m, n=4096, k=4096, dtype=torch.bfloat16, scheme="int4.g128", layout="frag", target=SM90, **more):
    return MatmulDesc(m=m, n=n, k=k, dtype=dtype, scheme=Scheme.parse(scheme), target=target, source_dtype=dtype, layout=layout, **more)


def backward(m, n=4096, k=4096, dtype=torch.bfloat16, scheme="int4.g128", layout="frag"):
    return MatmulBackwardDesc(m=m, n=n, k=k, dtype=dtype, scheme=Scheme.parse(scheme), target=SM90, source_dtype=dtype, layout=layout)


needs_triton = pytest.mark.skipif(tritonq.backend.__globals__["triton"] is None, reason="kernels are registered where Triton is")


@needs_triton
@pytest.mark.parametrize("desc, kernel", [
    (forward(1), "matmul_frag"), (forward(511), "matmul_frag"), (forward(512), "dequantize_matmul"), (forward(4096), "dequantize_matmul"),
    (forward(512, 1024, 1024), "matmul_frag"), (forward(1024, 1024, 1024), "dequantize_matmul"),
    (forward(32, layout="row"), "matmul_tiles"), (forward(33, layout="row"), "dequantize_matmul"),
    (forward(33, layout="row", dtype=torch.float32), "matmul_tiles"), (forward(1, scheme="nvfp4"), "matmul_frag"),
    (forward(1, scheme="int8.g72"), "dequantize_matmul"), (forward(8, activation="swiglu"), "matmul_frag"),
    (forward(8, 4128, activation="swiglu"), "dequantize_matmul"),
    (forward(33, layout="row", target=Target(backend="triton", device="cuda", arch="gfx942")), "dequantize_matmul"),
    (backward(32), "matmul_dx"), (backward(33), "dequantize_matmul_dx"), (backward(33, dtype=torch.float32), "matmul_dx"),
    (forward(512, 64, 2**21), "matmul_frag"),
], ids=str)  # fmt: skip
def test_families_by_rows(desc, kernel):
    assert select(desc).kernel.name == kernel, explain(desc)


@needs_triton
def test_explain_shows_the_crossover_and_a_caller_can_overrule_it():
    few, many = forward(8), forward(600)
    assert "dequantize_matmul  possible, but preferred from m=512 on" in explain(few)
    assert explain(many).index("dequantize_matmul") < explain(many).index("matmul_frag")
    assert select(few, PlanPreference(prefer_kernel="dequantize_matmul")).kernel.name == "dequantize_matmul"
    assert select(many, PlanPreference(prefer_kernel="matmul_frag")).kernel.name == "matmul_frag"
    assert select(many, PlanPreference(max_workspace_bytes=1 << 20)).kernel.name == "matmul_frag"


@needs_triton
@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
@pytest.mark.parametrize("m", [1, 512, 1024, 8192, 100_000])
@pytest.mark.parametrize("n, k", [(4096, 4096), (28672, 8192), (8192, 28672), (128_256, 4096), (64, 64), (4096, 200_000), (0, 8), (8, 0)])
def test_chunks_fit_the_workspace_and_fill_the_device(n, k, m, activation):
    desc = forward(m, n, k, activation=activation)
    try:
        plan = select(desc, PlanPreference(prefer_kernel="dequantize_matmul"))
    except UnsupportedError:
        assert k == 200_000 and activation == "swiglu"
        return
    assert 0 <= plan.workspace_size() <= 64 * 2**20 and plan.config["CHUNK_N"] % 128 == 0
    features, chunk = desc.features, plan.config["CHUNK_N"]
    tiles = -(-m // 128) * -(-min(chunk, features) // 128)
    assert chunk >= features or tiles >= 132 or 2 * k * (1 + (activation == "swiglu")) * (chunk + 128) > 32 * 2**20
    assert (plan.config["CHUNK_M"] > 0) == (activation is not None)
    dx = select(backward(m, n, k), PlanPreference(prefer_kernel="dequantize_matmul_dx"))
    assert 0 <= dx.workspace_size() <= 64 * 2**20 and dx.config["CHUNK_K"] % 128 == 0


def test_the_backward_has_its_own_descriptor():
    q = tritonq.quantize(torch.randn(12, 40), "int4.g8")
    dy = torch.randn(2, 3, 12)
    desc = MatmulBackwardDesc.of(dy, q)
    assert str(desc) == "matmul_backward(m=6, n=12, k=40, int4.g8, float32, cpu-reference)" and tritonq.can_implement(desc)
    plan = select(desc)
    dx = plan.run(dy, q)
    error = (dx.double() - dy.double() @ reference.dequantize(q, torch.float64)).abs()
    assert dx.shape == (2, 3, 40) and bool((error <= plan.precision_guarantee().bound(dy, q)).all()) and str(plan.sku())
    assert not plan.can_implement(torch.randn(2, 3, 12, dtype=torch.float64), q)


@pytest.mark.parametrize("call, text", [
    (lambda q: MatmulBackwardDesc.of(torch.randn(2, 5), q), "its last dimension must be N=12"),
    (lambda q: MatmulBackwardDesc.of(torch.randn(2, 12, device="meta"), q), "meta tensor"),
    (lambda q: MatmulBackwardDesc.of([1], q), "dy must be a Tensor"),
    (lambda q: select(MatmulBackwardDesc.of(torch.randn(2, 12), q)).run(torch.randn(3, 12), q), "the plan is for"),
    (lambda q: select(MatmulBackwardDesc.of(torch.randn(2, 12), q)).run(q), "takes 2 positional tensors, got 1"),
    (lambda q: select(MatmulBackwardDesc.of(torch.ones(2, 12, dtype=torch.int32), q)), "int32 is not one of"),
])  # fmt: skip
def test_the_backward_refuses(call, text):
    with pytest.raises(InvalidProblemError, match=text):
        call(tritonq.quantize(torch.randn(12, 40), "int4.g8"))


@pytest.mark.parametrize("activation, kept", [(None, 0), ("silu", 2)])
def test_the_forward_keeps_nothing_that_the_backward_does_not_need(activation, kept):
    q = tritonq.quantize(torch.randn(6, 8), "int8")
    x, bias, residual = (torch.randn(shape, requires_grad=True) for shape in ((3, 8), (6,), (3, 6)))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = tritonq.matmul(x, q, bias, activation, residual)
    assert len([t for t in saved if all(t.data_ptr() != mine.data_ptr() for mine in q.flat())]) == kept, "beside the packed weight"
    y.sum().backward()
    assert x.grad.shape == x.shape and bias.grad.shape == bias.shape and bool((residual.grad == 1).all())


def test_a_gradient_is_computed_only_where_it_is_asked_for():
    q = tritonq.quantize(torch.randn(6, 8), "int8")
    bias = torch.randn(6, requires_grad=True)
    tritonq.matmul(torch.randn(3, 8), q, bias, "relu").sum().backward()
    assert bias.grad is not None


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_an_argument_beyond_float16_has_a_finite_derivative(activation):
    q = tritonq.quantize(torch.tensor([[700.0] * 64, [-700.0] * 64]), "int8")
    x = torch.full((1, 64), 2.0).half().requires_grad_()
    (dx,) = torch.autograd.grad(tritonq.matmul(x, q, activation=activation)[:, 1].sum(), x)
    assert bool((dx == 0).all())


def test_reduced_precision_sums_are_off_while_the_library_multiplies_and_back_after():
    pytest.importorskip("triton")
    from tritonq.kernels.dequantize_matmul import _whole_sums

    settings = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = [getattr(settings, name) for name in names]
    with pytest.raises(RuntimeError), _whole_sums(torch.device("cuda")):
        assert not any(getattr(settings, name) for name in names)
        raise RuntimeError
    assert [getattr(settings, name) for name in names] == before == [True, True]
