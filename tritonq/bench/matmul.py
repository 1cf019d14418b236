"""The product with a quantized weight against bfloat16 and other libraries, over rows of x."""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial

import torch

from ..ops import quantize
from ..plans.descriptors import MatmulDesc
from ..plans.select import select
from ..qtensor import QTensor
from . import check
from .peers import PEERS, Missing, Peer, Product
from .results import Row
from .shapes import Shape
from .suite import Bench, Case, Contest, Suite, library_sku, product_bytes
from .timing import first_line

PATIENCE = 30.0  # seconds of a peer's first call, in which some compile and tune
# Decode kernels to try: warps (4: wgmma on Hopper), copies in flight before a weight is used (1: straight to registers), split.
EXPERIMENT = [dict(num_warps=warps, STAGES=stages, SPLIT_K=split) for warps in (2, 4) for stages in (1, 3, 5) for split in (1, 2, 4, 8)]


class Weights:
    """Weights of one shape, made once for all M: bfloat16 copies, quantized copies per scheme, other libraries' own."""

    def __init__(self, bench: Bench, shape: Shape):
        self.bench, self.shape = bench, shape
        self.dense = bench.weights(shape)
        self.judges = {scheme: quantize(self.dense[0], scheme) for scheme in bench.schemes}
        self.ours = {scheme: bench.quantized(self.dense, scheme) for scheme in bench.schemes}
        self.peers: dict[tuple[Peer, str], list[Product] | str] = {
            (peer, scheme): self._make(peer, weights) for scheme, weights in self.ours.items()
            for peer in PEERS if bench.with_peers and scheme in peer.schemes
        }  # fmt: skip

    def _make(self, peer: Peer, weights: list[QTensor]) -> list[Product] | str:
        """A peer's products, one per copy, or the reason why there are none."""
        try:
            first = peer.make(self.dense[0].clone(), weights[0])
            return [first, *(peer.make(self.dense[i % len(self.dense)].clone(), weights[i]) for i in range(1, len(weights)))]
        except Missing as reason:
            return str(reason)
        except Exception as error:  # another library's shapes, dtypes or architectures
            return f"{peer.name}: {first_line(error)}"

    def contest(self, m: int) -> list[Row]:
        """Everybody at one M, measured together."""
        bench, (_, n, k) = self.bench, self.shape
        contest = Contest(bench, "matmul", "matmul", self.shape, m, flops=2 * m * n * k)
        x = bench.randn(m, k)
        contest.add(bench.library, [partial(torch.mm, x, w.t()) for w in self.dense], bytes=product_bytes(2 * n * k, m, n, k),
                    sku=library_sku("matmul", bench))  # fmt: skip
        for scheme, weights in self.ours.items():
            plan = select(MatmulDesc.of(x, weights[0]))
            workspace = torch.empty(plan.workspace_size(), dtype=torch.uint8, device=bench.device)
            calls = [partial(plan.run, x, q, workspace=workspace) for q in weights]
            contest.add("tritonq", calls, scheme=scheme, sku=str(plan.sku()), bytes=product_bytes(weights[0].nbytes, m, n, k),
                        check=partial(check.product, plan, x, weights[0], self.judges[scheme]))  # fmt: skip
        for (peer, scheme), products in list(self.peers.items()):
            self._add_peer(contest, x, peer, scheme, products)
        return contest.times()

    def _add_peer(self, contest: Contest, x: torch.Tensor, peer: Peer, scheme: str, products: list[Product] | str) -> None:
        m, q = len(x), self.ours[scheme][0]
        common = {"scheme": scheme, "sku": f"matmul/{scheme}/bfloat16/{peer.name}"}
        if isinstance(products, str):
            contest.add(peer.name, note=f"skipped: {products}", **common)
            return

        def distance() -> str:
            rows, features = check.sample(m, check.ROWS, x.device), check.sample(q.shape[0], check.COLUMNS, x.device)
            _, weight = check.decoded_rows(self.judges[scheme], features)
            started = time.monotonic()
            got = products[0](x)
            if (seconds := time.monotonic() - started) > PATIENCE:
                self.peers[peer, scheme] = f"its first call at M={m} took {seconds:.0f} s, so no further M of this shape"
            return check.far(got[rows][:, features], x[rows].double() @ weight.T, peer.distance)

        contest.add(peer.name, [partial(product, x) for product in products], check=distance,
                    bytes=product_bytes(q.nbytes, m, *q.shape), **common,
                    note=f"differs: {peer.differs}" if peer.differs else "")  # fmt: skip

    def experiment(self, scheme: str, m: int) -> list[Row]:
        """The kernel as it is chosen, and in every configuration of EXPERIMENT that it takes; the fastest first."""
        weights, (_, n, k) = self.ours[scheme], self.shape
        contest = Contest(self.bench, "decode", "matmul", self.shape, m, flops=2 * m * n * k)
        x = self.bench.randn(m, k)
        chosen = select(MatmulDesc.of(x, weights[0]))
        changed = [chosen.config | change for change in EXPERIMENT]
        taken = [config for config in changed if chosen.kernel.config_ok(chosen.desc, config) and config != chosen.config]
        for plan in [chosen, *(dataclasses.replace(chosen, config=config) for config in taken)]:
            calls = [partial(plan.run, x, q) for q in weights]
            config = " ".join(f"{name}={value}" for name, value in plan.config.items())
            note = config + " (as chosen)" * (plan is chosen)
            contest.add("tritonq", calls, scheme=scheme, sku=str(plan.sku()), bytes=product_bytes(weights[0].nbytes, m, n, k), note=note,
                        optional=True,
                        check=partial(check.product, plan, x, weights[0], self.judges[scheme]))  # fmt: skip
        return sorted(contest.times(), key=lambda row: row.us or float("inf"))


def _products(bench: Bench, shape: Shape) -> Iterator[list[Row]]:
    weights = Weights(bench, shape)
    for m in bench.ms:
        yield weights.contest(m)


def _experiments(bench: Bench, shape: Shape) -> Iterator[list[Row]]:
    weights = Weights(dataclasses.replace(bench, with_peers=False), shape)
    for scheme in bench.schemes:
        for m in bench.ms:
            yield weights.experiment(scheme, m)


def cases(bench: Bench) -> Iterator[Case]:
    for shape in bench.shapes:
        yield Case(title=shape.name, steps=len(bench.ms), run=partial(_products, bench, shape))


def decode_cases(bench: Bench) -> Iterator[Case]:
    for shape in bench.shapes:
        yield Case(title=shape.name, steps=len(bench.schemes) * len(bench.ms), run=partial(_experiments, bench, shape))


MATMUL = Suite(name="matmul", title="x @ w_hat.T against cuBLAS bf16 and peers", cases=cases,
               schemes="int4.g128,uint4.g128,nf4.g64,mxfp4,int8", shapes="llama3-8b",
               ms="1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192")  # fmt: skip
DECODE = Suite(name="decode", title="the decode kernel in every configuration", cases=decode_cases, schemes="int4.g128,nf4.g64",
               shapes="llama3-8b", ms="1")  # fmt: skip
