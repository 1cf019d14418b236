"""Triton's own launch path on a machine without a GPU: what reaches the driver, and what the host spends on it.

Triton's host code (driver.c, the launchers it generates, ``JITFunction.run``) and tritonq run unmodified. Replaced is what lies below:

- ``libcuda.so.1``: stub_cuda.c, compiled here, whose cuLaunchKernelEx records the launch;
- the primitives of torch.cuda that a CPU build of torch lacks: stub_torch.c.

Missing from every time measured above it: the real cuLaunchKernelEx, cuPointerGetAttribute and torch's CUDA allocator.

``install()`` changes torch and Triton for the whole process: give it a process of its own. CPU tensors then act as tensors on device 0.
"""
from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch
import triton

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which(os.environ.get("CC", "gcc"))


class Stub:
    """The fake driver: counters, the last launch, streams and devices."""

    def __init__(self, library: ctypes.CDLL, extension):
        self._library, self._extension, self._sizes = library, extension, []
        library.stub_count.restype = ctypes.c_long
        library.stub_last.restype = library.stub_parameters.restype = ctypes.c_void_p
        self.current_device = extension.get_device
        self.set_device = extension.set_device
        self.set_stream = extension.set_stream  # (device, handle)

    launches = property(lambda self: self._library.stub_count(0))
    loads = property(lambda self: self._library.stub_count(1))
    unloads = property(lambda self: self._library.stub_count(2))

    def capture(self, on: bool) -> None:
        """While on, device 0's stream, a side stream as in torch.cuda.graph, is being captured, and loading a module fails."""
        self.set_stream(0, 0x6000 if on else 0)
        self._library.stub_capture(int(on))

    def watch(self, signature: dict[str, str]) -> None:
        """Copy the parameters of coming launches; ``signature`` is ``compiled.src.signature``. Triton adds two scratch pointers."""
        width = {"i1": 1, "u1": 1, "i8": 1, "i32": 4, "i64": 8, "fp32": 4}
        kinds = [kind for kind in signature.values() if kind != "constexpr"]
        self._sizes = [8 if kind.startswith("*") else width[kind] for kind in kinds] + [8, 8]
        self._library.stub_sizes(len(self._sizes), (ctypes.c_int * len(self._sizes))(*self._sizes))

    def unwatch(self) -> None:
        self._sizes = []
        self._library.stub_sizes(0, (ctypes.c_int * 0)())

    def last(self) -> dict:
        """Grid, block, stream, function, attributes and the watched parameters' bytes of the latest launch."""
        address = self._library.stub_last()
        words = (ctypes.c_uint * 6).from_address(address)
        handles = (ctypes.c_ulonglong * 2).from_address(address + 24)
        attributes = (ctypes.c_uint * 4).from_address(address + 40)
        raw = ctypes.string_at(self._library.stub_parameters(), 128 * 16)
        return {
            "grid": tuple(words[:3]), "threads": words[3], "shared": words[4], "attributes": list(attributes[: words[5]]),
            "stream": handles[0], "function": handles[1],
            "parameters": [raw[16 * i : 16 * i + size] for i, size in enumerate(self._sizes)],
        }  # fmt: skip


def _compile(source: str, out: Path, *flags: str) -> None:
    command = [COMPILER, "-O2", "-w", "-shared", "-fPIC", str(HERE / source), "-o", str(out), *flags]
    subprocess.run(command, check=True)


def install(folder: Path, capability: tuple[int, int] = (9, 0), devices: int = 1) -> Stub:
    """Build the fake driver in ``folder``, make it Triton's active one and torch's CUDA. Needs a C compiler and a CPU build of torch."""
    assert torch.version.cuda is None, "torch has CUDA: the stub is for CPU builds"
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    library = folder / "libcuda.so.1"
    if not library.exists():
        _compile("stub_cuda.c", library, f"-I{include}", "-Wl,-soname,libcuda.so.1")
        (folder / "libcuda.so").symlink_to(library.name)
        _compile("stub_torch.c", folder / "stub_torch.so", f"-I{sysconfig.get_paths()['include']}")
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)  # what Triton links its helper against
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # a later dlopen("libcuda.so.1") finds this one
    loaded.stub_config(devices, *capability)
    spec = importlib.util.spec_from_file_location("stub_torch", folder / "stub_torch.so")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)

    torch._C._cuda_getCurrentRawStream = extension.raw_stream
    torch._C._cuda_getDevice = extension.get_device
    torch._C._cuda_setDevice = extension.set_device
    torch._C._cuda_isCurrentStreamCapturing = extension.capturing
    # Lambdas: torch.compile wants each function under one name only.
    torch.cuda._exchange_device = lambda device: extension.exchange(device)
    torch.cuda._maybe_exchange_device = lambda device: extension.exchange(device)
    torch.cuda._initialized = True
    torch.cuda.device_count = lambda: devices
    torch.cuda.get_device_capability = lambda device=None: capability
    torch.cuda.set_device = lambda device: extension.set_device(device)
    torch.cuda.is_current_stream_capturing = lambda: extension.capturing()
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    driver.set_active(CudaDriver())
    from tritonq.kernels import launcher

    launcher.device_index = lambda tensor: 0
    launcher.get_device, launcher.raw_stream = extension.get_device, extension.raw_stream
    return Stub(loaded, extension)
