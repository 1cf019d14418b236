"""Warm products: what reaches the driver, when it is looked at again, and how long it lives."""
import copy
import dataclasses
import gc
import pickle
import weakref

import pytest
import torch

import tritonq
from tests.launch.cases import HALF, K, N, launches, no_jit, weight
from tritonq.errors import InvalidProblemError, WorkspaceTooSmallError
from tritonq.plans import bound

WEIGHTS = {
    "frag int4, split-K": ("int4.g128", "frag", N, K),
    "frag uint4": ("uint4.g128", "frag", 64, 256),
    "frag nf4, split-K": ("nf4.g64", "frag", N, K),
    "frag float zero": ("uint4.g128.fz", "frag", 100, 512),
    "ksplit nf4, split-K": ("nf4.g64", "ksplit", N, K),
    "ksplit nvfp4": ("nvfp4", "ksplit", 100, 512),
    "frag fp8": ("fp8_e4m3.channel", "frag", 100, 512),
    "frag nvfp4": ("nvfp4", "frag", 64, 256),
    "row int8": ("int8.channel", "row", 70, 130),
    "row dq, one row": ("nf4.g64.dq", "row", 1, 128),
    "row, one column": ("uint4", "row", 48, 1),
    "row nvfp4": ("nvfp4", "row", 64, 64),
}


def forms(n: int, k: int) -> dict:
    """Arguments of one product after another with the same weight."""
    x = torch.zeros(5, k, dtype=HALF)
    bias, residual = torch.zeros(n, dtype=HALF), torch.zeros(5, n, dtype=HALF)
    return {
        "plain": (x,),
        "one row": (x[:1],),
        "sixteen rows": (torch.zeros(16, k, dtype=HALF),),
        "bias": (x, bias),
        "float32 bias of another stride": (x, torch.zeros(2 * n)[::2]),
        "gelu": (x, None, "gelu"),
        "everything": (x, bias, "silu", residual),
        "residual transposed": (x, None, None, torch.zeros(n, 5, dtype=HALF).T),
        "x transposed": (torch.zeros(k, 5, dtype=HALF).T,),
        "every other row": (torch.zeros(10, k, dtype=HALF)[::2],),
        "three dimensions": (torch.zeros(2, 3, k, dtype=HALF), bias, None, torch.zeros(2, 3, n, dtype=HALF)),
        "no view": (torch.zeros(3, 2, k, dtype=HALF).transpose(0, 1),),
    }


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_driver_gets_what_kernel_grid_sends(stub, name) -> None:
    scheme, layout, n, k = WEIGHTS[name]
    q, every = weight(scheme, layout, n, k), forms(n, k)
    for form in every if name in ("frag uint4", "row int8") else ("everything",):
        x, *others = every[form]
        assert None not in launches(stub, lambda x=x, others=others: tritonq.matmul(x, q, *others)), form


def test_bfloat16_after_float16(stub) -> None:
    q = weight("int4.g128", "frag")
    a = launches(stub, lambda: tritonq.matmul(torch.zeros(2, K, dtype=HALF), q))
    b = launches(stub, lambda: tritonq.matmul(torch.zeros(2, K, dtype=torch.bfloat16), q))
    assert a[-1]["function"] != b[-1]["function"]


def test_a_warm_product_does_not_enter_the_jit(stub) -> None:
    for layout in ("row", "frag"):
        q, x = weight(layout=layout), torch.zeros(3, K, dtype=HALF)
        plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
        plan.run(x, q), tritonq.matmul(x, q)
        before = stub.launches
        with no_jit():
            plan.run(x, q), tritonq.matmul(x, q), tritonq.matmul(torch.ones_like(x), q), torch.ops.tritonq.matmul(x, *q.operands)
        assert stub.launches == before + 4


def test_the_latest_of_every_kind_is_found_without_a_key(stub, monkeypatch) -> None:
    q, x, bias, residual = weight(layout="frag"), *(torch.zeros(shape, dtype=HALF) for shape in ((3, K), (N,), (3, N)))
    calls = []
    for added in ({}, {"bias": bias}, {"residual": residual}, {"bias": bias, "residual": residual}):
        plan = tritonq.select(tritonq.MatmulDesc.of(x, q, added.get("bias"), None, added.get("residual")))
        workspace = torch.empty(plan.workspace_size(), dtype=torch.uint8)
        calls += [lambda p=plan, a=added: p.run(x, q, **a), lambda p=plan, a=added, w=workspace: p.run(x, q, **a, workspace=w)]
        calls.append(lambda a=added: tritonq.matmul(x, q, **a))
    for call in calls:
        call()
    monkeypatch.setattr(bound, "_look_up", None)
    for call in calls:
        call()


