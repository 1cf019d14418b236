"""The CPU backend against torchao's primitives and bitsandbytes' native CPU code, and the memory that a large layer takes.

Contenders take turns call by call, so that whatever else the machine does meets all of them; a row is the median with the 20th and
80th percentile, its ratio the median over neighbouring calls. Results are compared before anything is timed. Memory is measured in a
process of its own per row.
"""
from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..dtypes import dtype_name
from ..formats.packing import unpack
from ..ops import dequantize, quantize
from ..scheme import Scheme
from .peers import Missing, load
from .results import Results, Row
from .shapes import Shape
from .suite import Bench, Case, Suite
from .timing import Times

DTYPES = (torch.float32, torch.bfloat16)
# What the project asks of its CPU backend: time of tritonq over time of the peer, and memory beyond input and output over the input.
LIMITS = {"torchao": 1.0, "bitsandbytes": 2.0}
MEMORY_LIMIT = 0.25


class Differs(Exception):
    """The two sides do not compute the same."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """tritonq and a peer at the same work; ``check`` raises Differs where their results are not the same."""

    operation: str
    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    check: Callable[[], None]


def integer_pairs(w: torch.Tensor, scheme: str) -> list[Pair]:
    """torchao's primitives do less: they leave one int4 code per byte and compute bfloat16 input in bfloat16."""
    torchao = load("torchao.quantization.quant_primitives")
    parsed = Scheme.parse(scheme)
    block = parsed.group_shape(*w.shape)
    high = 2 ** (parsed.format.bits - 1) - 1

    def theirs():
        kind = torchao.MappingType.SYMMETRIC
        scale, zero = torchao.choose_qparams_affine(w, kind, block, torch.int8, -high, high, eps=1e-9, scale_dtype=w.dtype)
        return torchao.quantize_affine(w, block, scale, zero, torch.int8, -high, high), scale, zero

    q, (codes, scale, zero) = quantize(w, scheme), theirs()

    def decode():
        return torchao.dequantize_affine(codes, block, scale, zero, torch.int8, -high, high, output_dtype=w.dtype)

    def check_codes():
        distance = (q.codes().int() - codes.int()).abs()
        if distance.max() > 1 or (w.dtype == torch.float32 and (distance > 0).float().mean() > 1e-3):
            raise Differs("codes differ from torchao's")

    def check_values():
        error = (q.dequantize() - decode()).float().abs()
        if error.mean() > 0.02 * w.float().abs().mean():
            raise Differs("values differ from torchao's")

    return [
        Pair(operation="quantize", peer="torchao", ours=lambda: quantize(w, scheme), theirs=theirs, check=check_codes),
        Pair(operation="dequantize", peer="torchao", ours=lambda: dequantize(q), theirs=decode, check=check_values),
    ]


def nf4_pairs(w: torch.Tensor, scheme: str) -> list[Pair]:
    """Equal work: codes, packing and float32 scales are the same on both sides, but for the order of nibbles and a few ties."""
    functional = load("bitsandbytes.functional")
    block = Scheme.parse(scheme).group_size
    packed, state = functional.quantize_4bit(w, blocksize=block, quant_type="nf4")
    q = quantize(w, scheme)

    def check_codes():
        differ = q.codes().flatten() != unpack(packed.flatten(), 4, w.numel(), "high_first")
        if not torch.equal(q.scale.flatten(), state.absmax) or differ.float().mean() > 1e-5:  # it multiplies by 1 / absmax
            raise Differs("codes differ from bitsandbytes'")

    def check_values():
        if (dequantize(q) != functional.dequantize_4bit(packed, state)).float().mean() > 1e-5:
            raise Differs("values differ from bitsandbytes'")

    return [
        Pair(operation="quantize", peer="bitsandbytes", ours=lambda: quantize(w, scheme), check=check_codes,
             theirs=lambda: functional.quantize_4bit(w, blocksize=block, quant_type="nf4")),
        Pair(operation="dequantize", peer="bitsandbytes", ours=lambda: dequantize(q), check=check_values,
             theirs=lambda: functional.dequantize_4bit(packed, state)),
    ]  # fmt: skip


def interleaved(pair: Pair, repeats: int) -> tuple[list[float], list[float]]:
    """Microseconds of each call, the two taking turns, after two untimed rounds."""
    times: tuple[list[float], list[float]] = ([], [])
    gc.disable()
    for i in range(repeats + 2):
        for call, into in zip((pair.ours, pair.theirs), times):
            start = time.perf_counter()
            call()
            if i >= 2:
                into.append((time.perf_counter() - start) * 1e6)
    gc.enable()
    return times


