"""A machine that seems to have an H100: programs for a GPU run from end to end, on a CPU, before they first meet a real one.

torch.cuda answers, what is made "on cuda" is a CPU tensor, kernels are compiled and run by the simulator, and every time is made up. For
small shapes; what it says about speed is nothing.
"""
from __future__ import annotations

import contextlib
import time
import types

import torch
from torch.overrides import TorchFunctionMode

COPIES = 2  # different inputs per contender


def _here(value):
    """A device on the CPU in place of one on the GPU."""
    on_gpu = value == "cuda" or (isinstance(value, str) and value.startswith("cuda:"))
    on_gpu = on_gpu or (isinstance(value, torch.device) and value.type == "cuda")
    return torch.device("cpu") if on_gpu else value


class _OnTheCpu(TorchFunctionMode):
    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.cuda:
            return args[0]
        if "device" in kwargs:
            kwargs["device"] = _here(kwargs["device"])
        if function is torch.Tensor.to:
            args = tuple(map(_here, args))
        return function(*args, **kwargs)


class _Event:
    def __init__(self, **_):
        self.at = 0.0

    def record(self, *_):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return max(1000 * (other.at - self.at), 1e-3)


class _Stream:
    cuda_stream = 0

    def __init__(self, *_, **__):
        pass

    def wait_stream(self, *_):
        pass

    def synchronize(self):
        pass


class _Graph:
    replay = reset = lambda self: None


@contextlib.contextmanager
def _entered(*_, **__):
    yield


def install() -> None:
    """Change torch and tritonq for the whole process."""
    from tests.support import simulator
    from tritonq.bench import timing
    from tritonq.plans.core import Target

    properties = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132, name="pretended H100", total_memory=80 << 30)
    answers = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "device": _entered,
        "get_device_properties": lambda *_: properties, "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: (9, 0), "mem_get_info": lambda *_: (70 << 30, 80 << 30),
        "synchronize": lambda *_: None, "empty_cache": lambda: None, "Event": _Event, "Stream": _Stream, "stream": _entered,
        "current_stream": lambda *_: _Stream(), "CUDAGraph": _Graph, "graph": _entered, "is_current_stream_capturing": lambda: False,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    Target.of = classmethod(lambda cls, device=None: cls(backend="triton", device="cuda", arch=90))
    timing.MOST_COPIES = COPIES
    timing.roofs = lambda device: {"bytes_per_s": 3e12, "flops_per_s": 7.5e14, "int8_ops_per_s": 1.5e15}
    simulator.install(arch=90)
    _OnTheCpu().__enter__()
