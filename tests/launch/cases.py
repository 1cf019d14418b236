"""Weights and products for the tests of the launch path, and what to watch in them."""
from __future__ import annotations

import contextlib

import torch
from triton.runtime.jit import JITFunction

import tritonq
from tritonq.kernels.launcher import Launcher

HALF = torch.float16
N, K = 192, 4096


def weight(scheme: str = "int4.g128", layout: str = "row", n: int = N, k: int = K) -> tritonq.QTensor:
    generator = torch.Generator().manual_seed(0)
    return tritonq.reference.quantize(torch.randn(n, k, generator=generator, dtype=HALF), tritonq.Scheme.parse(scheme)).relayout(layout)


def launches(stub, call) -> list[dict]:
    """What reached the driver through the launcher during ``call``, after ``kernel[grid]`` made each once more: both the same.

    A launch that the launcher refuses is None.
    """
    real, seen = Launcher.launch, []

    def twice(self, bits, addresses):
        if self.prepare():
            stub.watch(self._kept[-1].src.signature)
        direct = real(self, bits, addresses)
        seen.append(stub.last() if direct else None)
        return False  # `kernel[grid]` follows, with the same tensors

    Launcher.launch = twice
    try:
        for _ in range(2):  # the first call fills the cache, the second finds it
            before = len(seen), stub.launches
            call()
            assert len(seen) == before[0] + 1, "the launcher was asked once"
            if seen[-1] is not None:
                assert stub.launches == before[1] + 2
                assert seen[-1] == stub.last(), "what reached the driver is what kernel[grid] sends"
    finally:
        Launcher.launch = real
        stub.unwatch()
    return seen


@contextlib.contextmanager
def no_jit():
    """Fail where ``kernel[grid]`` is used."""
    real = JITFunction.run

    def run(self, *args, **kwargs):
        raise AssertionError(f"{self.__name__} went through JITFunction.run")

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = real
