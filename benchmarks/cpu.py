"""The CPU backend against torchao's primitives and bitsandbytes' native CPU code, and the memory that a large layer takes.

    python benchmarks/cpu.py                 everything, written to benchmarks/results/cpu.json and cpu.md
    python benchmarks/cpu.py --quick -o DIR  one small shape, written to DIR

Contenders take turns call by call, so that whatever else the machine does meets all of them; a row is the median with the 20th and
80th percentile. Results are compared before anything is timed. Memory is measured in a process of its own per row.
"""
from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

import tritonq

ROOT = Path(__file__).resolve().parent
SHAPES = ((4096, 4096), (4096, 14336))
DTYPES = (torch.float32, torch.bfloat16)
SCHEMES = ("int4.g128", "int8.channel", "nf4.g64")
# What the project asks of its CPU backend: time of tritonq over time of the peer.
LIMITS = {"torchao": 1.0, "bitsandbytes": 2.0}
MEMORY_LIMIT = 0.25


@dataclass(frozen=True, kw_only=True)
class Pair:
    """tritonq and a peer at the same work; ``check`` raises where their results differ."""

    operation: str
    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    check: Callable[[], None]


def quiet_imports():
    """torchao's primitives and bitsandbytes' functional module, without their warnings about absent GPUs."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    import bitsandbytes.functional
    import torchao.quantization.quant_primitives

    logging.disable(logging.NOTSET)
    return torchao.quantization.quant_primitives, bitsandbytes.functional


def integer_pairs(w: torch.Tensor, scheme: str, torchao) -> list[Pair]:
    """torchao's primitives do less: they leave one int4 code per byte and compute bfloat16 input in bfloat16."""
    parsed = tritonq.Scheme.parse(scheme)
    block = parsed.group_shape(*w.shape)
    high = 2 ** (parsed.format.bits - 1) - 1

    def theirs():
        kind = torchao.MappingType.SYMMETRIC
        scale, zero = torchao.choose_qparams_affine(w, kind, block, torch.int8, -high, high, eps=1e-9, scale_dtype=w.dtype)
        return torchao.quantize_affine(w, block, scale, zero, torch.int8, -high, high), scale, zero

    q, (codes, scale, zero) = tritonq.quantize(w, scheme), theirs()

    def decode():
        return torchao.dequantize_affine(codes, block, scale, zero, torch.int8, -high, high, output_dtype=w.dtype)

    def check_codes():
        distance = (q.codes().int() - codes.int()).abs()
        if distance.max() > 1 or (w.dtype == torch.float32 and (distance > 0).float().mean() > 1e-3):
            raise RuntimeError(f"{scheme}: codes differ from torchao's")

    def check_values():
        error = (q.dequantize() - decode()).float().abs()
        if error.mean() > 0.02 * w.float().abs().mean():
            raise RuntimeError(f"{scheme}: values differ from torchao's")

    return [
        Pair(operation="quantize", peer="torchao", ours=lambda: tritonq.quantize(w, scheme), theirs=theirs, check=check_codes),
        Pair(operation="dequantize", peer="torchao", ours=lambda: tritonq.dequantize(q), theirs=decode, check=check_values),
    ]


def nf4_pairs(w: torch.Tensor, scheme: str, functional) -> list[Pair]:
    """Equal work: codes, packing and float32 scales are the same on both sides, but for the order of nibbles and a few ties."""
    block = tritonq.Scheme.parse(scheme).group_size
    packed, state = functional.quantize_4bit(w, blocksize=block, quant_type="nf4")
    q = tritonq.quantize(w, scheme)

    def check_codes():
        differ = q.codes().flatten() != tritonq.unpack(packed.flatten(), 4, w.numel(), "high_first")
        if not torch.equal(q.scale.flatten(), state.absmax) or differ.float().mean() > 1e-5:  # it multiplies by 1 / absmax
            raise RuntimeError(f"{scheme}: codes differ from bitsandbytes'")

    def check_values():
        if (tritonq.dequantize(q) != functional.dequantize_4bit(packed, state)).float().mean() > 1e-5:
            raise RuntimeError(f"{scheme}: values differ from bitsandbytes'")

    return [
        Pair(operation="quantize", peer="bitsandbytes", ours=lambda: tritonq.quantize(w, scheme), check=check_codes,
             theirs=lambda: functional.quantize_4bit(w, blocksize=block, quant_type="nf4")),
        Pair(operation="dequantize", peer="bitsandbytes", ours=lambda: tritonq.dequantize(q), check=check_values,
             theirs=lambda: functional.dequantize_4bit(packed, state)),
    ]  # fmt: skip


