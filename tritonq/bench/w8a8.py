"""W8A8: x in bfloat16 is quantized per token and multiplied with int8 codes, against bfloat16 and the bare int8 product."""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from .. import plans
from . import check
from .results import Row
from .shapes import Shape
from .suite import Bench, Case, Contest, Suite, library_sku, product_bytes


def _plan(m: int, n: int, k: int) -> plans.QuantizedLinearPlan:
    desc = plans.QuantizedLinearDescriptor(m=m, c_out=n, k=k, activation_dtype=torch.bfloat16)
    return plans.QuantizedLinearPlan.select(None, desc)


def _rows(bench: Bench, shape: Shape) -> Iterator[list[Row]]:
    _, n, k = shape
    dense = bench.weights(shape)
    codes = [torch.randint(-127, 128, (n, k), dtype=torch.int8, device=bench.device) for _ in range(bench.copies(n * k))]
    scale = torch.rand(n, device=bench.device).add_(0.5).mul_(k**-0.5 / 74).bfloat16()  # 74: spread of the codes
    for m in bench.ms:
        contest = Contest(bench, "w8a8", "quantized_linear", shape, m, flops=2 * m * n * k)
        x, plan = bench.randn(m, k), _plan(m, n, k)
        contest.add(bench.library, [partial(torch.mm, x, w.t()) for w in dense], bytes=product_bytes(2 * n * k, m, n, k),
                    sku=library_sku("matmul", bench))  # fmt: skip
        given = [plans.QuantizedLinearArgs(activation=x, weight_q=c, weight_scale=scale) for c in codes]
        contest.add("tritonq", [partial(plan.run, None, None, a) for a in given], scheme="int8.channel", sku=str(plan.sku()),
                    bytes=product_bytes(n * k + 2 * n, m, n, k), check=partial(_wrong, plan, given[0]))  # fmt: skip
        if bench.with_peers:
            x8 = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=bench.device)
            contest.add("torch _int_mm", [partial(torch._int_mm, x8, c.t()) for c in codes], scheme="int8.channel",
                        bytes=n * k + m * k + 4 * m * n, sku="matmul/int8/torch",
                        note="differs: the product alone, x is codes and the result int32")  # fmt: skip
        yield contest.times("int8_ops_per_s")


def _wrong(plan: plans.QuantizedLinearPlan, args: plans.QuantizedLinearArgs) -> str:
    """Some tokens and features, computed again by the reference on the CPU: equal bit for bit."""
    x, device, got = args.activation, args.activation.device, plan.run(None, None, args)
    rows, features = check.sample(len(x), 16, device), check.sample(len(args.weight_q), check.COLUMNS, device)
    small = plans.QuantizedLinearArgs(activation=x[rows].cpu(), weight_q=args.weight_q[features].cpu(),
                                      weight_scale=args.weight_scale[features].cpu())  # fmt: skip
    want = _plan(len(rows), len(features), x.shape[1]).run(None, None, small)
    return "" if check.same_bytes(got[rows][:, features], want) else "incorrect: differs from the reference"


def cases(bench: Bench) -> Iterator[Case]:
    for shape in bench.shapes:
        yield Case(title=shape.name, steps=len(bench.ms), run=partial(_rows, bench, shape))


W8A8 = Suite(name="w8a8", title="int8 weights and activations against cuBLAS bf16", cases=cases, shapes="llama3-8b",
             ms="1,16,64,256,1024,4096,8192")  # fmt: skip
