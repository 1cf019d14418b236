"""The launcher alone: hooks, streams, devices, threads, capture, and the life of a module."""
import gc
import sys
import threading

import pytest
import torch
from triton import knobs

import tritonq
from tests.launch.cases import HALF, K, N, launches, no_jit, weight
from tritonq.errors import UnsupportedError
from tritonq.kernels import launcher as module
from tritonq.kernels import split_k
from tritonq.kernels.bound import BoundMatmul


def product(layout: str = "frag", m: int = 3, **kind):
    """A weight, x, and the launcher of their product."""
    q, x = weight(layout=layout, **kind), torch.zeros(m, kind.get("k", K), dtype=HALF)
    tritonq.matmul(x, q)
    return q, x, q._products[None].plain[-1].kernel.launcher


def test_hooks_see_every_launch(stub) -> None:
    q, x, _ = product()
    names = []
    hook = lambda data: names.append(data.get()["name"])  # noqa: E731
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        tritonq.matmul(x, q)
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    with no_jit():
        tritonq.matmul(x, q)
    assert len(names) == 1 and names[0].startswith("matmul_frag")
    with knobs.runtime.scope():
        knobs.runtime.launch_exit_hook = hook  # replaced, not appended to
        tritonq.matmul(x, q)
    assert len(names) == 2


def test_debugging_goes_through_the_jit(stub) -> None:
    q, x, _ = product()
    with knobs.runtime.scope():
        knobs.runtime.debug = True
        assert launches(stub, lambda: tritonq.matmul(x, q)) == [None, None]


def test_a_hook_of_the_kernel_sees_every_launch_and_loads_nothing_again(stub) -> None:
    q, x, launcher = product()
    ready, seen = launcher.ready, []
    launcher.kernel.pre_run_hooks.append(lambda *_, **__: seen.append(1))
    try:
        assert launches(stub, lambda: tritonq.matmul(x, q)) == [None, None]
    finally:
        launcher.kernel.pre_run_hooks.clear()
    assert len(seen) == 2 and launcher.ready is ready
    with no_jit():
        tritonq.matmul(x, q)


def test_the_current_stream(stub) -> None:
    for m in (1, 3):
        q, x, _ = product(m=m)
        for stream in (0x7F00, 0, 0x8800):
            stub.set_stream(0, stream)
            assert launches(stub, lambda q=q, x=x: tritonq.matmul(x, q))[-1]["stream"] == stream


def test_streams_do_not_share_counters(stub) -> None:
    q, x, _ = product()
    addresses = {}
    for stream in (0, 0x7F00, 0):
        stub.set_stream(0, stream)
        seen = launches(stub, lambda: tritonq.matmul(x, q))[-1]
        # x, w, scale, bias absent, residual absent, out, partial sums, counters
        addresses.setdefault(stream, set()).add(tuple(seen["parameters"][4:6]))
    (here,), (there,) = addresses[0], addresses[0x7F00]
    assert not set(here) & set(there)


def test_the_weights_device_is_made_current_and_the_old_one_restored(stub, monkeypatch) -> None:
    monkeypatch.setattr(module, "device_index", lambda tensor: 1)
    stub.set_stream(1, 0x1100)
    q, x, launcher = product()
    assert launcher.device == 1
    for current in (0, 1):
        stub.set_device(current)
        assert launches(stub, lambda: tritonq.matmul(x, q))[-1]["stream"] == 0x1100
        assert stub.current_device() == current


def test_threads_build_once(stub) -> None:
    q, x = weight("int4.g64", "frag"), torch.zeros(3, K, dtype=HALF)
    before, errors, together = (stub.launches, stub.loads), [], threading.Barrier(8)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # every other bytecode is another thread's

    def work():
        try:
            together.wait()
            for _ in range(100):
                tritonq.matmul(x, q)
        except Exception as error:  # noqa: BLE001 - told to the main thread
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert not errors and stub.launches == before[0] + 800
    assert stub.loads == before[1] + 1