def test_unaligned_tensors_go_through_kernel_grid(stub) -> None:
    q, x = weight(layout="frag"), torch.zeros(3, K, dtype=HALF)
    aligned = launches(stub, lambda: tritonq.matmul(x, q))[-1]
    odd = torch.zeros(3 * K + 1, dtype=HALF)[1:].view(3, K)
    assert launches(stub, lambda: tritonq.matmul(odd, q)) == [None, None]
    assert stub.last()["function"] != aligned["function"]
    residual = torch.zeros(3 * N + 1, dtype=HALF)[1:].view(3, N)
    assert launches(stub, lambda: tritonq.matmul(x, q, None, None, residual)) == [None, None]
    assert launches(stub, lambda: tritonq.matmul(x, q))[-1]["function"] == aligned["function"]


def test_a_weight_that_moved_is_read_where_it_is(stub) -> None:
    q, x = weight("uint4.g128", "frag"), torch.zeros(3, K, dtype=HALF)
    tritonq.matmul(x, q)
    q.stored_scale.data = q.stored_scale.clone()
    seen = launches(stub, lambda: tritonq.matmul(x, q))
    assert seen[-1]["parameters"][2] == q.stored_scale.data_ptr().to_bytes(8, "little")
    q.packed.data = torch.cat([q.packed.flatten()[:1], q.packed.flatten()])[1:].view_as(q.packed)
    assert q.packed.data_ptr() % 16 and launches(stub, lambda: tritonq.matmul(x, q)) == [None, None]


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((torch.zeros(3, K - 1, dtype=HALF),), "K=4096"),
        ((torch.zeros(3, K, dtype=torch.int32),), "int32"),
        ((torch.zeros(3, K, dtype=HALF, device="meta"),), "meta"),
        ((torch.zeros(3, K, dtype=HALF).to_sparse(),), "sparse"),
        (([1.0],), "must be a Tensor"),
        ((torch.zeros(3, K, dtype=HALF), torch.zeros(N + 1)), "bias"),
        ((torch.zeros(3, K, dtype=HALF), [0.0]), "bias"),
        ((torch.zeros(3, K, dtype=HALF), None, None, torch.zeros(4, N)), "residual"),
        ((torch.zeros(3, K, dtype=HALF), None, "tanh"), "tanh"),
    ],
)
def test_a_warm_weight_still_refuses(stub, arguments, text) -> None:
    q = weight(layout="frag")
    tritonq.matmul(torch.zeros(3, K, dtype=HALF), q, torch.zeros(N), None, torch.zeros(3, N))
    before = stub.launches
    for _ in range(2):
        with pytest.raises(InvalidProblemError, match=text):
            tritonq.matmul(arguments[0], q, *arguments[1:])
    assert stub.launches == before


def test_a_plan_refuses_what_it_is_not_for(stub) -> None:
    q, x = weight(layout="frag"), torch.zeros(3, K, dtype=HALF)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    plan.run(x, q)
    tritonq.matmul(x[:2], q, torch.zeros(N))
    for arguments in ((x[:2],), (x, torch.zeros(N))):
        with pytest.raises(InvalidProblemError, match="the plan is for"):
            plan.run(arguments[0], q, bias=arguments[1] if len(arguments) > 1 else None)
    with pytest.raises(InvalidProblemError, match="the plan is for"):
        plan.run(x, weight("uint4.g128", "frag"))


def test_the_environment_is_looked_at_every_time(stub, monkeypatch) -> None:
    q, x = weight(), torch.randn(3, K, dtype=HALF)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    plan.run(x, q), tritonq.matmul(x, q)
    before = stub.launches
    monkeypatch.setenv("TRITONQ_BACKEND", "reference")
    assert torch.equal(tritonq.matmul(x, q), tritonq.reference.matmul(x, q)) and stub.launches == before
    with pytest.raises(InvalidProblemError, match="the plan is for"):
        plan.run(x, q)
    monkeypatch.setenv("TRITONQ_BACKEND", "nonsense")
    with pytest.raises(InvalidProblemError, match="nonsense"):
        tritonq.matmul(x, q)
    monkeypatch.setenv("TRITONQ_BACKEND", "triton")
    with no_jit():
        plan.run(x, q), tritonq.matmul(x, q)
    assert stub.launches == before + 2


