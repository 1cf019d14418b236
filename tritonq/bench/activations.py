"""The per-token quantizers of x against a copy: scales from the data, and scales that are given."""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from .. import plans
from . import check
from .results import Row
from .shapes import Shape
from .suite import Bench, Case, Contest, Suite


def _dynamic(m: int, k: int):
    desc = plans.DynamicRangeQuantizeDescriptor(n=m, d=k, q_min=-127, q_max=127, input_dtype=torch.bfloat16)
    plan = plans.DynamicRangeQuantizePlan.select(None, desc)
    return plan, lambda x: plans.DynamicRangeQuantizeArgs(input=x)


def _given(m: int, k: int):
    desc = plans.QuantizePerTokenDescriptor(n=m, d=k, q_min=-127, q_max=127, input_dtype=torch.bfloat16, output_dtype=torch.int8)
    plan = plans.QuantizePerTokenPlan.select(None, desc)

    def arguments(x: torch.Tensor):
        scale = (x.abs().amax(1) / 127).clamp_min(1e-6)
        return plans.QuantizePerTokenArgs(input=x, scale=scale, zero_point=torch.zeros(m, dtype=torch.int32, device=x.device))

    return plan, arguments


def _rows(bench: Bench, shape: Shape) -> Iterator[list[Row]]:
    k = shape.k
    for m in bench.ms:
        inputs = [bench.randn(m, k) for _ in range(bench.copies(2 * m * k))]
        outputs = [torch.empty_like(x) for x in inputs]
        contest = Contest(bench, "activations", "quantize_per_token", Shape(f"K={k}", m, k), m)
        contest.add("copy", [partial(y.copy_, x) for x, y in zip(inputs, outputs)], bytes=4 * m * k, sku="copy/bfloat16")
        for what, meta in ((_dynamic, 6 * m), (_given, 6 * m)):  # a scale of 2 bytes and a zero point of 4 per token, written or read
            plan, arguments = what(m, k)
            given = [arguments(x) for x in inputs]
            contest.add("tritonq", [partial(plan.run, None, None, a) for a in given], scheme="int8.token", sku=str(plan.sku()),
                        bytes=3 * m * k + meta, check=partial(_wrong, plan, given[0]))  # fmt: skip
        yield contest.times()


def _wrong(plan, args) -> str:
    """A few tokens, computed again by the reference on the CPU: equal bit for bit."""
    rows = check.sample(len(args.input), check.ROWS, args.input.device)
    some = {name: value[rows].cpu() for name, value in vars(args).items() if isinstance(value, torch.Tensor)}
    small = (_dynamic if isinstance(plan, plans.DynamicRangeQuantizePlan) else _given)(*some["input"].shape)[0]
    got, want = plan.run(None, None, args), small.run(None, None, type(args)(**some))
    pairs = zip(got, want) if isinstance(got, tuple) else ((got, want),)
    same = all(check.same_bytes(mine[rows], theirs) for mine, theirs in pairs)
    return "" if same else "incorrect: codes or scales differ from the reference"


def cases(bench: Bench) -> Iterator[Case]:
    for shape in {shape.k: shape for shape in bench.shapes}.values():
        yield Case(title=f"K={shape.k}", steps=len(bench.ms), run=partial(_rows, bench, shape))


ACTIVATIONS = Suite(name="activations", title="per-token quantizers of x against a device copy", cases=cases, shapes="llama3-8b",
                    ms="1,16,256,4096,8192")  # fmt: skip