def interleaved(pair: Pair, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each call, the two taking turns, after two untimed rounds."""
    times: tuple[list[float], list[float]] = ([], [])
    gc.disable()
    for i in range(repeats + 2):
        for call, into in zip((pair.ours, pair.theirs), times):
            start = time.perf_counter()
            call()
            if i >= 2:
                into.append((time.perf_counter() - start) * 1e3)
    gc.enable()
    return times


def spread(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=5, method="inclusive")
    return {"median_ms": round(statistics.median(times), 2), "p20_ms": round(cuts[0], 2), "p80_ms": round(cuts[3], 2)}


def speed_rows(shapes, repeats: int) -> list[dict]:
    torchao, functional = quiet_imports()
    rows = []
    for n, k in shapes:
        for dtype in DTYPES:
            w = torch.randn(n, k, generator=torch.Generator().manual_seed(0)).to(dtype)
            for scheme in SCHEMES:
                pairs = nf4_pairs(w, scheme, functional) if scheme.startswith("nf4") else integer_pairs(w, scheme, torchao)
                for pair in pairs:
                    pair.check()
                    ours, theirs = interleaved(pair, repeats)
                    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
                    rows.append({
                        "operation": pair.operation, "scheme": scheme, "shape": [n, k], "dtype": str(dtype).removeprefix("torch."),
                        "peer": pair.peer, "tritonq": spread(ours), "theirs": spread(theirs), "ratio": round(ratio, 3),
                        "limit": LIMITS[pair.peer],
                    })  # fmt: skip
                    print(speed_line(rows[-1]), flush=True)
    return rows


def speed_line(row: dict) -> str:
    def cell(times):
        return f"{times['median_ms']:.1f} ({times['p20_ms']:.1f} - {times['p80_ms']:.1f})"

    n, k = row["shape"]
    cells = [row["operation"], row["scheme"], f"{n} x {k}", row["dtype"], cell(row["tritonq"]), f"{row['peer']} {cell(row['theirs'])}",
             f"{row['ratio']:.2f}", f"{row['limit']:.0f}"]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


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


def memory_row(scheme: str, dtype: torch.dtype, n: int, k: int) -> dict:
    """Peak memory of one quantize beyond input and output, in a process of its own."""
    # Linux alone: the peak is read from /proc.
    command = [sys.executable, "-c", MEMORY_PROGRAM, scheme, str(dtype).removeprefix("torch."), str(n), str(k)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "MALLOC_ARENA_MAX": "2"})
    weight, grown, output = map(int, answer.stdout.split())
    extra = max(grown - output, 0)
    return {"scheme": scheme, "dtype": str(dtype).removeprefix("torch."), "shape": [n, k], "input_mb": round(weight / 1e6),
            "output_mb": round(output / 1e6), "extra_mb": round(extra / 1e6, 1), "extra_share": round(extra / weight, 4),
            "limit": MEMORY_LIMIT}  # fmt: skip


def memory_line(row: dict) -> str:
    n, k = row["shape"]
    sizes = [str(row[name]) for name in ("input_mb", "output_mb", "extra_mb")]
    return "| " + " | ".join([row["scheme"], f"{n} x {k}", row["dtype"], *sizes, f"{row['extra_share']:.1%}"]) + " |"


def machine() -> dict:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    packages = {name: version(name) for name in ("torch", "torchao", "bitsandbytes", "numpy")}
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
            "tritonq": tritonq.__version__, **packages}  # fmt: skip


def markdown(result: dict) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return "\n".join([
        "# CPU backend", "", "Written by `python benchmarks/cpu.py`. " + facts + ".", "",
        "Milliseconds, median (20th - 80th percentile), contenders taking turns; the ratio is the median over neighbouring calls.",
        "torchao's primitives leave one int4 code per byte and compute bfloat16 in bfloat16; tritonq packs two and computes in float32.",
        "bitsandbytes does the same work as tritonq: equal scales, equal codes but for ties.", "",
        "| operation | scheme | shape | dtype | tritonq | peer | ratio | limit |", "|---|---|---|---|---|---|---|---|",
        *map(speed_line, result["speed"]), "",
        f"Peak memory of one quantize beyond input and output, in a process of its own (limit {MEMORY_LIMIT:.0%} of the input):", "",
        "| scheme | shape | dtype | input MB | output MB | extra MB | share |", "|---|---|---|---|---|---|---|",
        *map(memory_line, result["memory"]), "",
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, and return 1 where a limit is not held."""
    parser = argparse.ArgumentParser(description="tritonq's CPU backend against torchao and bitsandbytes")
    parser.add_argument("--quick", action="store_true", help="one small shape, few repeats")
    parser.add_argument("--repeats", type=int, default=11, help="timed calls per contender (default 11)")
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "results", help="folder for cpu.json and cpu.md")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = {"machine": machine()}
    print("| operation | scheme | shape | dtype | tritonq ms | peer ms | ratio | limit |")
    result["speed"] = speed_rows(((1024, 4096),) if options.quick else SHAPES, 5 if options.quick else options.repeats)
    n, k = (2048, 8192) if options.quick else (16384, 16384)  # 1 GiB of float32
    result["memory"] = []
    for scheme in SCHEMES if options.quick else (*SCHEMES, "nf4.g64.dq", "nvfp4", "uint4.tensor", "int8.column"):
        result["memory"].append(memory_row(scheme, torch.float32, n, k))
        print(memory_line(result["memory"][-1]), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output / "cpu.md").write_text(markdown(result))
    slow = [row for row in result["speed"] if row["ratio"] > row["limit"]]
    large = [row for row in result["memory"] if row["extra_share"] > row["limit"]]
    for row in slow + large:
        print("limit not held:", row)
    return 1 if slow or large else 0


if __name__ == "__main__":
    sys.exit(main())
