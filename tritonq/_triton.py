"""Triton, where it is installed. Without it the device functions stay plain Python that nothing calls."""
from __future__ import annotations

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:

    class _Absent:
        """Stands in for ``triton.language`` in annotations such as ``tl.constexpr``; it computes nothing."""

        @staticmethod
        def constexpr(value=None):
            return value

    triton, tl = None, _Absent()

    def jit(fn=None, **_options):
        return fn if fn is not None else jit

# (3, 9) for Triton 3.9.0; None without Triton.
RELEASE = None if triton is None else tuple(int(part) for part in triton.__version__.split(".")[:2])

# Before 3.9 Triton puts no proxy fence between an asynchronous copy and the wgmma that reads what it wrote.
LACKS_PROXY_FENCE = RELEASE is not None and RELEASE < (3, 9)
# Before 3.8 Triton reduces over the wrong lanes where values of an axis lie in lanes that are no neighbours.
SCATTERED_REDUCTIONS_FAIL = RELEASE is not None and RELEASE < (3, 8)
# Whether Triton interprets the functions that @jit makes from here on: it looks at TRITON_INTERPRET when it makes one, never again.
INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)

if INTERPRETED:
    from .interpreter import install

    install()

if triton is None or INTERPRETED:

    def cuda_arch():
        """0: no PTX here."""
        return 0

else:

    @tl.core.builtin
    def cuda_arch(_semantic=None):
        """Inside a kernel: the compute capability times ten that it is compiled for (90 for sm_90), 0 where that is no NVIDIA GPU."""
        options = _semantic.builder.options
        return tl.constexpr(int(options.arch.removeprefix("sm")) if options.backend_name == "cuda" else 0)


__all__ = ["INTERPRETED", "LACKS_PROXY_FENCE", "RELEASE", "SCATTERED_REDUCTIONS_FAIL", "cuda_arch", "jit", "tl", "triton"]
