"""Floor 3. Launch one kernel whose arguments are all constant but the addresses of its tensors, without ``JITFunction.run``.

``kernel[grid](...)`` inspects every argument, builds a key from what it finds and looks the compiled kernel up, on every launch. Where
shapes, strides and dtypes are known to be those of an earlier launch, the answer is known too: what is left is to read the addresses, the
device and the stream, and to call Triton's C launcher. docs/launch.md holds the design and what was measured.
"""
from __future__ import annotations

import threading

import torch

from .._triton import RELEASE, triton
from ..errors import UnsupportedError

_get_device = getattr(torch._C, "_cuda_getDevice", None)
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)

if triton is not None:
    from triton import knobs
    from triton.runtime.jit import JITFunction

    # Versions whose C launcher is known: 3.6 has one per signature, 3.7 to 3.9 one for all.
    _KNOWN = (3, 6) <= RELEASE <= (3, 9)
    _RUNTIME = knobs.runtime
    _ENTER, _EXIT = _RUNTIME.launch_enter_hook, _RUNTIME.launch_exit_hook  # HookChains; tools append to their calls
    _ENTER_CALLS, _EXIT_CALLS = getattr(_ENTER, "calls", True), getattr(_EXIT, "calls", True)

ALIGNED = 15  # Triton compiles two versions of a kernel: for addresses that 16 divides, and for others


def device_index(tensor: torch.Tensor) -> int | None:
    """Index of the GPU that a tensor lies on; None on the CPU, where an address means nothing to a driver."""
    return tensor.get_device() if tensor.is_cuda else None


def current_stream(index: int) -> int:
    """Handle of the stream that is current on a GPU."""
    return _raw_stream(index)


def empty_strided(device: torch.device):
    """(shape, strides, dtype) -> a new tensor on the current device of that kind: what Inductor's code calls, a third of torch.empty."""
    fast = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    fast = getattr(fast, f"_empty_strided_{device.type}", None)
    return fast or (lambda shape, strides, dtype: torch.empty(shape, dtype=dtype, device=device))


class Launcher:
    """One kernel, its grid, and every argument but the tensors, which come first in its signature.

    Args:
        kernel: a ``@jit`` function.
        grid: two integers.
        like: one tensor per tensor parameter, a dtype for one that is not made yet, None for one that is absent.
        constants: every other parameter by name, and launch options such as ``num_warps``.

    A call promises that dtypes, device and which tensors are None are those of ``like``: nobody looks again. What else may change from
    call to call (alignment, hooks, the stream) is read on every call. Calls from several threads and while a CUDA graph is captured are
    safe.
    """

    __slots__ = ("kernel", "grid", "device", "dtypes", "constants", "_go", "_lock", "_kept")

    def __init__(self, kernel, grid: tuple[int, int], like: tuple[torch.Tensor | torch.dtype | None, ...], constants: dict):
        self.kernel, self.grid, self.device, self.constants = kernel, (*grid, 1), device_index(like[0]), constants
        self.dtypes = tuple(value.dtype if isinstance(value, torch.Tensor) else value for value in like)
        # Since Triton 3.8 a CompiledKernel that dies unloads its module, also under a CUDA graph that was captured: keep every one.
        self._go, self._lock, self._kept = None, threading.Lock(), []

    def launch(self, bits: int, addresses: tuple[int | None, ...]) -> bool:
        """Launch on the current stream; ``device`` is the current one. ``bits``: all addresses or-ed.

        False where nothing was launched, and ``kernel[grid]`` has to do it: unaligned addresses, hooks, debugging, scratch memory, a
        driver or a version of Triton that is not known, the interpreter.
        """
        go = self._go or self.prepare()
        if not go:
            return False
        launched = go(bits, addresses)
        if launched is None:  # Triton's cache was dropped, with what is loaded here: build again, next time
            self._go = None
        return bool(launched)

    def prepare(self, *tensors: torch.Tensor | torch.dtype | None):
        """Compile and load, launching nothing; for tensors that are not aligned too, where given. Again, it does nothing."""
        with self._lock:
            if self._go is None:
                self._go = self._build()
        if self._go and any(isinstance(tensor, torch.Tensor) and tensor.data_ptr() & ALIGNED for tensor in tensors):
            self._compile(tensors)
        return self._go

    def _compile(self, tensors):
        """Triton's compiled kernel, loaded; None where Triton gives none. To Triton, a dtype is an aligned tensor."""
        with torch.cuda.device(self.device):
            compiled = self.kernel.warmup(*tensors, grid=self.grid, **self.constants)
            if hasattr(compiled, "result"):  # compiled by another thread
                compiled = compiled.result()
            if compiled is None:
                return None
            if compiled.module is None and torch.cuda.is_current_stream_capturing():
                rule = "modules cannot be loaded while a CUDA graph is captured"
                out = "run the product once, or call plan.prepare(x, q), before the capture"
                raise UnsupportedError(f"{self.kernel.__name__} is not loaded, and {rule}; {out}")
            compiled.run  # noqa: B018 - loads the module
            return compiled

    def _build(self):
        """What :meth:`launch` calls, or False where ``kernel[grid]`` has to do it."""
        kernel = self.kernel
        if self.device is None or _get_device is None or not _KNOWN or not isinstance(kernel, JITFunction) or kernel.pre_run_hooks:
            return False
        compiled = self._compile(self.dtypes)
        if compiled is None or any("tensordesc" in str(kind) for kind in compiled.src.signature.values()):
            return False
        run, metadata = compiled.run, compiled.metadata
        known = type(run).__module__ == "triton.backends.nvidia.driver" and type(run).__name__ == "CudaLauncher"
        if not known or getattr(run, "gsan_enabled", False) or metadata.global_scratch_size or metadata.profile_scratch_size:
            return False
        self._kept.append(compiled)
        return _launch_function(compiled, self)


