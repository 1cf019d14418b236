"""Offline compilation of a Triton kernel for an architecture that is not here, and what the compiler made of it.

>>> report = compile_kernel(kernel, {"x": "*fp16", "n": "i32"}, {"BLOCK": 128}, arch=90, num_warps=4)
>>> report.registers, report.spills, report.instructions, report.global_loads
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
from collections.abc import Collection, Mapping

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?);")
_LABEL = re.compile(r"^\s*(\.L_?\w+):")
_BRANCH_TARGET = re.compile(r"`\((\.L\w+)\)")
_MATRIX = ("HGMMA", "IGMMA", "QGMMA", "HMMA", "IMMA", "DMMA", "UTCHMMA", "UTCQMMA", "OMMA")
_NOT_WORK = ("NOP", "BRA", "EXIT")  # padding after EXIT is an endless BRA and NOPs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One machine instruction: ``opcode`` with its modifiers (``LDG.E.128.CONSTANT``), operands and predicate (``@!P0`` or "")."""

    address: int
    opcode: str
    operands: str
    predicate: str

    @property
    def kind(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def width(self) -> int:
        """Bits that a load or store moves per thread (32 where the opcode names no width)."""
        for part in self.opcode.split(".")[1:]:
            if part in ("U8", "S8"):
                return 8
            if part in ("U16", "S16"):
                return 16
            if part in ("64", "128", "256"):
                return int(part)
        return 32


def parse_sass(text: str) -> tuple[list[Instruction], list[list[Instruction]]]:
    """The instructions of an ``nvdisasm -c`` listing up to the final padding, and its loops (backward branches), innermost first."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(Instruction(address=int(found[1], 16), opcode=found[3], operands=found[4], predicate=found[2] or ""))
            target = _BRANCH_TARGET.search(found[4]) if found[3].startswith("BRA") else None
            # a branch to itself is the trap that pads the end of the code
            if target and labels.get(target[1], len(instructions)) < len(instructions) - 1:
                loops.append(instructions[labels[target[1]] :])
    while instructions and instructions[-1].kind in _NOT_WORK and instructions[-1].kind != "EXIT":
        instructions.pop()
    return instructions, sorted(loops, key=len)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What one compilation produced. CUDA targets have ``ptx`` and ``cubin``; HIP targets have ``amdgcn`` and registers only."""

    arch: int | str
    ttgir: str
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
        """The machine code as text (nvdisasm)."""
        return _tool("nvdisasm", "-c", blob=self.cubin)

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

    @property
    def main_loop(self) -> list[Instruction]:
        """The shortest loop with a matrix instruction, else the longest loop, else all instructions."""
        with_matrix = [loop for loop in self.loops if any(i.kind in _MATRIX for i in loop)]
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


def _tool(name: str, *arguments: str, blob: bytes) -> str:
    """Run one of the binary tools of the Triton wheel on a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "kernel.cubin")
        path.write_bytes(blob)
        done = subprocess.run([os.fspath(_TOOLS / name), *arguments, os.fspath(path)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[:300]}")
    return done.stdout


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


def target_for(arch: int | str) -> GPUTarget:
    """80, 89, 90, 100, 120 are CUDA targets; names such as "gfx942" are HIP targets."""
    return GPUTarget("cuda", arch, 32) if isinstance(arch, int) else GPUTarget("hip", arch, 64)


def compile_source(fn, signature: Mapping[str, str], constexprs: Mapping[str, object], attrs: Mapping, arch: int | str, options: Mapping):
    """``triton.compile`` with full control over the specialisation; returns Triton's compiled kernel."""
    full = {name: "constexpr" if name in constexprs else signature[name] for name in fn.arg_names}
    source = ASTSource(fn=fn, signature=full, constexprs=dict(constexprs), attrs=dict(attrs))
    return triton.compile(source, target=target_for(arch), options=dict(options))


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
    return report_of(kernel, arch)


def report_of(kernel, arch: int | str) -> Report:
    """The report of one of Triton's compiled kernels."""
    common = {"arch": arch, "ttgir": kernel.asm["ttgir"], "shared": kernel.metadata.shared, "num_warps": kernel.metadata.num_warps}
    if isinstance(arch, int):
        cubin = kernel.asm["cubin"]
        return Report(**common, ptx=kernel.asm["ptx"], cubin=cubin, **_cuda_resources(cubin))
    return Report(**common, amdgcn=kernel.asm["amdgcn"], **_hip_resources(kernel.asm["amdgcn"]))
