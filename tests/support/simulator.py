"""``kernel[grid](cpu tensors)`` compiles for a CUDA architecture and runs the PTX on the CPU: the third way to run a kernel.

``install(arch=90)`` redirects every ``@triton.jit`` launch of this process until ``uninstall()``. Compiled kernels are kept per
specialisation, as the JIT keeps them. ``TRITON_INTERPRET`` must not be set. Compilation ends with PTX, an eighth of the time of
tests/compiled less, and is verified once per stage, a third less: what ptxas makes of the kernels is asked by the tests of machine code,
whether each pass leaves a valid module by ``tests/compiled/test_passes.py``, and both here under ``TRITONQ_TEST_FULL=1``.
"""
from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Iterator

from triton import knobs
from triton.runtime.jit import JITFunction

from tritonq._triton import SCATTERED_REDUCTIONS_FAIL
from tritonq.codegen.compiler import compile_source
from tritonq.codegen.launches import Specialisation, specialise
from tritonq.codegen.ttgir import scattered_reductions

from . import ptx_sim
from .passes import verified_once_per_stage
from .shapes import FULL

_real_run = JITFunction.run
_kernels: dict = {}


@dataclasses.dataclass
class Simulator:
    """The settings and counters of an installed simulator.

    ``options`` are launch options forced on every kernel (``num_warps=8``). ``lazy`` lets asynchronous copies and matrix instructions take
    effect as late as their waits allow; ``order`` maps the number of blocks to the sequence in which they run. ``last`` is Triton's
    compiled kernel of the latest launch (``last.asm["ptx"]``).
    """

    arch: int
    options: dict = dataclasses.field(default_factory=dict)
    lazy: bool = False
    order: Callable[[int], Iterable[int]] | None = None
    launches: int = 0
    compiles: int = 0
    steps: int = 0
    unfenced: int = 0
    last: object = None


_current: Simulator | None = None


def _freeze(value):
    """A hashable stand-in that tells apart what the compiler tells apart (1, 1.0 and True differ; functions by identity)."""
    if isinstance(value, (tuple, list)):
        return tuple(_freeze(part) for part in value)
    return (type(value).__name__, value if isinstance(value, (int, float, str, bool, type(None))) else id(value))


def _no_machine_code(*stage_arguments):
    """Triton's hook on the stages of a compilation; without arguments it is asked for its part of the cache's key."""
    if not stage_arguments:
        return "no machine code", "no machine code"
    stages = stage_arguments[1]
    stages["cubin"] = lambda ptx, metadata: b""
    return None


@contextlib.contextmanager
def _as_far_as_ptx() -> Iterator[None]:
    """Kernels without machine code have a cache of their own: Triton 3.6 does not ask the hook for a key."""
    if FULL:
        yield
        return
    with knobs.cache.scope(), knobs.runtime.scope(), verified_once_per_stage():
        knobs.cache.dir = os.path.join(knobs.cache.dir, "ptx")
        knobs.runtime.add_stages_inspection_hook = _no_machine_code
        yield


def _compile(kernel: JITFunction, spec: Specialisation, options: dict):
    key = (
        id(kernel),
        _current.arch,
        tuple(spec.signature.items()),
        tuple((name, _freeze(value)) for name, value in spec.constexprs.items()),
        tuple(spec.attrs),
        tuple(sorted((name, _freeze(value)) for name, value in options.items())),
    )
    if key not in _kernels:
        with _as_far_as_ptx():
            compiled = compile_source(kernel, spec.signature, spec.constexprs, spec.attrs, _current.arch, options)
        if SCATTERED_REDUCTIONS_FAIL:
            assert not (wrong := scattered_reductions(compiled.asm["ttgir"])), f"{kernel.__name__}: {wrong}"
        _kernels[key] = compiled, kernel, spec.constexprs  # the last two keep the identities in the key alive
        _current.compiles += 1
    return _kernels[key][0]


def _run(self: JITFunction, *args, grid, warmup, **kwargs):
    options = {**_current.options, **{k: kwargs.pop(k) for k in list(kwargs) if k not in self.arg_names}}
    bound = inspect.signature(self.fn).bind(*args, **kwargs)
    bound.apply_defaults()
    compiled = _compile(self, spec := specialise(self, dict(bound.arguments)), options)
    _current.last = compiled
    if warmup:
        return compiled
    size = tuple(int(extent) for extent in (grid({**bound.arguments, **options}) if callable(grid) else grid))
    meta = compiled.metadata
    _current.launches += 1
    run = ptx_sim.launch(
        compiled.asm["ptx"],
        size,
        spec.values,
        num_warps=meta.num_warps,
        shared=meta.shared,
        lazy=_current.lazy,
        order=_current.order,
    )
    _current.steps += run.steps
    _current.unfenced += run.unfenced
    return compiled


def install(arch: int = 90, *, lazy: bool = False, **options) -> Simulator:
    """Send every kernel launch of this process to the simulator of ``arch`` (80, 89 or 90); returns its settings and counters.

    Raises:
        RuntimeError: ``TRITON_INTERPRET`` is set, so kernels were never compiled functions.
    """
    global _current
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("the simulator runs compiled kernels; TRITON_INTERPRET must not be set")
    _current = Simulator(arch=arch, options=options, lazy=lazy)
    JITFunction.run = _run
    return _current


def uninstall() -> None:
    """Give kernel launches back to Triton."""
    global _current
    _current = None
    JITFunction.run = _real_run
