"""Floor 5. Compile a Triton kernel for a GPU that is not here, and what the compiler made of it.

``compile_kernel(kernel, {"x": "*fp16", "n": "i32"}, {"BLOCK": 128}, arch=90, num_warps=4)`` gives a :class:`Report`. The tools that read
binaries are those inside Triton's wheel; nothing is launched and no driver is loaded.
"""
from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Mapping

from .._triton import triton
from ..errors import UnsupportedError
from .pipes import busy
from .ptx import load_widths, unfenced
from .sass import MATRIX, Instruction, parse_sass, shortest_path

_WARNING = re.compile(r"\b(C75\d\d)\b\)?\s*:?\s*(.*)")
_WAIT = re.compile(r"warp_group_dot_wait\b.*?pendings = (\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What one compilation produced. CUDA targets have ``ptx`` and ``cubin``; HIP targets have ``amdgcn``, registers and spills only.

    ``registers`` per thread; ``stack`` and ``local`` in bytes per thread, ``shared`` in bytes per program; ``arguments`` are the names of
    the run-time arguments in the order of the PTX parameters.
    """

    arch: int | str
    ttgir: str
    arguments: tuple[str, ...] = ()
    ptx: str = ""
    amdgcn: str = ""
    cubin: bytes = b""
    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    num_warps: int = 4

    @property
    def spills(self) -> int:
        """Bytes of stack and local memory per thread; zero means that nothing was spilt."""
        return self.stack + self.local

    @functools.cached_property
    def sass(self) -> str:
        """The machine code as text (nvdisasm without its dataflow analysis, which changes no line and takes a quarter of its time)."""
        return _tool("nvdisasm", "-c", "-ndf", blob=self.cubin)

    @functools.cached_property
    def _parsed(self) -> tuple[list[Instruction], list[list[Instruction]]]:
        return parse_sass(self.sass)

    @property
    def instructions(self) -> list[Instruction]:
        """All machine instructions in program order."""
        return self._parsed[0]

    @property
    def loops(self) -> list[list[Instruction]]:
        """Every loop's instructions, shortest (innermost) first."""
        return self._parsed[1]

    @functools.cached_property
    def busy(self) -> collections.Counter[str]:
        """Cycles that one warp keeps each pipe busy, by all instructions once, see :func:`pipes.busy`."""
        return busy(self.instructions, self.arch)

    @functools.cached_property
    def busy_in_loop(self) -> collections.Counter[str]:
        """The same of the main loop, once."""
        return busy(self.main_loop, self.arch)

    @functools.cached_property
    def main_loop(self) -> list[Instruction]:
        """The shortest loop with a matrix instruction, else the longest loop, else all instructions (none on HIP)."""
        with_matrix = [loop for loop in self.loops if any(i.kind in MATRIX for i in loop)]
        if with_matrix:
            return with_matrix[0]
        return self.loops[-1] if self.loops else self.instructions

    def histogram(self, *, in_loop: bool = False, modifiers: bool = False) -> collections.Counter[str]:
        """How often each opcode occurs, in the whole kernel or its main loop, with or without modifiers."""
        chosen = self.main_loop if in_loop else self.instructions
        return collections.Counter(i.opcode if modifiers else i.kind for i in chosen)

    @property
    def global_loads(self) -> list[int]:
        """Bits per thread of each global load (LDG, and LDGSTS straight to shared memory) in program order."""
        return [i.width for i in self.instructions if i.kind in ("LDG", "LDGSTS")]

    @property
    def global_stores(self) -> list[int]:
        """Bits per thread of each global store in program order."""
        return [i.width for i in self.instructions if i.kind == "STG"]

    @functools.cached_property
    def shortest_path(self) -> int:
        """Instructions that a program without special cases executes, see :func:`sass.shortest_path`."""
        return shortest_path(self.sass)

    @functools.cached_property
    def loads(self) -> dict[str, list[int]]:
        """Bits per thread of each global load, by the pointer argument that it reads through."""
        return {self.arguments[i]: widths for i, widths in load_widths(self.ptx).items() if i < len(self.arguments)}

    @property
    def wgmma_in_flight(self) -> list[int]:
        """For each wait for wgmma, how many may still run after it; above 0, ptxas tends to serialise or to miscount (Triton 3.6)."""
        return [int(pendings) for pendings in _WAIT.findall(self.ttgir)]

    @property
    def unfenced(self) -> bool:
        """Whether wgmma may read what cp.async has not written yet, see :func:`ptx.unfenced`."""
        return unfenced(self.ptx)

    @functools.cached_property
    def warnings(self) -> list[str]:
        """ptxas's C75xx warnings: wgmma instructions that it had to serialise. Without wgmma it has none to give and is not run again."""
        if "wgmma" not in self.ptx and "setmaxnreg" not in self.ptx:
            return []
        return ptxas_warnings(self.ptx, self.arch)


def _tool(name: str, *arguments: str, blob: bytes) -> str:
    """Run one of the binary tools of the Triton wheel on a cubin."""
    tools = pathlib.Path(require_triton().__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "kernel.cubin")
        path.write_bytes(blob)
        done = subprocess.run([os.fspath(tools / name), *arguments, os.fspath(path)], capture_output=True, text=True)
    if done.returncode:
        raise UnsupportedError(f"{name} of this Triton refuses the code ({done.stderr.strip()[:200]}); name another architecture")
    return done.stdout


def require_triton():
    """The module, where kernels are compiled; refuses a process without Triton or with its interpreter."""
    if triton is None:
        raise UnsupportedError("compiling kernels needs Triton, which is not installed; pip install triton")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise UnsupportedError("TRITON_INTERPRET is set, so kernels are interpreted and never compiled; unset it")
    return triton


def ptxas_warnings(ptx: str, arch: int) -> list[str]:
    """The C75xx warnings ("Potential Performance Loss: wgmma instructions are serialized ...") of Triton's ptxas on this PTX."""
    from triton.backends.nvidia.compiler import get_ptxas

    gpu = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={gpu}", os.fspath(path), "-o", os.fspath(path.with_suffix(".cubin"))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas failed: {done.stderr[:300]}")
    return parse_warnings(done.stderr)


