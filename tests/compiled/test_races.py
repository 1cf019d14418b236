"""The simulator sees accesses that only a barrier, a fence or an atomic orders: kernels with one of these taken away."""
import re
from collections.abc import Callable

import pytest
import torch

from tests.support import feature_kernels, ptx_sim
from tests.support import simulator as tool
from tests.support.feature_checks import CHECKS, same
from tests.support.weights import weight, within
from tritonq import MatmulDesc, select
from tritonq.kernels import split_k


@pytest.fixture
def edited(simulator, monkeypatch):
    """A function that says how the PTX of later launches is changed; every change must change something."""

    def edit(change: Callable[[str], str]) -> None:
        def launch(ptx: str, *arguments, **options):
            assert change(ptx) != ptx
            return real(change(ptx), *arguments, **options)

        monkeypatch.setattr(tool.ptx_sim, "launch", launch)

    real = ptx_sim.launch
    monkeypatch.setattr(split_k, "_scratch", {})  # a launch that ends early leaves counters behind
    return edit


def without(pattern: str) -> Callable[[str], str]:
    return lambda ptx: re.sub(pattern, "", ptx)


BARRIER = r"bar\.sync\s+0;"


def test_shared_memory_without_a_barrier(edited) -> None:
    assert same(*CHECKS["group sum float32"].run("cpu"))
    edited(without(BARRIER))
    with pytest.raises(ptx_sim.PtxError, match="race: shared memory that another warp wrote is read"):
        CHECKS["group sum float32"].run("cpu")


@pytest.mark.parametrize("simulator", [80, 90], indirect=True)
def test_a_pipeline_without_a_barrier(edited) -> None:
    """Operands of mma.sync and wgmma, brought by asynchronous copies of all warps."""
    assert same(*CHECKS["pipelined dot"].run("cpu"))
    edited(without(BARRIER))
    with pytest.raises(ptx_sim.PtxError, match="race: shared memory"):
        CHECKS["pipelined dot"].run("cpu")


def without_barriers_at_release(ptx: str) -> str:
    atomic = re.search(r"(@%p\d+ )?atom\.", ptx).start()
    store = ptx.rindex("st.global", 0, atomic)
    return ptx[:store] + re.sub(BARRIER, "", ptx[store:atomic]) + ptx[atomic:]


SPLIT = {
    "no barrier": (without(BARRIER), "race: "),
    "no release": (lambda ptx: re.sub(r"\.acq_rel\.add", ".acquire.add", ptx), "race: global memory that another warp stored is read"),
    "no acquire": (lambda ptx: re.sub(r"\.acq_rel\.add", ".release.add", ptx), "race: global memory that another warp stored is read"),
    "no barrier before the release": (without_barriers_at_release, "race: global memory that another warp stored is read"),
}


@pytest.mark.parametrize("fault", SPLIT)
@pytest.mark.parametrize("layout", ["frag", "ksplit"])
def test_split_k_without(fault: str, layout: str, edited) -> None:
    """Partial sums of other programs: what makes them visible is a barrier, a release and an acquire."""
    q, x = weight("int4.g32", 16, 4096, torch.float16).relayout(layout), torch.randn(4, 4096).half()
    plan = select(MatmulDesc.of(x, q))
    assert plan.config["SPLIT_K"] > 1
    assert within(plan.run(x, q), x, q, plan)
    change, message = SPLIT[fault]
    edited(change)
    with pytest.raises(ptx_sim.PtxError, match=message):
        plan.run(x, q)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("@%p9999 bar.sync 0;", "a barrier that only some threads of a block reach"),
        ("st.shared.b32 [global_smem], %r9999;", "two threads store different values at one address"),
        ("@%p9999 st.shared.b32 [global_smem], 1;\n ld.shared.b32 %r9998, [global_smem];", "race: shared memory that another warp wrote"),
        ("ld.shared.b32 %r9998, [global_smem];\n @%p9999 st.shared.b32 [global_smem], 1;", "race: .* is overwritten"),
    ],
)
def test_threads_that_differ(line: str, message: str, edited) -> None:
    """``%r9999`` is the number of the thread, ``%p9999`` holds for the first."""
    head = "mov.u32 %r9999, %tid.x;\n setp.lt.u32 %p9999, %r9999, 1;\n"
    edited(lambda ptx: ptx.replace("ret;", head + line + "\n ret;"))
    with pytest.raises(ptx_sim.PtxError, match=message):
        feature_kernels.unmasked_copy[(1,)](torch.randn(128), torch.empty(128), BLOCK=128)