def _speed(bench: Bench, shape: Shape, dtype: torch.dtype) -> Iterator[list[Row]]:
    w = torch.randn(shape.n, shape.k, generator=torch.Generator().manual_seed(0)).to(dtype)
    for scheme in bench.schemes:
        common = {"suite": "cpu", "shape": shape.name, "n": shape.n, "k": shape.k, "scheme": scheme, "dtype": dtype_name(dtype),
                  "source": "cpu", "command": f"tritonq bench cpu --shapes {shape.n}x{shape.k} --schemes {scheme}"}  # fmt: skip
        try:
            pairs = nf4_pairs(w, scheme) if scheme.startswith("nf4") else integer_pairs(w, scheme)
        except Missing as reason:
            yield [Row(op="quantize", name="peer", note=f"skipped: {reason}", **common)]
            continue
        for pair in pairs:
            yield _compared(pair, max(bench.replays // 2, 3), common)


def _compared(pair: Pair, repeats: int, common: dict) -> list[Row]:
    common = common | {"op": pair.operation, "sku": f"{pair.operation}/{common['scheme']}/{common['dtype']}"}
    try:
        pair.check()
    except Differs as error:
        return [Row(name="tritonq", fault=f"incorrect: {error}", **common)]
    ours, theirs = interleaved(pair, repeats)
    ratio, limit = statistics.median(a / b for a, b in zip(ours, theirs)), LIMITS[pair.peer]
    rows = [Row(name=name, **vars(Times.of(taken)), **common) for name, taken in (("tritonq", ours), (pair.peer, theirs))]
    rows[0].speedup[pair.peer] = 1 / ratio
    rows[0].figures.update(ratio=ratio, limit=limit)
    if ratio > limit:
        rows[0] = Row(**vars(rows[0]) | {"fault": f"takes {ratio:.2f} times as long as {pair.peer}, at most {limit:g}"})
    return rows


MEMORY_PROGRAM = """
import sys, torch, tritonq
scheme, dtype, n, k = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def peak():  # ru_maxrss would start from the parent's peak
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
small = tritonq.quantize(torch.randn(8, 512).to(dtype), scheme)
small.dequantize()
w = torch.empty(n, k, dtype=dtype).normal_()
before = peak()
q = tritonq.quantize(w, scheme)
print(w.nbytes, peak() - before, q.nbytes)
"""


def _memory(bench: Bench, shape: Shape) -> Iterator[list[Row]]:
    """Peak memory of one quantize beyond input and output, in a process of its own. Linux alone: the peak is read from /proc."""
    for scheme in bench.schemes:
        command = [sys.executable, "-c", MEMORY_PROGRAM, scheme, "float32", str(shape.n), str(shape.k)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "MALLOC_ARENA_MAX": "2"})
        weight, grown, output = map(int, answer.stdout.split())
        extra = max(grown - output, 0)
        share = extra / weight
        fault = f"takes {share:.1%} of the input beside it, at most {MEMORY_LIMIT:.0%}" if share > MEMORY_LIMIT else ""
        figures = {"input_mb": weight / 1e6, "output_mb": output / 1e6, "extra_mb": extra / 1e6, "extra_share": share}
        yield [Row(suite="cpu-memory", op="quantize", name="tritonq", scheme=scheme, dtype="float32", shape=shape.name, n=shape.n,
                   k=shape.k, figures=figures, source="cpu", fault=fault,
                   command=f"tritonq bench cpu-memory --shapes {shape.n}x{shape.k} --schemes {scheme}")]  # fmt: skip


def cases(bench: Bench) -> Iterator[Case]:
    for shape in bench.shapes:
        for dtype in DTYPES:
            title = f"{shape.name} {dtype_name(dtype)}"
            yield Case(title=title, steps=2 * len(bench.schemes), run=partial(_speed, bench, shape, dtype))


def memory_cases(bench: Bench) -> Iterator[Case]:
    for shape in bench.shapes:
        yield Case(title=shape.name, steps=len(bench.schemes), run=partial(_memory, bench, shape))


CPU = Suite(name="cpu", title="the CPU backend against torchao and bitsandbytes", cases=cases, schemes="int4.g128,int8.channel,nf4.g64",
            shapes="4096x4096,4096x14336", needs_gpu=False)  # fmt: skip
CPU_MEMORY = Suite(name="cpu-memory", title="memory beside a matrix that the CPU backend quantizes", cases=memory_cases,
                   schemes="int4.g128,int8.channel,nf4.g64,nf4.g64.dq,nvfp4,uint4.tensor,int8.column", shapes="16384x16384",
                   needs_gpu=False)  # fmt: skip


def markdown(results: Results) -> str:
    """The tables of the README, of the suites ``cpu`` and ``cpu-memory``."""
    about = results.about
    about = {"cpu": about["device"]} | about
    facts = ", ".join(f"{name} {about[name]}" for name in ("cpu", "cores", "threads", "python", "tritonq", "torch", "torchao",
                                                           "bitsandbytes", "numpy") if name in about)  # fmt: skip
    lines = [f"Written by `make bench-cpu`. {facts}.", "",
             "Milliseconds, median (20th - 80th percentile), contenders taking turns; the ratio is the median over neighbouring calls.",
             "torchao's primitives leave one int4 code per byte and compute bfloat16 in bfloat16; tritonq packs two and computes in "
             "float32.",
             "bitsandbytes does the same work as tritonq: equal scales, equal codes but for ties.", "",
             "| operation | scheme | shape | dtype | tritonq | peer | ratio | limit |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    timed = [row for row in results.rows if row.suite == "cpu" and row.us]
    for ours, theirs in zip(timed[::2], timed[1::2]):
        cells = [ours.op, ours.scheme, f"{ours.n} x {ours.k}", ours.dtype, _cell(ours), f"{theirs.name} {_cell(theirs)}",
                 f"{ours.figures['ratio']:.2f}", f"{ours.figures['limit']:.0f}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    limit = f"limit {MEMORY_LIMIT:.0%} of the input"
    lines += ["", f"Peak memory of one quantize beyond input and output, in a process of its own ({limit}):", "",
              "| scheme | shape | dtype | input MB | output MB | extra MB | share |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in (row for row in results.rows if row.suite == "cpu-memory"):
        sizes = [f"{row.figures['input_mb']:.0f}", f"{row.figures['output_mb']:.0f}", f"{row.figures['extra_mb']:.1f}"]
        lines.append("| " + " | ".join([row.scheme, f"{row.n} x {row.k}", row.dtype, *sizes, f"{row.figures['extra_share']:.1%}"]) + " |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    return f"{row.us / 1e3:.1f} ({row.p20 / 1e3:.1f} - {row.p80 / 1e3:.1f})"
