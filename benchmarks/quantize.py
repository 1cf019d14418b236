"""Quantize-and-pack against a device copy on this machine's GPU: bytes per second, interleaved, correctness first.

    python benchmarks/quantize.py [--schemes int4.g128,nf4.g64] [--shape 4096x14336] [--json FILE]

Every contender reads the same bfloat16 matrix; one run of each alternates, so that clocks and temperature are shared. Inputs rotate over
at least 256 MB, which no L2 cache holds. Bytes are what must move: the input once, codes and metadata once; a copy reads and writes.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch

import tritonq
from tritonq import reference

ROTATE = 256 << 20
RUNS = 50


def measure(calls: dict[str, list]) -> dict[str, list[float]]:
    """Microseconds of RUNS calls of each contender, alternating; each contender's calls rotate over its inputs."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(RUNS + 5):
        for name, rotated in calls.items():
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            rotated[run % len(rotated)]()
            stop.record()
            stop.synchronize()
            if run >= 5:
                times[name].append(1000 * start.elapsed_time(stop))
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemes", default="int4.g128,uint4.g128,nf4.g64,mxfp4,int8,fp8_e4m3")
    parser.add_argument("--shape", default="4096x14336")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/quantize.py: needs a CUDA or HIP device, none is visible", file=sys.stderr)
        return 2
    n, k = map(int, arguments.shape.split("x"))
    copies = max(2, -(-ROTATE // (2 * n * k)))
    inputs = [torch.randn(n, k, device="cuda").bfloat16() for _ in range(copies)]
    outputs = [torch.empty_like(x) for x in inputs]
    calls = {"copy": [lambda x=x, y=y: y.copy_(x) for x, y in zip(inputs, outputs)]}
    moved = {"copy": 4 * n * k}
    for scheme in arguments.schemes.split(","):
        sample = inputs[0][:64]
        want = reference.quantize(sample.cpu(), tritonq.Scheme.parse(scheme))
        if not torch.equal(tritonq.quantize(sample, scheme).packed.cpu(), want.packed):
            print(f"{scheme}: incorrect", file=sys.stderr)
            return 1
        plan = tritonq.select(tritonq.QuantizeDesc.of(inputs[0], scheme))
        calls[scheme] = [lambda x=x, plan=plan: plan.run(x) for x in inputs]
        moved[scheme] = 2 * n * k + tritonq.quantize(inputs[0], scheme).nbytes
    rows = []
    for name, times in measure(calls).items():
        low, median, high = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
        rows.append({"name": name, "us": median, "p20": low, "p80": high, "tb_per_s": moved[name] / median / 1e6})
    for row in rows:
        row["of_copy"] = row["tb_per_s"] / rows[0]["tb_per_s"]
        spread = f"(p20 {row['p20']:.1f}, p80 {row['p80']:.1f})"
        print(f"{row['name']:12} {row['us']:9.1f} us {spread} {row['tb_per_s']:6.2f} TB/s {row['of_copy']:6.1%} of a copy")
    if arguments.json:
        about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "shape": [n, k], "runs": RUNS}
        with open(arguments.json, "w") as file:
            json.dump({"about": about, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