def test_capture(stub, monkeypatch) -> None:
    q, x = weight("int4.g32", "frag"), torch.zeros(3, K, dtype=HALF)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    stub.capture(True)
    with pytest.raises(UnsupportedError, match=r"plan.prepare\(x, q\), before the capture"):
        plan.run(x, q)
    stub.capture(False)
    before = stub.launches, stub.loads
    plan.prepare(x, q)
    assert (stub.launches, stub.loads) == (before[0], before[1] + 1), "prepare loads and launches nothing"
    plan.run(x, q)  # outside: the stream's own counters
    outside = launches(stub, lambda: plan.run(x, q))[-1]["parameters"][4:6]
    stub.capture(True)
    monkeypatch.setattr(torch, "zeros", None)  # a launch more in every replay
    with no_jit():
        plan.run(x, q)
    inside = [launches(stub, lambda: plan.run(x, q))[-1]["parameters"][5] for _ in range(3)]
    assert stub.loads == before[1] + 1
    assert len({outside[1], *inside}) == 4, "each captured product has counters of its own"


def test_a_capture_without_anything_ahead_makes_its_counters_itself(stub, monkeypatch) -> None:
    q, x = weight("int4.g32", "frag"), torch.zeros(3, K, dtype=HALF)
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    plan.prepare(x, q)
    monkeypatch.setattr(split_k, "_for_graphs", {})
    made, zeros = [], torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **how: (made.append(size), zeros(*size, **how))[1])
    stub.capture(True)
    plan.run(x, q)
    assert made == [(N // 64,)], "as many as there are tiles"
    stub.capture(False)
    plan.prepare(x, q)
    few = split_k._for_graphs[0]
    few._left = 40
    assert few.take(33).numel() == 33 and few._left == 40 and few.take(32).numel() == 32 and few._left == 8
    few.refill()
    assert few._left == few.CHUNK and len(few._chunks) == 2, "what is given out is never freed"


def test_prepare_an_unaligned_x(stub) -> None:
    q, odd = weight("int4.channel", "frag"), torch.zeros(3 * K + 1, dtype=HALF)[1:].view(3, K)
    plan = tritonq.select(tritonq.MatmulDesc.of(odd, q))
    plan.prepare(odd, q)
    before = stub.launches, stub.loads
    stub.capture(True)
    plan.run(odd, q)
    assert (stub.launches, stub.loads) == (before[0] + 1, before[1])


def test_a_module_is_never_unloaded_under_a_launcher(stub) -> None:
    q, x, launcher = product(scheme="int4.g256")
    first = launches(stub, lambda: tritonq.matmul(x, q))[-1]
    old, caches = launcher.ready, launcher.kernel.device_caches
    dropped = caches[0]
    dropped[0].clear()
    caches.clear()
    gc.collect()
    with no_jit():
        tritonq.matmul(x, q)
    assert stub.last()["function"] == first["function"]
    launcher.ready = None
    second = launches(stub, lambda: tritonq.matmul(x, q))[-1]
    assert first["function"] != second["function"]
    gc.collect()
    launcher.ready, caches[0] = old, dropped
    with no_jit():  # as a graph does that was captured before
        tritonq.matmul(x, q)
    assert stub.last()["function"] == first["function"]


def test_a_kernel_that_is_no_compiled_function_is_called_as_it_is(stub) -> None:
    """What the JIT adds to its functions may be missing, as of another kind or version."""
    q, x, launcher = product()
    calls = []

    class Other:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: calls.append(grid)

    kernel = Other()
    bound = BoundMatmul(kernel, launcher.grid[:2], x, q, None, None, weight=(q.packed,), shape=(3, N), constants={})
    assert bound.run(x, q, None, None).shape == (3, N) and calls == [launcher.grid]


def test_an_unknown_triton_goes_through_the_jit(stub, monkeypatch) -> None:
    monkeypatch.setattr(module, "_KNOWN", False)
    q, x, launcher = product()
    assert launcher.ready is False and launches(stub, lambda: tritonq.matmul(x, q)) == [None, None]


def test_a_cpu_is_never_launched_by_address(stub, monkeypatch) -> None:
    """On a machine with a GPU, TRITONQ_BACKEND=triton sends CPU tensors to Triton, which refuses them."""
    monkeypatch.undo()
    monkeypatch.setattr(module, "device_index", lambda tensor: tensor.get_device() if tensor.is_cuda else None)
    q, x, launcher = product()
    assert launcher.device is None and launcher.ready is None
    assert tritonq.matmul(x, q).shape == (3, N)
