"""What the host spends on one warm launch, layer by layer, as a ratio to ``kernel[grid]`` with 16 arguments in the same run.

    python benchmarks/launch.py [--rounds 15] [--calls 1000] [--json]

Triton's own launch path runs above a driver that does nothing (tests/support/stub_driver.py): a GPU is neither needed nor used. Absent
from every line, that of ``kernel[grid]`` too, is the driver's cuLaunchKernelEx (1.5 to 2.5 us); torch's CPU allocator stands for CUDA's.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TRITONQ_BACKEND", "triton")
os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="tritonq-launch-"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

import tritonq  # noqa: E402
from tests.support.stub_driver import install  # noqa: E402

M, N, K = 8, 512, 4096  # small: above 128 KiB the CPU's allocator maps pages, which CUDA's never does
YARDSTICK = "kernel[grid], 16 arguments"
LIMITS = {"plan.run": 0.25, "matmul": 0.30, "op": 0.50}  # op: torch.ops.tritonq.matmul


@triton.jit
def yardstick(x, y, M, w, s, z, b, N, K, sx, sy, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, G: tl.constexpr, BIAS: tl.constexpr):
    """Ten tensors and sizes that the JIT inspects and five constants, the arguments of an ordinary quantized product."""
    o = tl.program_id(0) * BM + tl.arange(0, BM)
    v = tl.load(x + o * sx, mask=o < M, other=0.0) + tl.load(w + o, mask=o < N, other=0)
    v += tl.load(s + o, mask=o < K, other=0.0) + tl.load(z + o, mask=o < K, other=0.0)
    if BIAS:
        v += tl.load(b + o, mask=o < N, other=0.0)
    tl.store(y + o * sy, v, mask=o < M)


def cases() -> dict:
    """Label -> (function, limit or None). Everything is warm after the first call."""
    half = torch.float16
    x, y, b = torch.zeros(M, K, dtype=half), torch.empty(M, N, dtype=half), torch.zeros(N, dtype=half)
    w, s, z, v = (torch.zeros(N * 8, dtype=half) for _ in range(4))
    constants = {"N": N, "K": K, "sx": 1, "sy": N, "BM": 128, "BN": 64, "BK": 64, "G": 128, "BIAS": True, "num_warps": 4,
                 "num_stages": 3, "enable_fp_fusion": False}  # fmt: skip
    table = {YARDSTICK: (lambda: yardstick[(64, 1, 1)](x, y, M, w, s, z, v, **constants), None)}

    weight = torch.zeros(N, K, dtype=half)
    row = {name: tritonq.reference.quantize(weight, tritonq.Scheme.parse(name)) for name in ("int4.g128", "uint4.g128", "nf4.g64")}
    short = tritonq.reference.quantize(torch.zeros(N, 1024, dtype=half), tritonq.Scheme.parse("uint4.g128")).relayout("frag")
    frag = {name: q.relayout("frag") for name, q in row.items()}
    batch, decode = torch.zeros(M, 1024, dtype=half), torch.zeros(1, 1, K, dtype=half)
    for title, x_, q, bias in (
        ("uint4.g128, M=8", batch, short, None),
        ("uint4.g128, bias, M=8", batch, short, b),
        ("int4.g128, M=1, split-K", decode, frag["int4.g128"], None),
        ("nf4.g64, bias, M=8, split-K", x, frag["nf4.g64"], b),
        ("nf4.g64, layout row, M=8", x, row["nf4.g64"], None),
    ):
        plan = tritonq.select(tritonq.MatmulDesc.of(x_, q, bias))
        run = lambda plan=plan, x_=x_, q=q, bias=bias: plan.run(x_, q, bias=bias)  # noqa: E731
        table[f"plan.run, {title}"] = (run, LIMITS["plan.run"])
        if size := plan.workspace_size():
            scratch = torch.empty(size, dtype=torch.uint8)
            given = lambda plan=plan, x_=x_, q=q, bias=bias, scratch=scratch: plan.run(x_, q, bias=bias, workspace=scratch)  # noqa: E731
            table[f"plan.run, {title}, workspace given"] = (given, LIMITS["plan.run"])
        op = torch.ops.tritonq.matmul.default  # as compiled graphs hold it
        table[f"op, {title}"] = (lambda x_=x_, q=q, b=bias, op=op: op(x_, *q.operands, b), LIMITS["op"])
        named = lambda x_=x_, q=q, b=bias: torch.ops.tritonq.matmul(x_, *q.operands, b)  # noqa: E731
        table[f"op by its name, {title}"] = (named, LIMITS["op"])
        table[f"matmul, {title}"] = (lambda x_=x_, q=q, bias=bias: tritonq.matmul(x_, q, bias), LIMITS["matmul"])
    table["torch.empty(M, N)"] = (lambda: torch.empty(M, N, dtype=half, device=x.device), None)
    return table


def measure(table: dict, rounds: int, calls: int) -> list[dict]:
    """Contenders take turns; medians over rounds."""
    times = {name: [] for name in table}
    for function, _ in table.values():
        for _ in range(200):
            function()
    for _ in range(rounds):
        for name, (function, _) in table.items():
            start = time.perf_counter_ns()
            for _ in range(calls):
                function()
            times[name].append((time.perf_counter_ns() - start) / calls)
    base = times[YARDSTICK]
    return [
        {"name": name, "ns": round(statistics.median(taken)), "fastest_ns": round(min(taken)),
         "ratio": round(statistics.median(t / b for t, b in zip(taken, base, strict=True)), 3), "limit": table[name][1]}
        for name, taken in times.items()
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and return 1 where a limit is not held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of every contender (default 15)")
    parser.add_argument("--calls", type=int, default=1000, help="calls per turn (default 1000)")
    parser.add_argument("--no-grad", action="store_true", help="under torch.no_grad in place of torch.inference_mode")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tritonq-stub-") as folder:
        install(Path(folder))
        with torch.no_grad() if options.no_grad else torch.inference_mode():
            rows = measure(cases(), options.rounds, options.calls)
    machine = {"triton": triton.__version__, "torch": torch.__version__, "python": platform.python_version(),
               "tritonq": tritonq.__version__,
               "mode": "no_grad" if options.no_grad else "inference_mode", "rounds": options.rounds, "calls": options.calls}  # fmt: skip
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
    else:
        print("\n".join(lines(machine, rows)))
    return int(any(row["limit"] and row["ratio"] > row["limit"] for row in rows))


def lines(machine: dict, rows: list[dict]) -> list[str]:
    """A table in Markdown."""
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    head = [facts, "", "| call | ns | fastest | of kernel[grid] | limit |", "|---|---|---|---|---|"]
    body = []
    for row in rows:
        verdict = "" if row["limit"] is None else f"{row['limit']:.2f}" + ("" if row["ratio"] <= row["limit"] else " **not held**")
        body.append(f"| {row['name']} | {row['ns']} | {row['fastest_ns']} | {row['ratio']:.3f} | {verdict} |")
    return [*head, *body]


if __name__ == "__main__":
    sys.exit(main())
