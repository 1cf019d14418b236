"""The Triton kernels compiled for architectures that need not be here, and their PTX run by the simulator."""
import contextlib
import os
import tempfile

import pytest

from tests.support.process import require_compiled

require_compiled("tests/compiled")
# Before triton is imported: a stale cache must not hide what the compiler makes today.
os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="tritonq-tests-"))


@pytest.fixture(scope="session", autouse=True)
def verification():
    """MLIR's verifier runs once per stage, a quarter of a compilation less, but under ``TRITONQ_TEST_FULL=1``."""
    from tests.support.passes import verified_once_per_stage
    from tests.support.shapes import FULL

    with contextlib.nullcontext() if FULL else verified_once_per_stage():
        yield


@pytest.fixture
def simulator(request, monkeypatch):
    """Kernel launches on CPU tensors run in the PTX simulator, and the library chooses kernels for CPU tensors.

    sm_90 unless parametrised: ``@pytest.mark.parametrize("simulator", [80, 90], indirect=True)``. Its value is the
    ``tests.support.simulator.Simulator`` with counters (``launches``, ``compiles``, ``steps``) and settings (``options``, ``lazy``).
    """
    from tests.support import simulator as tool

    monkeypatch.setenv("TRITONQ_BACKEND", "triton")
    yield tool.install(arch=getattr(request, "param", 90))
    tool.uninstall()