def _launch_function(compiled, launcher: Launcher):
    """(bits, addresses) -> whether it launched, for :meth:`Launcher.launch`; None where Triton's cache was dropped.

    Where a tensor is absent, its address is compiled away and never read.
    """
    run, (gx, gy, gz), device, kernel = compiled.run, launcher.grid, launcher.device, launcher.kernel
    function, cooperative, pdl, metadata = compiled.function, run.launch_cooperative_grid, run.launch_pdl, compiled.packed_metadata
    first, names, hooks, caches = len(launcher.dtypes), kernel.arg_names, kernel.pre_run_hooks, kernel.device_caches
    entry, stream, (launch, passed, known) = caches[device], _raw_stream, _c_launcher(compiled, names, first)
    tail = tuple(launcher.constants[names[i]] for i in passed)

    def go(bits: int, addresses: tuple) -> bool | None:
        if (bits & ALIGNED or _ENTER_CALLS or _EXIT_CALLS or _RUNTIME.launch_enter_hook is not _ENTER
                or _RUNTIME.launch_exit_hook is not _EXIT or _RUNTIME.debug or hooks):  # fmt: skip
            return False
        if caches.get(device) is not entry:
            return None
        launch(gx, gy, gz, stream(device), function, cooperative, pdl, metadata, None, None, None, None, None, *known, (*addresses, *tail))
        return True

    return go


def _c_launcher(compiled, names: list[str], first: int) -> tuple:
    """Triton's C launcher in the form of 3.7 and later, which of the arguments from ``first`` on it takes, what tells it their types."""
    run = compiled.run
    if not hasattr(run, "kernel_signature"):  # Triton 3.6: a function per signature, which takes every argument
        each = run.launch

        def launch(gx, gy, gz, stream, function, cooperative, pdl, metadata, hooks, enter, leave, scratch, profile, arguments):
            each(gx, gy, gz, stream, function, cooperative, pdl, scratch, profile, metadata, hooks, enter, leave, *arguments)

        return launch, range(first, len(names)), ()
    # One function for all, told by annotations which arguments to skip; the constant ones need not be passed to be skipped.
    passed = [i for i in range(first, len(names)) if compiled.src.signature[names[i]] != "constexpr"]
    return run.launch, passed, ([run.arg_annotations[i] for i in (*range(first), *passed)], run.kernel_signature)
