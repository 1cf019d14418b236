"""Fair times of GPU calls: CUDA graphs that rotate over more data than the L2 cache holds, contenders interleaved, medians.

A contender is a list of calls that do the same work on different data. One graph holds a call of each; a measurement is a replay
divided by their number. Replays of the contenders alternate, so that clocks and temperature are shared. Off CUDA the wall clock is taken
instead: enough to try a benchmark, no result of interest.
"""
from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from .machine import facts

ROTATE_BYTES = 256 << 20  # at least what one round of a contender reads; an H200's L2 holds 50 MB
MOST_COPIES = 256  # of what is too small to fill that: its rounds stay within the L2 cache
REPLAYS = 25
WARMUP = 3
LEAST_REPLAYS, MOST_SECONDS = 7, 4.0  # long products are measured less often
REST_AFTER = 3.0  # seconds of work, after which the device rests for one: long products throttle their neighbours
CPU_NOTE = "wall clock of a CPU: tries the benchmark, no result of interest"
PROTOCOL = f"CUDA graphs over {ROTATE_BYTES >> 20} MiB, medians of {REPLAYS} interleaved replays, r1"

Calls = list[Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Times:
    """Microseconds of one call: median, 20th and 80th percentile over the replays."""

    us: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: list[float]) -> Times:
        cuts = statistics.quantiles(samples, n=5, method="inclusive") if len(samples) > 1 else samples * 4
        return cls(statistics.median(samples), cuts[0], cuts[3])


def copies(bytes_per_call: int, device: torch.device | None = None) -> int:
    """How many different inputs a contender needs so that a round reads ROTATE_BYTES: 2 to MOST_COPIES."""
    if not _on_cuda(device):
        return 2
    return min(MOST_COPIES, max(2, -(-ROTATE_BYTES // max(bytes_per_call, 1))))


def measure(contenders: dict[str, Calls], replays: int = REPLAYS, *, device: torch.device | None = None,
            failures: dict[str, str] | None = None) -> dict[str, Times]:  # fmt: skip
    """Times of every contender.

    Args:
        contenders: calls by name. On CUDA each must be capturable: no synchronization, no Python that depends on data.
        replays: rounds that count, after WARMUP that do not; fewer, at least LEAST_REPLAYS, where they take more than MOST_SECONDS.
        device: where the calls run; None is CUDA where there is one.
        failures: where given, a contender that raises is left out and its reason stands here; otherwise the error goes to the caller.
    """
    on_cuda, rounds = _on_cuda(device), {}
    for name, calls in contenders.items():
        try:
            rounds[name] = _captured(calls) if on_cuda else _plain(calls)
        except Exception as error:
            if failures is None:
                raise
            failures[name] = first_line(error)
    samples: dict[str, list[float]] = {name: [] for name in rounds}
    started = time.monotonic()
    for run in range(WARMUP + replays):
        if run >= WARMUP + LEAST_REPLAYS and time.monotonic() - started > MOST_SECONDS:
            break
        for name, one_round in rounds.items():
            elapsed = one_round() / len(contenders[name])
            if run >= WARMUP:
                samples[name].append(elapsed)
    if on_cuda and time.monotonic() - started > REST_AFTER:
        time.sleep(1)
    return {name: Times.of(values) for name, values in samples.items()}


def measure_host(contenders: dict[str, Callable[[], object]], rounds: int = REPLAYS, calls: int = 50) -> dict[str, Times]:
    """What the host spends on a call, in microseconds: ``calls`` are queued without waiting for their results, contenders take turns."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(WARMUP + rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            elapsed = 1e6 * (time.perf_counter() - start) / calls
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if run >= WARMUP:
                samples[name].append(elapsed)
    return {name: Times.of(values) for name, values in samples.items()}


def machine(device: torch.device | None = None) -> dict[str, object]:
    """What a result must name, as plain values: versions, device, driver, commit, time, protocol, and the clocks as they are now."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return facts(device) | {"protocol": PROTOCOL if device.type == "cuda" else CPU_NOTE}


def roofs(device: torch.device) -> dict[str, float]:
    """This machine's measured limits: bytes per second of a copy (read and write), operations per second of a bfloat16 product, and of
    an int8 one where torch has it."""
    size, edge = (1 << 28, 8192) if device.type == "cuda" else (1 << 22, 256)
    pairs = [(torch.empty(size, dtype=torch.uint8, device=device), torch.empty(size, dtype=torch.uint8, device=device))
             for _ in range(copies(size, device))]  # fmt: skip
    a, b = (torch.randn(edge, edge, device=device).bfloat16() for _ in range(2))
    i, j = (torch.randint(-127, 128, (edge, edge), device=device, dtype=torch.int8) for _ in range(2))
    calls = {
        "copy": [lambda source=source, target=target: target.copy_(source) for source, target in pairs],
        "product": [lambda: a @ b],
        "int8": [lambda: torch._int_mm(i, j.t())],
    }
    failures: dict[str, str] = {}
    times = measure(calls, replays=10, device=device, failures=failures)
    for name in {"copy", "product"} & set(failures):
        raise RuntimeError(f"the roof {name!r} cannot be measured: {failures[name]}")
    limits = {"bytes_per_s": 2 * size / (times["copy"].us * 1e-6), "flops_per_s": 2 * edge**3 / (times["product"].us * 1e-6)}
    if "int8" in times:
        limits["int8_ops_per_s"] = 2 * edge**3 / (times["int8"].us * 1e-6)
    return limits


def first_line(error: BaseException) -> str:
    """``Type: text`` of an error, on one line that fits a table."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _on_cuda(device: torch.device | None) -> bool:
    return torch.cuda.is_available() and (device is None or device.type == "cuda")


def _captured(calls: Calls) -> Callable[[], float]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # compiles, allocates, tunes: everything that a graph must not see
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
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


def _plain(calls: Calls) -> Callable[[], float]:
    for call in calls:
        call()

    def one_round() -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return 1e6 * (time.perf_counter() - start)

    return one_round
