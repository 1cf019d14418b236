"""The gradient of x, dy @ w_hat, straight from the packed weight, against bfloat16."""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..ops import quantize
from ..plans.descriptors import MatmulBackwardDesc
from ..plans.select import select
from . import check
from .results import Row
from .shapes import Shape
from .suite import Bench, Case, Contest, Suite, library_sku, product_bytes


def _rows(bench: Bench, shape: Shape) -> Iterator[list[Row]]:
    _, n, k = shape
    dense = bench.weights(shape)
    judges = {scheme: quantize(dense[0], scheme) for scheme in bench.schemes}
    ours = {scheme: bench.quantized(dense, scheme) for scheme in bench.schemes}
    for m in bench.ms:
        contest = Contest(bench, "backward", "matmul_backward", shape, m, flops=2 * m * n * k)
        dy = bench.randn(m, n)
        contest.add(bench.library, [partial(torch.mm, dy, w) for w in dense], bytes=product_bytes(2 * n * k, m, n, k),
                    sku=library_sku("matmul_backward", bench))  # fmt: skip
        for scheme, weights in ours.items():
            plan = select(MatmulBackwardDesc.of(dy, weights[0]))
            workspace = torch.empty(plan.workspace_size(), dtype=torch.uint8, device=bench.device)
            calls = [partial(plan.run, dy, q, workspace=workspace) for q in weights]
            contest.add("tritonq", calls, scheme=scheme, sku=str(plan.sku()), bytes=product_bytes(weights[0].nbytes, m, n, k),
                        check=partial(check.product, plan, dy, weights[0], judges[scheme]))  # fmt: skip
        yield contest.times()


def cases(bench: Bench) -> Iterator[Case]:
    for shape in bench.shapes:
        yield Case(title=shape.name, steps=len(bench.ms), run=partial(_rows, bench, shape))


BACKWARD = Suite(name="backward", title="dy @ w_hat against cuBLAS bf16", cases=cases, schemes="int4.g128,nf4.g64", shapes="llama3-8b",
                 ms="16,256,1024,4096")  # fmt: skip
