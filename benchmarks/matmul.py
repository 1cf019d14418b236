"""The fused product against cuBLAS in bfloat16 and against other libraries, on this machine's GPU.

    python benchmarks/matmul.py [--shapes 4096x4096,...] [--m 1,16,64] [--schemes int4.g128,nf4.g64] [--experiment] [--json FILE]

Every row is checked before it is timed: a wrong result prints "incorrect" and no time. Weights are random, rotate over at least 256 MB,
and contenders of a shape are interleaved (benchmarks/timing.py). *Floor* is the larger of the bytes that must move over this machine's
measured copy and the operations over its measured bfloat16 product. Results are written after every shape: stop it whenever you like.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

import torch
from peers import PEERS, Missing
from timing import Times, copies, machine, measure, roofs

import tritonq
from tritonq import MatmulDesc, QTensor

SHAPES = "28672x8192,8192x28672,8192x8192,14336x4096,4096x4096"
# Decode kernels to try at M = 1: warps (4: wgmma on Hopper), copies in flight before a weight is used (1: straight to registers), split.
EXPERIMENT = [dict(num_warps=warps, STAGES=stages, SPLIT_K=split) for warps in (2, 4) for stages in (1, 3, 5) for split in (1, 2, 4, 8)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. ``wrong`` rows carry no time."""

    n: int
    k: int
    m: int
    name: str
    scheme: str
    kernel: str = ""
    times: Times | None = None
    bytes: int = 0
    cublas_us: float = 0.0
    floor_us: float = 0.0
    note: str = ""

    def text(self) -> str:
        head = f"{self.n:6}x{self.k:<6} M={self.m:<5} {self.name:16} {self.scheme:10}"
        if self.times is None:
            return f"{head} {self.note}"
        us = self.times.us
        figures = f"{us:9.2f} us ({self.times.p20:.2f}-{self.times.p80:.2f}) {self.bytes / us / 1e6:5.2f} TB/s"
        figures += f" {2e-6 * self.m * self.n * self.k / us:7.1f} TFLOP/s"
        return f"{head} {figures} {self.floor_us / us:6.1%} of floor {self.cublas_us / us:5.2f}x cuBLAS  {self.kernel} {self.note}"


def bytes_moved(weight: int, m: int, n: int, k: int) -> int:
    return weight + 2 * m * (n + k)