def parse_warnings(log: str) -> list[str]:
    """``"C7510: Potential Performance Loss: ..."``, each once, of a log of ptxas."""
    return list(dict.fromkeys(f"{code}: {text.strip()}" for code, text in _WARNING.findall(log)))


def _cuda_resources(cubin: bytes) -> dict[str, int]:
    text = _tool("cuobjdump", "--dump-resource-usage", blob=cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource line: {text[:200]}")
    return {"registers": int(found[1]), "stack": int(found[2]), "local": int(found[3])}


def _hip_resources(amdgcn: str) -> dict[str, int]:
    def number(pattern: str) -> int:
        found = re.search(pattern, amdgcn)
        return int(found[1]) if found else 0

    return {"registers": number(r"\.vgpr_count:\s+(\d+)"), "stack": number(r"\.private_segment_fixed_size:\s+(\d+)")}


def target_for(arch: int | str):
    """80, 89, 90, 100, 120 are CUDA targets; names such as "gfx942" are HIP targets.

    Raises:
        UnsupportedError: ptxas knows no such architecture, which Triton would find out by an assertion.
    """
    require_triton()
    from triton.backends.compiler import GPUTarget

    if isinstance(arch, int) and arch not in (known := _ptxas_archs(arch)):
        raise UnsupportedError(f"ptxas of this Triton knows no sm_{arch}; it knows {', '.join(f'sm_{other}' for other in known)}")
    return GPUTarget("cuda", arch, 32) if isinstance(arch, int) else GPUTarget("hip", arch, 64)


@functools.cache
def _ptxas_archs(arch: int) -> list[int]:
    from triton.backends.nvidia.compiler import get_ptxas

    told = subprocess.run([get_ptxas(arch).path, "--help"], capture_output=True, text=True).stdout
    return sorted({int(number) for number in re.findall(r"'sm_(\d+)'", told)})


def compile_source(fn, signature: Mapping[str, str], constexprs: Mapping[str, object], attrs: Mapping, arch: int | str, options: Mapping):
    """``triton.compile`` with full control over the specialisation; returns Triton's compiled kernel.

    Raises:
        UnsupportedError: a pass of the compiler fails, as for an architecture that it does not know.
    """
    full = {name: "constexpr" if name in constexprs else signature[name] for name in fn.arg_names}
    target = target_for(arch)
    from triton.compiler import ASTSource

    source = ASTSource(fn=fn, signature=full, constexprs=dict(constexprs), attrs=dict(attrs))
    try:
        return triton.compile(source, target=target, options=dict(options))
    except RuntimeError as error:
        name = f"sm_{arch}" if isinstance(arch, int) else arch
        raise UnsupportedError(f"Triton {triton.__version__} does not compile {fn.__name__} for {name}: {str(error)[:200]}") from error


def compile_kernel(
    fn,
    signature: Mapping[str, str],
    constexprs: Mapping[str, object],
    *,
    arch: int | str = 90,
    divisible: Collection[str] | None = None,
    **options,
) -> Report:
    """Compile a ``@triton.jit`` function for ``arch`` without a GPU.

    ``signature`` names the type of each run-time argument (``"*fp16"``, ``"*u8"``, ``"i32"``, ``"fp32"``), ``constexprs`` the value of each
    other one. Pointers count as 16-byte aligned and the integers named in ``divisible`` as multiples of 16, as the JIT finds them at
    run time; name pointers there too and exactly the named arguments are aligned. ``options`` are launch options such as ``num_warps``,
    ``num_stages``, ``enable_fp_fusion``.
    """
    pointers = {name for name in fn.arg_names if name not in constexprs and signature[name].startswith("*")}
    aligned = set(divisible or ())
    if not aligned & pointers:
        aligned |= pointers
    attrs = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(fn.arg_names) if name in aligned and name not in constexprs}
    kernel = compile_source(fn, signature, constexprs, attrs, arch, options)
    return report_of(kernel, arch, [name for name in fn.arg_names if name not in constexprs])


def report_of(kernel, arch: int | str, arguments: Iterable[str] = ()) -> Report:
    """The report of one of Triton's compiled kernels; ``arguments`` names its run-time arguments in order."""
    meta = kernel.metadata
    common = {"arch": arch, "ttgir": kernel.asm["ttgir"], "shared": meta.shared, "num_warps": meta.num_warps, "arguments": tuple(arguments)}
    if isinstance(arch, int):
        cubin = kernel.asm["cubin"]
        return Report(**common, ptx=kernel.asm["ptx"], cubin=cubin, **_cuda_resources(cubin))
    return Report(**common, amdgcn=kernel.asm["amdgcn"], **_hip_resources(kernel.asm["amdgcn"]))