def test_few_rows_in_act_order_are_one_launch(stub) -> None:
    q, x = dataclasses.replace(weight(layout="frag"), column_order=torch.randperm(K).int()), torch.zeros(3, K, dtype=HALF)
    seen = launches(stub, lambda: tritonq.matmul(x, q))
    assert seen[-1]["parameters"][3] == q.column_order.data_ptr().to_bytes(8, "little"), "x, w, scale, order"


def test_workspaces(stub) -> None:
    q, x = weight(layout="frag"), torch.zeros(3, K, dtype=HALF)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    size = plan.workspace_size()
    assert size > 0
    workspace = torch.empty(size + 16, dtype=torch.uint8)
    for given in (workspace, workspace[:size], workspace.view(-1, 16)):
        seen = launches(stub, lambda given=given: plan.run(x, q, workspace=given))
        assert seen[-1]["parameters"][4] == given.data_ptr().to_bytes(8, "little"), "x, w, scale, out, partial sums"
    before = stub.launches
    with pytest.raises(WorkspaceTooSmallError):
        plan.run(x, q, workspace=workspace[: size - 1])
    for wrong, text in ((workspace[1 : size + 1], "multiple of 16"), (torch.empty(2 * size, dtype=torch.uint8)[::2], "contiguous"),
                        (torch.empty(size, dtype=torch.uint8, device="meta"), "meta"), ("no", "Tensor")):  # fmt: skip
        with pytest.raises(InvalidProblemError, match=text):
            plan.run(x, q, workspace=wrong)
    memory = torch.zeros(size + x.nbytes, dtype=torch.uint8)
    inside = memory[size - 16 :][: x.nbytes].view(HALF).view(x.shape)
    with pytest.raises(InvalidProblemError, match="workspace overlaps a tensor of shape"):
        plan.run(inside, q, workspace=memory[:size])
    assert stub.launches == before


def test_what_is_kept_dies_with_the_weight_and_is_not_copied(stub) -> None:
    q, x = weight(layout="frag"), torch.zeros(3, K, dtype=HALF)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    plan.run(x, q), tritonq.matmul(x, q)
    assert q._products
    for other in (copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q)), q.relayout("row")):
        assert not other._products
    gone, packed = weakref.ref(q), weakref.ref(q.packed)
    gc.collect()
    gc.disable()
    try:
        del q, other
        assert gone() is None and packed() is None, "no reference cycle keeps the weight"
    finally:
        gc.enable()


def test_a_weight_keeps_a_bounded_number(stub, monkeypatch) -> None:
    monkeypatch.setattr(bound, "LIMIT", 4)
    q = weight("int8.channel", "row", 16, 32)
    for m in (*range(2, 12), 2, 11, 3):
        assert tritonq.matmul(torch.zeros(m, 32, dtype=HALF), q).shape == (m, 16)
        assert len(q._products) <= 5
    assert None not in launches(stub, lambda: tritonq.matmul(torch.zeros(2, 32, dtype=HALF), q))


def test_empty_results_launch_nothing(stub) -> None:
    q, before = weight(layout="frag"), stub.launches
    for x in (torch.zeros(0, K, dtype=HALF), torch.zeros(2, 0, K, dtype=HALF)):
        for _ in range(2):
            assert tritonq.matmul(x, q).shape == (*x.shape[:-1], N)
    assert tritonq.matmul(torch.zeros(2, K, dtype=HALF), weight("int8.channel", n=0)).shape == (2, 0)
    assert stub.launches == before


def test_gradients_take_the_same_products(stub) -> None:
    q, x = weight(), torch.zeros(3, K, dtype=HALF, requires_grad=True)
    assert tritonq.matmul(x, q).requires_grad
    tritonq.matmul(x.detach(), q)
    before = stub.launches
    with no_jit():
        assert tritonq.matmul(x, q).requires_grad
        with torch.no_grad():
            assert not tritonq.matmul(x, q).requires_grad
    assert stub.launches == before + 2
