"""What the first call costs in a fresh process: the import, the first product, and the same with Triton's disk cache warm."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .results import Row
from .suite import Bench, Case, Suite
from .timing import Times

ROUNDS = 3
N, K, M = 4096, 4096, 1

# A process of its own: milliseconds of each part as JSON on its last line.
PROGRAM = """
import json, sys, time
sys.path.insert(0, sys.argv.pop(1))  # this tritonq, wherever the process runs
started = time.perf_counter()
import torch
imported = time.perf_counter()
import tritonq
ours = time.perf_counter()
scheme, device, n, k, m = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
w, x = torch.randn(n, k, device=device).bfloat16(), torch.randn(m, k, device=device).bfloat16()
wait = torch.cuda.synchronize if device == "cuda" else lambda: None
wait()
ready = time.perf_counter()
q = tritonq.quantize(w, scheme)
q = q.relayout("frag") if device == "cuda" and torch.version.hip is None else q
wait()
quantized = time.perf_counter()
tritonq.matmul(x, q)
wait()
first = time.perf_counter()
tritonq.matmul(x, q)
wait()
second = time.perf_counter()
parts = {"import torch": imported - started, "import tritonq": ours - imported, "first quantize": quantized - ready,
         "first matmul": first - quantized, "second matmul": second - first}
print(json.dumps(parts))
"""


def fresh(scheme: str, device: str, cache: Path, size: tuple[int, int, int]) -> dict[str, float]:
    """Microseconds of each part of PROGRAM, run once in a process of its own."""
    env = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).resolve().parents[2]), scheme, device, *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}")
    return {name: 1e6 * seconds for name, seconds in json.loads(done.stdout.splitlines()[-1]).items()}


def _rows(bench: Bench, rounds: int = ROUNDS) -> Iterator[list[Row]]:
    size = (N, K, M) if bench.source == "gpu" else (256, 512, 1)
    for scheme in bench.schemes:
        cold, warm = [], []
        for _ in range(rounds if bench.source == "gpu" else 1):
            with tempfile.TemporaryDirectory(prefix="tritonq-cold-") as folder:
                cold.append(fresh(scheme, bench.device.type, Path(folder), size))
                warm.append(fresh(scheme, bench.device.type, Path(folder), size))
        yield [
            Row(suite="cold-start", op=part, name="tritonq", scheme=scheme, n=size[0], k=size[1], m=size[2], sku=f"{part}/{cache}", us=t.us,
                p20=t.p20, p80=t.p80, source=bench.source, note=f"fresh process, {cache}",
                command=f"tritonq bench cold-start --schemes {scheme}" + " --device cpu" * (bench.source == "cpu"))
            for cache, taken in (("empty kernel cache", cold), ("warm kernel cache", warm)) for part in cold[0]
            for t in [Times.of([one[part] for one in taken])]
        ]  # fmt: skip


def cases(bench: Bench) -> Iterator[Case]:
    yield Case(title="fresh processes", steps=len(bench.schemes), run=lambda: _rows(bench))


COLD_START = Suite(name="cold-start", title="import and first call in a fresh process", cases=cases, schemes="int4.g128")  # fmt: skip
