"""Shared by all tests. Imports neither triton nor tritonq: each folder decides first how kernels run in its process."""
from __future__ import annotations

import gc

import pytest
import torch


def pytest_configure() -> None:
    """What is imported stays: looking through all of it again and again is half of the time that collecting the tests takes."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # Triton's binding reports what no collection takes away at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA or HIP device, and torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def device() -> str:
    """Where kernels run in this process: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
