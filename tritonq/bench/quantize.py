"""Quantize-and-pack, and dequantize, against a copy of the same matrix on the same device."""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..nn.weight import best_layout
from ..ops import quantize
from ..plans.descriptors import DequantizeDesc, QuantizeDesc
from ..plans.select import select
from ..scheme import Scheme
from . import check
from .results import Row
from .shapes import Shape
from .suite import Bench, Case, Contest, Suite


def _layouts(bench: Bench, scheme: str) -> list[str]:
    """What is saved, and what the fastest product reads."""
    return list(dict.fromkeys(["row", best_layout(Scheme.parse(scheme), torch.bfloat16, bench.device)]))


def _contest(bench: Bench, op: str, shape: Shape, inputs: list[torch.Tensor]) -> Contest:
    """With the copy, which reads and writes the matrix."""
    contest = Contest(bench, op, op, shape)
    outputs = [torch.empty_like(x) for x in inputs]
    calls = [partial(y.copy_, x) for x, y in zip(inputs, outputs)]
    contest.add("copy", calls, bytes=4 * shape.n * shape.k, sku="copy/bfloat16")
    return contest


def _quantize(bench: Bench, shape: Shape) -> Iterator[list[Row]]:
    inputs = bench.weights(shape)
    for scheme in bench.schemes:
        contest = _contest(bench, "quantize", shape, inputs)
        for layout in _layouts(bench, scheme):
            plan = select(QuantizeDesc.of(inputs[0], scheme, layout))
            packed = quantize(inputs[0], scheme).nbytes
            contest.add("tritonq", [partial(plan.run, x) for x in inputs], scheme=scheme, sku=str(plan.sku()),
                        bytes=2 * shape.n * shape.k + packed, check=partial(check.quantized, plan, inputs[0]))  # fmt: skip
        yield contest.times()


def _dequantize(bench: Bench, shape: Shape) -> Iterator[list[Row]]:
    inputs = bench.weights(shape)
    for scheme in bench.schemes:
        contest = _contest(bench, "dequantize", shape, inputs)
        first = quantize(inputs[0], scheme)
        for layout in _layouts(bench, scheme):
            count = bench.copies(first.nbytes)
            weights = [quantize(inputs[i % len(inputs)], scheme).relayout(layout) for i in range(count)]
            plan = select(DequantizeDesc.of(weights[0]))
            contest.add("tritonq", [partial(plan.run, q) for q in weights], scheme=scheme, sku=str(plan.sku()),
                        bytes=2 * shape.n * shape.k + first.nbytes, check=partial(check.decoded, plan, weights[0]))  # fmt: skip
        yield contest.times()


def _cases(rows):
    def cases(bench: Bench) -> Iterator[Case]:
        for shape in bench.shapes:
            yield Case(title=shape.name, steps=len(bench.schemes), run=partial(rows, bench, shape))

    return cases


_SCHEMES = "int4.g128,uint4.g128,nf4.g64,mxfp4,nvfp4,int8,fp8_e4m3"
QUANTIZE = Suite(name="quantize", title="quantize and pack against a device copy", cases=_cases(_quantize), shapes="llama3-8b",
                 schemes=_SCHEMES)  # fmt: skip
DEQUANTIZE = Suite(name="dequantize", title="decode against a device copy", cases=_cases(_dequantize), shapes="llama3-8b",
                 schemes=_SCHEMES)  # fmt: skip
