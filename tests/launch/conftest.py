"""Triton's own launch path above a driver that records launches (tests/support/stub_driver.py), in a process of its own."""
import os
import tempfile
from pathlib import Path

import pytest
import torch

from tests.support.process import require_alone

require_alone("tests/launch")
os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="tritonq-tests-"))
os.environ["TRITONQ_BACKEND"] = "triton"


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """The fake driver with two devices; skips where it cannot be built."""
    from tests.support import stub_driver

    if stub_driver.COMPILER is None:
        pytest.skip("the fake driver is written in C, and there is no C compiler: neither $CC nor gcc")
    if torch.version.cuda or torch.version.hip:
        pytest.skip("the fake driver stands in for CUDA in CPU builds of torch, and this one has CUDA or HIP")
    return stub_driver.install(Path(tmp_path_factory.mktemp("stub")), devices=2)


@pytest.fixture
def stub(driver):
    """The fake driver on device 0 and its default stream, not capturing."""
    yield driver
    driver.set_device(0)
    driver.set_stream(0, 0)
    driver.capture(False)
    driver.unwatch()
