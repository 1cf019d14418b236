"""Floor 5. Compile, instead of launching, what a call would launch, with the specialisation that the JIT would choose; nothing runs."""
from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Hashable, Iterator, MutableMapping
from typing import NamedTuple

import torch

from .compiler import Report, compile_source, report_of, require_triton

_POINTER = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.uint16: "*u16",
    torch.int32: "*i32",
    torch.uint32: "*u32",
    torch.int64: "*i64",
    torch.uint64: "*u64",
    torch.bool: "*i1",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
}
_DIVISIBLE = [["tt.divisibility", 16]]


class Launch(NamedTuple):
    """One launch that would have happened: kernel, the compiler's report, compile-time arguments and launch options, grid."""

    kernel: str
    report: Report
    constants: dict
    grid: tuple[int, ...]


@dataclasses.dataclass
class Specialisation:
    """What the JIT would decide from the arguments of one launch."""

    signature: dict
    constexprs: dict
    attrs: dict
    values: list

    def key(self) -> Hashable:
        """Equal for two launches of one kernel that run the same machine code."""
        return tuple(self.signature.items()), tuple(self.constexprs.items()), tuple(self.attrs)


def _integer_type(value: int) -> str:
    if -(2**31) <= value < 2**31:
        return "i32"
    return "i64" if value < 2**63 else "u64"


def specialise(kernel, arguments: dict) -> Specialisation:
    """The specialisation of a ``@triton.jit`` function for CPU tensors and Python numbers that stand for those of a launch."""
    spec = Specialisation({}, {}, {}, [])
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        frozen = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and not frozen):
            spec.constexprs[name] = value
            continue
        aligned = False
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu":
                raise TypeError(f"argument {name} of {kernel.__name__} is on {value.device}; only CPU tensors stand in for a launch")
            kind, aligned = _POINTER[value.dtype], value.data_ptr() % 16 == 0
        elif isinstance(value, bool):
            kind, value = "u1", int(value)
        elif isinstance(value, int):
            kind, aligned = _integer_type(value), value % 16 == 0
        elif isinstance(value, float):
            kind = "fp32"
        else:
            raise TypeError(f"argument {name} of {kernel.__name__}: a kernel takes no {type(value).__name__}")
        spec.signature[name] = parameter.annotation_type or kind
        spec.values.append(value)
        if aligned and not frozen and not parameter.do_not_specialize_on_alignment:
            spec.attrs[(index,)] = _DIVISIBLE
    return spec


def compile_launch(kernel, arch: int | str, *args, grid: tuple[int, ...] = (1,), known: MutableMapping | None = None, **kwargs) -> Launch:
    """``kernel[grid](*args, **kwargs)`` up to the launch; machine code that ``known`` holds is taken from there, other code put there."""
    options = {k: kwargs.pop(k) for k in list(kwargs) if k not in kernel.arg_names}
    bound = inspect.signature(kernel.fn).bind(*args, **kwargs)
    bound.apply_defaults()
    spec = specialise(kernel, dict(bound.arguments))
    key = (kernel.__name__, arch, tuple(sorted(options.items())), spec.key())
    report = None if known is None else known.get(key)
    if report is None:
        compiled = compile_source(kernel, spec.signature, spec.constexprs, spec.attrs, arch, options)
        report = report_of(compiled, arch, spec.signature)
        if known is not None:
            known[key] = report
    return Launch(kernel=kernel.__name__, report=report, constants={**spec.constexprs, **options}, grid=grid)


@contextlib.contextmanager
def launches(arch: int | str = 90, known: MutableMapping | None = None) -> Iterator[list[Launch]]:
    """Collects every launch inside the block, compiled for ``arch``. Results are uninitialised, and no thread may launch meanwhile.

    ``known``: reports of earlier blocks (a dict, empty at first), so that launches that differ in sizes alone are compiled once.
    """
    require_triton()
    from triton.runtime.jit import JITFunction

    from ..kernels import dequantize_matmul

    found: list[Launch] = []

    def compile_only(self, *args, grid, warmup, **kwargs):
        found.append(compile_launch(self, arch, *args, grid=tuple(grid), known=known, **kwargs))

    real, JITFunction.run = JITFunction.run, compile_only
    multiply, dequantize_matmul.product = dequantize_matmul.product, lambda a, b, out: None
    try:
        yield found
    finally:
        JITFunction.run, dequantize_matmul.product = real, multiply
