"""Fair times of GPU calls: CUDA graphs that rotate over more data than the L2 cache holds, contenders interleaved, medians.

A contender is a list of calls that do the same work on different data. One graph holds a call of each; a measurement is a replay
divided by their number. Replays of the contenders alternate, so that clocks and temperature are shared. Without a CUDA device the wall
clock is taken instead: enough to try a script, no result.
"""
from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

ROTATE_BYTES = 256 << 20  # at least what one round of a contender reads; an H200's L2 holds 50 MB
REPLAYS = 25
WARMUP = 3


@dataclasses.dataclass(frozen=True)
class Times:
    """Microseconds of one call: median, 20th and 80th percentile over the replays."""

    us: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: list[float]) -> Times:
        low, high = statistics.quantiles(samples, n=5)[0], statistics.quantiles(samples, n=5)[3]
        return cls(statistics.median(samples), low, high)


def copies(bytes_per_call: int) -> int:
    """How many different inputs a contender needs so that a round reads ROTATE_BYTES; at least two."""
    return max(2, -(-ROTATE_BYTES // max(bytes_per_call, 1))) if torch.cuda.is_available() else 2


def measure(contenders: dict[str, list[Callable[[], object]]], replays: int = REPLAYS) -> dict[str, Times]:
    """Times of every contender. On CUDA each call must be capturable: no synchronization, no data-dependent Python."""
    rounds = {name: _captured(calls) if torch.cuda.is_available() else _plain(calls) for name, calls in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(WARMUP + replays):
        for name, one_round in rounds.items():
            elapsed = one_round() / len(contenders[name])
            if run >= WARMUP:
                samples[name].append(elapsed)
    return {name: Times.of(values) for name, values in samples.items()}


def _captured(calls: list[Callable[[], object]]) -> Callable[[], float]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # compiles, allocates, tunes: everything that a graph must not see
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def one_round() -> float:
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        return 1000 * start.elapsed_time(stop)

    return one_round


def _plain(calls: list[Callable[[], object]]) -> Callable[[], float]:
    def one_round() -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return 1e6 * (time.perf_counter() - start)

    return one_round


def roofs(device: torch.device) -> dict[str, float]:
    """This machine's measured limits: bytes per second of a copy (read and write) and operations per second of a bfloat16 product."""
    size, edge = (1 << 28, 8192) if device.type == "cuda" else (1 << 22, 256)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a = torch.randn(edge, edge, device=device).bfloat16()
    b = torch.randn(edge, edge, device=device).bfloat16()
    times = measure({"copy": [lambda: target.copy_(source)], "product": [lambda: a @ b]}, replays=10)
    return {"bytes_per_s": 2 * size / (times["copy"].us * 1e-6), "flops_per_s": 2 * edge**3 / (times["product"].us * 1e-6)}


def machine() -> dict[str, str]:
    """What a result must name: device, driver, versions, clocks and power before the run."""
    import triton

    about = {"torch": torch.__version__, "triton": triton.__version__}
    if torch.cuda.is_available():
        about["device"] = torch.cuda.get_device_name()
        about["state"] = _nvidia_smi()
    else:
        about["device"] = "cpu: for trying the script, no result"
    return about


def _nvidia_smi() -> str:
    import subprocess

    query = "--query-gpu=driver_version,clocks.sm,power.draw,temperature.gpu"
    try:
        done = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return done.stdout.strip() or f"unknown: {done.stderr.strip()}"
