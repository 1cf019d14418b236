"""``torch.ops.tritonq``: fakes, gradients, torch.compile and torch.export, on the CPU."""
import copy
from dataclasses import fields

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import tritonq
from tests.support.schemes import same_bits, same_tensors
from tritonq import QTensor
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.nn import QuantLinear
from tritonq.qtensor import operands

ops = torch.ops.tritonq
SCHEMES = ("int4.g16", "uint4.g16.fz", "nf4.g64.dq", "nvfp4", "mxfp8", "uint3.g24", "fp8_e4m3", "int8.tensor", "bf16", "fp4_e2m1.column")
# The first adds numbers to every tensor, which torch cannot do with 8-bit floats.
ALL = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def weight(scheme="int4.g16", n=24, k=64, dtype=torch.float32, layout="row", **more):
    generator = torch.Generator().manual_seed(0)
    return tritonq.quantize(torch.randn(n, k, generator=generator, dtype=dtype), scheme, **more).relayout(layout)


def given(tensors, q, form=None):
    """The operands of a weight like ``q`` with these tensors in place of ``q.flat()``."""
    names = [f.name for f in fields(QTensor) if isinstance(getattr(q, f.name), torch.Tensor)]
    return operands(dict(zip(names, tensors, strict=False)), form or q.form)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_opcheck(scheme):
    q = weight(scheme)
    small = any(tensor.is_floating_point() and tensor.dtype.itemsize == 1 for tensor in q.flat())
    for op, arguments in ((ops.matmul, (torch.randn(3, 64), *q.operands)), (ops.dequantize, q.operands),
                          (ops.quantize, (torch.randn(24, 64), scheme))):  # fmt: skip
        assert set(opcheck(op.default, arguments, test_utils=ALL[small:]).values()) == {"SUCCESS"}


def test_opcheck_of_embedding():
    q, ids = weight("nf4.g16"), torch.tensor([[1, 23], [0, 7]])
    assert set(opcheck(ops.embedding.default, (ids, *q.operands)).values()) == {"SUCCESS"}
    assert same_bits(ops.embedding(ids, *q.operands), q.dequantize()[ids])


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "swiglu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_gradients(activation, dtype):
    q = weight(dtype=dtype)
    features = 12 if activation == "swiglu" else 24
    x, bias, residual = (torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((2, 3, 64), (24,), (2, 3, features)))
    assert set(opcheck(ops.matmul.default, (x, *q.operands, bias, activation, residual)).values()) == {"SUCCESS"}
    assert set(opcheck(ops.matmul.default, (x[:0], *q.operands)).values()) == {"SUCCESS"}
    dy = torch.randn(4, 24, dtype=dtype, requires_grad=True)
    assert set(opcheck(ops.matmul_dx.default, (dy, *q.operands)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "swiglu"])
def test_gradcheck(activation):
    q = weight("uint4.g16", n=6, k=16, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 16), (6,), (2, 3 if activation == "swiglu" else 6)
    x, bias, residual = (torch.randn(*s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes)
    assert torch.autograd.gradcheck(lambda *a: tritonq.matmul(a[0], q, a[1], activation, a[2]), (x, bias, residual))


def test_the_gradient_of_a_gradient():
    q = weight("uint4.g16", n=6, k=16, dtype=torch.float64)
    x = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: tritonq.matmul(x, q), x)


def test_results_are_those_of_the_functions():
    q, x, bias = weight("nf4"), torch.randn(2, 3, 64), torch.randn(24)
    assert same_bits(ops.matmul(x, *q.operands, bias, "silu"), tritonq.matmul(x, q, bias, "silu"))
    assert same_bits(ops.dequantize(*q.operands, torch.float16), q.dequantize(torch.float16))
    w = torch.randn(24, 64)
    assert same_tensors(ops.quantize(w, "nf4.dq"), tritonq.quantize(w, "nf4.dq").flat())


@pytest.mark.parametrize("q", [weight(), weight("nf4.dq", layout="frag"), weight("nvfp4", dtype=torch.bfloat16), weight("fp16"),
                               weight(g_idx=torch.arange(64) % 4)], ids=lambda q: q.form)  # fmt: skip
def test_a_weight_is_put_together_from_its_tensors(q):
    assert QTensor.from_flat(q.flat(), q.form) is q
    copies = [tensor.clone() for tensor in q.flat()]
    other = QTensor.from_flat(copies, q.form)
    assert other is not q and other.form == q.form and all(a is b for a, b in zip(other.flat(), copies, strict=True))
    assert same_bits(other.dequantize(), q.dequantize())
    assert QTensor.from_flat(copies, q.form) is other