class Shape:
    """Weights of one shape, made once: bfloat16 copies for cuBLAS, quantized copies per scheme, peers' own."""

    def __init__(self, n: int, k: int, schemes: list[str], with_peers: bool, device: torch.device):
        self.n, self.k, self.device = n, k, device
        plain = 2 * n * k
        self.dense = [torch.randn(n, k, device=device).bfloat16().mul_(k**-0.5) for _ in range(copies(plain))]
        self.ours: dict[str, list[QTensor]] = {}
        for scheme in schemes:
            first = self._prepare(scheme, 0)
            self.ours[scheme] = [first] + [self._prepare(scheme, i) for i in range(1, copies(first.nbytes))]
        self.peers, self.missing = {}, {}
        for peer in PEERS if with_peers else ():
            if peer.scheme not in schemes:
                continue
            try:
                count = copies(self.ours[peer.scheme][0].nbytes)
                self.peers[peer] = [peer.make(self.dense[i % len(self.dense)].clone()) for i in range(count)]
            except Missing as reason:
                self.missing[peer] = str(reason)

    def _prepare(self, scheme: str, i: int) -> QTensor:
        q = tritonq.quantize(self.dense[i % len(self.dense)], scheme)
        return q.relayout("frag") if self.device.type == "cuda" else q

    def rows(self, m: int, limits: dict[str, float]) -> list[Row]:
        """cuBLAS, ours and peers at one M, measured together."""
        x = torch.randn(m, self.k, device=self.device).bfloat16()
        calls = {"cuBLAS": [lambda w=w: torch.mm(x, w.t()) for w in self.dense]}
        rows = {"cuBLAS": Row(n=self.n, k=self.k, m=m, name="cuBLAS", scheme="bf16",
                              bytes=bytes_moved(2 * self.n * self.k, m, self.n, self.k))}  # fmt: skip
        for scheme, weights in self.ours.items():
            plan = tritonq.select(MatmulDesc.of(x, weights[0]))
            rows[scheme] = Row(n=self.n, k=self.k, m=m, name="tritonq", scheme=scheme, kernel=plan.kernel.name,
                               bytes=bytes_moved(weights[0].nbytes, m, self.n, self.k))  # fmt: skip
            workspace = torch.empty(plan.workspace_size(), dtype=torch.uint8, device=self.device)
            if reason := wrong(plan.run(x, weights[0]), x, weights[0]):
                rows[scheme] = dataclasses.replace(rows[scheme], note=reason)
            else:
                calls[scheme] = [lambda q=q, plan=plan, workspace=workspace: plan.run(x, q, workspace=workspace) for q in weights]
        for peer, products in self.peers.items():
            rows[peer.name] = Row(n=self.n, k=self.k, m=m, name=peer.name, scheme=peer.scheme, note=peer.differs,
                                  bytes=bytes_moved(self.ours[peer.scheme][0].nbytes, m, self.n, self.k))  # fmt: skip
            want = x.float() @ self.dense[0].float().t()
            if float((products[0](x).float() - want).norm() / want.norm()) > 0.2:
                rows[peer.name] = dataclasses.replace(rows[peer.name], note="incorrect")
            else:
                calls[peer.name] = [lambda product=product: product(x) for product in products]
        times = measure(calls)
        for name, row in rows.items():
            floor = max(row.bytes / limits["bytes_per_s"], 2 * m * self.n * self.k / limits["flops_per_s"]) * 1e6
            rows[name] = dataclasses.replace(row, times=times.get(name), cublas_us=times["cuBLAS"].us, floor_us=floor)
        skipped = [Row(n=self.n, k=self.k, m=m, name=peer.name, scheme=peer.scheme, note=f"skipped: {reason}")
                   for peer, reason in self.missing.items()]  # fmt: skip
        return [*rows.values(), *skipped]

    def experiment(self, scheme: str, limits: dict[str, float]) -> list[Row]:
        """The decode kernel in every configuration of EXPERIMENT at M = 1."""
        x = torch.randn(1, self.k, device=self.device).bfloat16()
        weights = self.ours[scheme]
        plan = tritonq.select(MatmulDesc.of(x, weights[0]))
        rows, calls = {}, {}
        for change in EXPERIMENT:
            other = dataclasses.replace(plan, config=plan.config | change)
            name = " ".join(f"{key}={value}" for key, value in change.items())
            row = Row(n=self.n, k=self.k, m=1, name="experiment", scheme=scheme, kernel=name,
                      bytes=bytes_moved(weights[0].nbytes, 1, self.n, self.k))  # fmt: skip
            try:
                reason = wrong(other.run(x, weights[0]), x, weights[0])
            except Exception as error:  # out of shared memory or registers: a candidate less, not the end of the run
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            rows[name] = dataclasses.replace(row, note=reason)
            if not reason:
                calls[name] = [lambda q=q, other=other: other.run(x, q) for q in weights]
        times = measure(calls) if calls else {}
        floor = bytes_moved(weights[0].nbytes, 1, self.n, self.k) / limits["bytes_per_s"] * 1e6
        done = [dataclasses.replace(row, times=times.get(name), floor_us=floor) for name, row in rows.items()]
        return sorted(done, key=lambda row: row.times.us if row.times else float("inf"))


def wrong(got: torch.Tensor, x: torch.Tensor, q: QTensor) -> str:
    """Why a result is not what the guarantee of its plan allows, or nothing; a slice of the columns is enough to see it."""
    columns = slice(0, min(256, q.shape[0]))
    w = q.dequantize(torch.float32)[columns].double()
    exact, magnitude = x.double() @ w.t(), x.double().abs() @ w.abs().t()
    promise = tritonq.select(MatmulDesc.of(x, q)).precision_guarantee()
    error = (got[:, columns].double() - exact).abs() - (2 * (promise.relative + promise.output_eps) * magnitude + promise.output_tiny)
    return "" if bool((error <= 0).all()) else f"incorrect by {float(error.max()):.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--m", default="1,2,4,8,16,32,64,128,256,1024,4096")
    parser.add_argument("--schemes", default="int4.g128,nf4.g64")
    parser.add_argument("--experiment", action="store_true", help="try every decode configuration at M = 1 first")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no further shape after this long")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the script and measures nothing of interest")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/matmul.py: needs a CUDA device, none is visible; --device cpu tries the script", file=sys.stderr)
        return 2
    device, started = torch.device(arguments.device), time.monotonic()
    torch.manual_seed(0)
    result = {"about": machine() | roofs(device), "rows": []}
    print(json.dumps(result["about"]))
    wrong_rows = 0
    for text in arguments.shapes.split(","):
        if time.monotonic() - started > 60 * arguments.minutes:
            print(f"{text}: left out, {arguments.minutes:g} minutes are over")
            continue
        n, k = map(int, text.split("x"))
        shape = Shape(n, k, arguments.schemes.split(","), not arguments.no_peers, device)
        batches = [shape.experiment(scheme, result["about"]) for scheme in shape.ours] if arguments.experiment else []
        for rows in [*batches, *(shape.rows(int(m), result["about"]) for m in arguments.m.split(","))]:
            for row in rows:
                print(row.text(), flush=True)
            wrong_rows += sum(row.note.startswith("incorrect") and row.name == "tritonq" for row in rows)
            result["rows"] += [dataclasses.asdict(row) for row in rows]
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(result, file, indent=1)
    return 1 if wrong_rows else 0


if __name__ == "__main__":
    sys.exit(main())
