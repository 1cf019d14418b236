"""Weights and products for the tests of the launch path, and what to watch in them."""
from __future__ import annotations

import contextlib

import torch
from triton.runtime.jit import JITFunction

import tritonq
from tritonq.kernels.launcher import Launcher, flat

HALF = torch.float16
N, K = 192, 4096


def weight(scheme: str = "int4.g128", layout: str = "row", n: int = N, k: int = K) -> tritonq.QTensor:
    generator = torch.Generator().manual_seed(0)
    return tritonq.reference.quantize(torch.randn(n, k, generator=generator, dtype=HALF), tritonq.Scheme.parse(scheme)).relayout(layout)


class _Pointer:
    """An address that passes for a tensor."""

    def __init__(self, address: int, dtype: torch.dtype):
        self.data_ptr, self.dtype = lambda: address, dtype


def _addresses(arguments: tuple) -> tuple:
    """What a C launcher was given, its last argument before constants: of Triton 3.6, and within a tuple of later ones."""
    return arguments[-2] if len(arguments) == 15 else arguments[-1][0]


def launches(stub, call) -> list[dict | None]:
    """What reached the driver without ``kernel[grid]`` during ``call``, made twice; each is the same as what ``kernel[grid]`` sends.

    A launch that ``kernel[grid]`` made is None.
    """
    slot, seen = Launcher.ready, []

    def ready(self):
        found = slot.__get__(self)
        if not found:
            return found
        stub.watch(self._kept[-1].src.signature)

        def both(*arguments):
            found[0](*arguments)
            seen.append(stub.last())
            pointers = [at and _Pointer(at, dtype) for at, dtype in zip(flat(_addresses(arguments)), self.dtypes, strict=True)]
            self.kernel[self.grid](*pointers, **self.constants)
            assert seen[-1] == stub.last(), "what reached the driver is what kernel[grid] sends"

        return both, *found[1:]

    Launcher.ready = property(ready, slot.__set__)
    try:
        for _ in range(2):  # the first call fills the cache, the second finds it
            before = len(seen), stub.launches
            call()
            direct = len(seen) > before[0]
            assert stub.launches == before[1] + (2 if direct else 1), "one launch"
            if not direct:
                seen.append(None)
    finally:
        Launcher.ready = slot
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