@pytest.mark.parametrize("q", [weight(), weight("uint4.g16"), weight("nf4.dq", layout="frag"), weight("nvfp4", dtype=torch.bfloat16),
                               weight("uint4.g16", g_idx=torch.arange(64) % 4)], ids=lambda q: q.form)  # fmt: skip
def test_a_weight_that_shares_some_of_its_tensors_is_another(q):
    x, mine = torch.randn(2, 64, dtype=q.dtype), q.flat()
    for i, tensor in enumerate(mine):
        want = ops.matmul(x, *q.operands)
        other = tensor.roll(1, -1) if tensor.numel() > 1 else 2 * tensor
        got = ops.matmul(x, *given([*mine[:i], other, *mine[i + 1 :]], q))
        copies = [t.clone() for t in mine]
        copies[i] = other.clone()
        assert same_bits(got, ops.matmul(x, *given(copies, q))), i
        assert not same_bits(got, want) or i > 0 and q.layout == "frag", i  # which does not read the scales' codes
    assert same_bits(ops.matmul(x, *given(mine, q)), want)
    with pytest.raises(InvalidProblemError, match=f"got {len(mine) - 1}"):
        ops.matmul(x, *given(mine[:-1], q))


def test_the_same_tensors_are_another_weight_in_another_form():
    q, x = weight("nf4.g16"), torch.randn(2, 64)
    copies, form = [t.clone() for t in q.flat()], q.form.replace("nf4", "fp4_bnb")
    assert same_bits(ops.matmul(x, *given(q.flat(), q, form)), ops.matmul(x, *given(copies, q, form)))
    assert not same_bits(ops.matmul(x, *given(q.flat(), q, form)), ops.matmul(x, *q.operands))
    assert QTensor.from_flat(q.flat(), q.form) is q


def test_nothing_is_kept_alive():
    import gc
    import weakref

    q = weight()
    tensors, form, gone = q.flat(), q.form, weakref.ref(q)
    tritonq.matmul(torch.randn(2, 64), q)
    del q
    gc.collect()
    assert gone() is None and QTensor.from_flat(tensors, form).form == form


@pytest.mark.parametrize("form, text", [
    ("int4.g16 24x64 float32", "a form reads like"), ("int4.g16 24 float32 row", "a form reads like"), (None, "a form reads like"),
    ("int4.g16 24x64 int8 row", "a form reads like"), ("int4.g16 24x-6 float32 row", "a form reads like"),
    ("int9 24x64 float32 row", "int9"), ("int4.g16 24x64 float32 rows", "known layouts"),
    ("nf4 24x64 float32 row sorted", "a form reads like"), ("uint4.g16 24x64 float32 row", "packed, stored_scale, zero_point, got 2"),
    ("int4.g16 24x128 float32 row", "needs packed"),
])  # fmt: skip
def test_refused_forms(form, text):
    with pytest.raises((InvalidProblemError, tritonq.errors.TritonQError), match=text):
        QTensor.from_flat([tensor.clone() for tensor in weight().flat()], form)


def test_refused_arguments():
    q = weight()
    with pytest.raises(InvalidProblemError, match="last dimension must be K=64"):
        ops.matmul(torch.randn(2, 63), *q.operands)
    with torch._subclasses.FakeTensorMode() as mode, pytest.raises(InvalidProblemError, match="last dimension must be 64"):
        ops.matmul(torch.empty(2, 63), *given([mode.from_tensor(t) for t in q.flat()], q))


class Block(torch.nn.Module):
    def __init__(self, q, up):
        super().__init__()
        self.q, self.up, self.norm = q, up, torch.nn.LayerNorm(q.shape[1])

    def forward(self, x):
        h = tritonq.matmul(self.norm(x), self.q, activation="swiglu")
        return tritonq.matmul(h, self.up, residual=x) + tritonq.dequantize(self.up)[:, 0]


def close(got, want):
    """Equal but for roundings: Inductor normalizes in another order, and what cancels then differs by roundings of what there was."""
    torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6 * want.abs().max().item())


def block():
    return Block(weight("nf4.g16", n=32, k=64), weight("uint4.g16", n=64, k=16))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_without_a_break_and_for_any_number_of_rows(backend):
    module, runs = block(), []

    def counted(graph, inputs):
        runs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=counted)
    for rows in (2, 3, 7, 40):
        x = torch.randn(rows, 64, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 0)
        close(compiled(x), module(x))
        (got,), (want,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, module))
        close(got, want)
    assert len(runs) == 1, "one graph for every number of rows"
    targets = [node.target for node in runs[0].graph.nodes]
    assert targets.count(ops.matmul) + targets.count(ops.matmul.default) == 2


def test_export_keeps_the_operators():
    module, rows = block(), torch.export.Dim("rows")
    program = torch.export.export(module, (torch.randn(4, 64),), dynamic_shapes=({0: rows},))
    assert [node.target for node in program.graph.nodes].count(ops.matmul.default) == 2
    x = torch.randn(9, 64)
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-5, atol=1e-5)


