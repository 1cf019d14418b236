"""What the host spends on a warm call, without waiting for the device. docs/launch.md has the same above a driver that does nothing."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import torch

from ..nn.modules import QuantLinear
from ..ops import matmul
from ..plans.descriptors import MatmulDesc
from ..plans.select import select
from . import check
from .results import Row, with_speedups
from .suite import Bench, Case, Suite, library_sku
from .timing import measure_host

N, K = 512, 4096  # small: the device must not be what is waited for
TRIED = 64, 256  # off a GPU


def _rows(bench: Bench) -> Iterator[list[Row]]:
    (n, k), queued = ((N, K), 50) if bench.source == "gpu" else (TRIED, 5)
    dense = bench.randn(n, k)
    for scheme in bench.schemes:
        q = bench.quantized([dense], scheme)[0]
        layer = QuantLinear(q, layout=q.layout)
        for m in bench.ms:
            x = bench.randn(m, k)
            plan = select(MatmulDesc.of(x, q))
            sku = str(plan.sku())
            calls = {  # name, scheme, sku
                (bench.library, "none", library_sku("matmul", bench)): partial(torch.mm, x, dense.t()),
                ("tritonq", scheme, f"plan.run {sku}"): partial(plan.run, x, q),
                ("tritonq", scheme, f"tritonq.matmul {sku}"): partial(matmul, x, q),
                ("tritonq", scheme, f"torch.ops.tritonq.matmul {sku}"): partial(torch.ops.tritonq.matmul, x, *q.operands),
                ("tritonq", scheme, f"QuantLinear {sku}"): partial(layer, x),
            }
            with torch.inference_mode():
                reasons = {key: check.wrong(call(), x, q, plan) for key, call in calls.items() if key[0] == "tritonq"}
                times = measure_host({key: call for key, call in calls.items() if not reasons.get(key)}, bench.replays, queued)
            command = f"tritonq bench launch --schemes {scheme} --m {m}" + " --device cpu" * (bench.source == "cpu")
            note = "host time of a queued call" if bench.source == "gpu" else "the whole product: a CPU queues nothing"
            common = {"suite": "launch", "op": "call", "shape": f"{n}x{k}", "n": n, "k": k, "m": m, "note": note, "source": bench.source}
            rows = [Row(name=key[0], scheme=key[1], sku=key[2], command=command, fault=reasons.get(key, ""), **common) for key in calls]
            yield with_speedups(
                dataclasses.replace(row, us=t.us, p20=t.p20, p80=t.p80) if (t := times.get(key)) else row
                for key, row in zip(calls, rows)
            )  # fmt: skip


def cases(bench: Bench) -> Iterator[Case]:
    yield Case(title="host time", steps=len(bench.schemes) * len(bench.ms), run=lambda: _rows(bench))


LAUNCH = Suite(name="launch", title="host time of one warm call", cases=cases, schemes="int4.g128,nf4.g64", ms="1,16")
