"""Floor 3. Launch one kernel whose arguments are all constant but the addresses of its tensors, without ``JITFunction.run``.

``kernel[grid](...)`` inspects every argument, builds a key from what it finds and looks the compiled kernel up, on every launch. Where
shapes, strides and dtypes are known to be those of an earlier launch, the answer is known too: what is left is to read the addresses, the
device and the stream, and to call Triton's C launcher. docs/launch.md holds the design and what was measured.
"""
from __future__ import annotations

import threading
from types import SimpleNamespace

import torch

from .._triton import RELEASE, triton
from ..errors import UnsupportedError

get_device = getattr(torch._C, "_cuda_getDevice", None)
raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)

if triton is not None:
    from triton import knobs
    from triton.runtime.jit import JITFunction

    # Versions whose C launcher is known: 3.6 has one per signature, 3.7 to 3.9 one for all.
    # Where TRITON_DEBUG was set, every launch is inspected.
    _KNOWN = (3, 6) <= RELEASE <= (3, 9) and not getattr(type(knobs.runtime), "debug", True)
    # What somebody has set stands in the settings' own dictionary; the defaults are their class's.
    _RUNTIME, SETTINGS = knobs.runtime, vars(knobs.runtime)
    _ENTER, _EXIT = _RUNTIME.launch_enter_hook, _RUNTIME.launch_exit_hook  # HookChains; tools append to their calls
    ENTER_CALLS, EXIT_CALLS = getattr(_ENTER, "calls", True), getattr(_EXIT, "calls", True)

UNALIGNED = 15  # bits of an address that 16 does not divide: Triton compiles another version of a kernel for those


def watched() -> bool:
    """Whether Triton is to debug every launch, or to call hooks in the place of its own."""
    return _RUNTIME.debug or _RUNTIME.launch_enter_hook is not _ENTER or _RUNTIME.launch_exit_hook is not _EXIT


def device_index(tensor: torch.Tensor) -> int | None:
    """Index of the GPU that a tensor lies on; None on the CPU, where an address means nothing to a driver."""
    return tensor.get_device() if tensor.is_cuda else None


def current_stream(index: int) -> int:
    """Handle of the stream that is current on a GPU."""
    return raw_stream(index)


def flat(values: tuple):
    """The members of a tuple, and those of the tuples among them."""
    for value in values:
        if isinstance(value, tuple):
            yield from value
        else:
            yield value


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
        like: one tensor per tensor parameter, a dtype for one that is not made yet, None for one that is absent; in groups or single.
        constants: every other parameter by name, and launch options such as ``num_warps``.

    Attributes:
        ready: Triton's C launcher and its arguments, in the order of :func:`tritonq.kernels.bound._runner`. None: to be prepared. False:
            only ``kernel[grid]`` can do it, because of scratch memory, a driver or a version of Triton that is not known, the interpreter.

    Whoever launches promises that dtypes, device and which tensors are None are those of ``like``, and looks at what else may change from
    call to call: the current device, alignment, hooks, the settings of Triton.
    """

    __slots__ = ("kernel", "grid", "device", "groups", "dtypes", "constants", "ready", "_lock", "_kept")

    def __init__(self, kernel, grid: tuple[int, int], like: tuple, constants: dict):
        self.kernel, self.grid, self.device, self.constants = kernel, (*grid, 1), device_index(like[0]), constants
        self.groups = tuple(len(each) if isinstance(each, tuple) else None for each in like)
        self.dtypes = tuple(value.dtype if isinstance(value, torch.Tensor) else value for value in flat(like))
        # Since Triton 3.8 a CompiledKernel that dies unloads its module, also under a CUDA graph that was captured: keep every one.
        self.ready, self._lock, self._kept = None, threading.Lock(), []

    def prepare(self, *tensors: torch.Tensor | torch.dtype | tuple | None):
        """Compile and load, launching nothing; for tensors (as ``like``) that are not aligned too. Again, it does nothing."""
        with self._lock:
            if self.ready is None:
                self.ready = self._build()
        tensors = tuple(flat(tensors))
        if self.ready and any(isinstance(tensor, torch.Tensor) and tensor.data_ptr() & UNALIGNED for tensor in tensors):
            self._compile(tensors)
        return self.ready

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
        """:attr:`ready`."""
        kernel = self.kernel
        if self.device is None or get_device is None or not _KNOWN or not isinstance(kernel, JITFunction):
            return False
        compiled = self._compile(self.dtypes)
        if compiled is None or any("tensordesc" in str(kind) for kind in compiled.src.signature.values()):
            return False
        run, metadata = compiled.run, compiled.metadata
        known = type(run).__module__ == "triton.backends.nvidia.driver" and type(run).__name__ == "CudaLauncher"
        if not known or getattr(run, "gsan_enabled", False) or metadata.global_scratch_size or metadata.profile_scratch_size:
            return False
        self._kept.append(compiled)
        # What is constant to the compiled kernel need not be passed, and tuples are flattened by the C launcher.
        names, first = kernel.arg_names, len(self.dtypes)
        kinds = [compiled.src.signature[name] for name in names]
        each, passed = iter(kinds[:first]), [i for i in range(first, len(names)) if kinds[i] != "constexpr"]
        grouped = tuple(next(each) if size is None else tuple(next(each) for _ in range(size)) for size in self.groups)
        signature = grouped, tuple(kinds[i] for i in passed)
        if hasattr(run, "kernel_signature"):  # one function for all, told which arguments to take from which tuples
            from triton.backends.nvidia.driver import annotate_arguments

            launch, told = run.launch, (annotate_arguments(signature), run.kernel_signature)
        else:  # Triton 3.6: a function per signature
            launch, told = type(run)(SimpleNamespace(signature=dict(enumerate(signature)), constants={}), metadata).launch, (None, None)
        return (launch, *self.grid, compiled.function, run.launch_cooperative_grid, run.launch_pdl, compiled.packed_metadata, *told,
                tuple(self.constants[names[i]] for i in passed))  # fmt: skip