class Seen(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


PLACES = {"inference_mode": torch.inference_mode, "no_grad": torch.no_grad, "enable_grad": torch.enable_grad}
WATCHED = {"a profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]), "a function mode": Seen,
           "a dispatch mode": lambda: FlopCounterMode(display=False)}  # fmt: skip


@pytest.fixture(params=["matmul", "matmul.default"])
def dispatched(request, monkeypatch):
    """An object of the operator, and the calls that it hands to PyTorch's dispatcher."""
    operator, calls = ops.matmul if request.param == "matmul" else ops.matmul.default, []
    monkeypatch.setattr(operator, "_op", lambda *args, inner=operator._op, **named: calls.append(args) or inner(*args, **named))
    return operator, calls


@pytest.mark.parametrize("place", [*PLACES.values()], ids=[*PLACES])
@pytest.mark.parametrize("more", [(), (torch.ones(24),), (None, "relu"), (torch.ones(24), None, torch.ones(3, 24))])
def test_a_warm_call_spares_the_dispatcher(dispatched, place, more):
    operator, calls = dispatched
    q, x = weight(), torch.randn(3, 64)
    with place():
        results = [operator(x, *q.operands, *more) for _ in range(4)]
    assert len(calls) == 1 and all(same_bits(result, results[0]) for result in results)
    with place():
        assert operator(x.double(), *q.operands, *more).shape == (3, 24) and len(calls) == 2, "of another form"


@pytest.mark.parametrize("how", [*WATCHED, "names", "a gradient", "vmap", "FakeTensor", "torch.fx", "no weight", "another form", "make_fx"])
def test_what_the_dispatcher_gets_when_warm(dispatched, how):
    operator, calls = dispatched
    q, x = weight(), torch.randn(3, 64)
    want = [operator(x, *q.operands) for _ in range(2)][1]
    assert len(calls) == 1
    tensors = given([tensor.clone() for tensor in q.flat()], q)
    with WATCHED.get(how, torch.no_grad)() if how != "a gradient" else torch.enable_grad():
        if how == "names":
            assert same_bits(operator(x, *q.operands, activation="relu"), want.relu())
            got = operator(x, *q.operands[:-1], form=q.form)
        elif how == "a gradient":
            got = operator(x.clone().requires_grad_(), *q.operands)
            assert got.requires_grad
        elif how == "vmap":
            got = torch.vmap(lambda row: operator(row, *q.operands))(x)
        elif how == "FakeTensor":
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                assert isinstance(operator(mode.from_tensor(x), *q.operands), FakeTensor)
            got = want
        elif how in ("torch.fx", "make_fx"):
            trace = torch.fx.symbolic_trace if how == "torch.fx" else lambda function: make_fx(function)(x)
            graph = trace(lambda x: operator(x, *q.operands))
            assert {ops.matmul, ops.matmul.default} & {node.target for node in graph.graph.nodes}
            calls.append(x)  # while it is traced, torch.fx calls nothing
            got = graph(x)
        elif how == "no weight":
            got = operator(x, *tensors)
        elif how == "another form":
            with pytest.raises(InvalidProblemError, match="a form reads like"):
                operator(x, *q.operands[:-1], "int4 of some kind")
            got = want
        else:
            got = operator(x, *q.operands)
    assert len(calls) > 1
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("product", [tritonq.matmul, lambda x, q: ops.matmul(x, *q.operands), lambda x, q: QuantLinear(q)(x)])
@pytest.mark.parametrize("place", [*PLACES.values()], ids=[*PLACES])
def test_a_warm_product_is_traced_as_the_operator(product, place):
    q, x = weight(), torch.randn(3, 64)
    with place():
        want = [product(x, q) for _ in range(2)][1]
        for pre_dispatch in (True, True, False):
            graph = make_fx(lambda x: product(x, q), pre_dispatch=pre_dispatch)(x)
            calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
            assert [target for target in calls if "tritonq" in str(target)] == [ops.matmul.default]
        assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [ops.matmul.default]
        assert same_bits(graph(x), want)


@pytest.mark.parametrize("product", [tritonq.matmul, lambda x, q: ops.matmul(x, *q.operands), lambda x, q: QuantLinear(q)(x)])
def test_forward_mode_is_refused(product):
    q, x = weight(), torch.randn(3, 64)
    want = [product(x, q) for _ in range(2)][1]
    with pytest.raises(UnsupportedError, match="has gradients in reverse mode alone"):
        torch.func.jvp(lambda x: product(x, q), (x,), (x,))
    with forward_ad.dual_level():
        assert same_bits(product(x, q), want), "without a tangent"
        with pytest.raises(UnsupportedError, match="tangent of forward mode"):
            product(forward_ad.make_dual(x, x), q)


@pytest.mark.parametrize("product", [tritonq.matmul, lambda x, q: ops.matmul(x, *q.operands), lambda x, q: QuantLinear(q)(x)])
def test_jit_trace(product):
    q, x = weight(), torch.randn(3, 64)
    product(x, q)
    traced = torch.jit.trace(lambda x: product(x, q), (x,), check_trace=False)
    other = torch.randn(3, 64)
    assert same_bits(traced(other), product(other, q))


def test_tensors_of_a_weight_that_are_of_a_subclass(dispatched):
    operator, calls = dispatched
    q, x = weight(), torch.randn(3, 64)
    own = QTensor.from_flat([tensor.as_subclass(Logged) for tensor in q.flat()], q.form)
    for _ in range(3):
        before = len(calls)
        operator(x, *own.operands)
        assert len(calls) > before


class Logged(torch.Tensor):
    """A subclass that changes nothing."""


def test_a_profile_names_the_operator():
    q, x = weight(), torch.randn(3, 64)
    ops.matmul(x, *q.operands)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.matmul(x, *q.operands)
    assert "tritonq::matmul" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("arguments, text", [
    (lambda x, q: (x, *q.operands[:-1]), "missing value for argument 'form'"),
    (lambda x, q: (x, *q.operands, None, None, None, None), "expected at most 9 argument"),
    (lambda x, q: (x, *q.operands, 3), "for argument 'bias'"),
    (lambda x, q: (x, *q.operands, None, 3), "for argument 'activation'"),
    (lambda x, q: (x, *q.operands, None, []), "for argument 'activation'"),
    (lambda x, q: (1, *q.operands), "for argument 'x'"),
    (lambda x, q: (x, 1, *q.operands[1:]), "for argument 'packed'"),
    (lambda x, q: (x, *q.operands[:-1], 5), "for argument 'form'"),
    (lambda x, q: (x, *q.operands[:3], 5, q.form), "for argument 'others'"),
])  # fmt: skip
@pytest.mark.parametrize("operator", [ops.matmul, ops.matmul.default])
def test_a_warm_operator_refuses_as_pytorch_does(operator, arguments, text):
    for scheme in ("int4.g16", "nf4.dq"):
        q, x = weight(scheme), torch.randn(3, 64)
        operator(x, *q.operands), operator(x, *q.operands)
        with pytest.raises(RuntimeError, match=text):
            operator(*arguments(x, q))


def test_the_operator_is_what_pytorch_takes_for_one():
    assert isinstance(ops.matmul, torch._ops.OpOverloadPacket) and isinstance(ops.matmul.default, torch._ops.OpOverload)
    assert repr(ops.matmul.default) == "<OpOverload(op='tritonq.matmul', overload='default')>" and str(ops.matmul) == "tritonq.matmul"
    assert copy.deepcopy(ops.matmul.default) is ops.matmul.default and ops.matmul.overloads() == ["default"]
    q = weight()
    traced = torch.fx.symbolic_trace(lambda x: ops.matmul(x, *q.operands))
    assert "torch.ops.tritonq.matmul(" in traced.code
    torch.testing.assert_close(copy.deepcopy(traced)(x := torch.randn(2, 64)), tritonq.matmul(x, q))


@pytest.mark.parametrize("x", [torch.randn(3, 64), torch.randn(2, 5, 64), torch.randn(0, 64)])
def test_flops_are_those_of_a_linear(x):
    linear = torch.nn.Linear(64, 32, bias=False).requires_grad_(False)
    q, counted = tritonq.quantize(linear.weight.detach(), "int4.g32"), []
    for product in (linear, lambda x: tritonq.matmul(x, q)):
        with FlopCounterMode(display=False) as forward:
            product(x)
        with FlopCounterMode(display=False) as both:
            product((x * 1).requires_grad_()).sum().backward()
        counted.append((forward.get_total_flops(), both.get_total_flops()))
    assert counted[0] == (2 * x.numel() * 32, counted[1][1]) and counted[1][0] == counted[0][0]


def test_quantize_among_fake_tensors():
    for scheme, layout in (("int4.g64", "row"), ("nf4.dq", "row"), ("nvfp4", "row"), ("uint4.g32.fz", "frag"), ("int3.g40", "ksplit")):
        want = tritonq.quantize(torch.randn(96, 256), scheme, layout=layout)
        with FakeTensorMode():
            q = tritonq.quantize(torch.randn(96, 256), scheme, layout=layout)
            assert tritonq.matmul(torch.randn(2, 256), q).shape == (2, 96)
        assert q.form == want.form and [(t.shape, t.dtype) for t in q.flat()] == [(t.shape, t.dtype) for t in want.flat()]
