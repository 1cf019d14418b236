"""Tokens per second of a small decoder with random weights, one CUDA graph a token, quantized against bfloat16."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from .. import reference
from ..nn.weight import best_layout
from ..ops import matmul, quantize
from ..qtensor import QTensor
from ..reference.matrix import swiglu
from ..scheme import Scheme
from . import check
from .decoder import LLAMA3_8B, TINY, Decoder, Dimensions, Linear
from .results import Row
from .suite import Bench, Case, Contest, Suite

FAR = 0.05  # of the logits' norm: both sides round every activation to bfloat16, at different places


class _Quantized:
    """A product that knows its weight, so that swiglu can be asked of the kernel."""

    def __init__(self, q: QTensor):
        self.q = q

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return matmul(x, self.q)


def dense(name: str, weight: torch.Tensor) -> Linear:
    """The bfloat16 product."""
    return lambda x: F.linear(x, weight)


def dense_gate_up(linear: Linear, x: torch.Tensor) -> torch.Tensor:
    return swiglu(linear(x))


def quantized(scheme: str, device: torch.device) -> Callable[[str, torch.Tensor], Linear]:
    layout = best_layout(Scheme.parse(scheme), torch.bfloat16, device)
    return lambda name, weight: _Quantized(quantize(weight, scheme).relayout(layout))


def quantized_gate_up(linear: _Quantized, x: torch.Tensor) -> torch.Tensor:
    return matmul(x, linear.q, activation="swiglu")


def decoded(scheme: str) -> Callable[[str, torch.Tensor], Linear]:
    """The judge: the same codes decoded by the reference, multiplied in bfloat16."""
    return lambda name, weight: dense(name, reference.dequantize(quantize(weight, scheme), torch.bfloat16))


def logits(decoder: Decoder, steps: int = 3) -> torch.Tensor:
    """After a few tokens that do not depend on what was answered."""
    decoder.restart()
    for token in range(steps):
        decoder.tokens.fill_(token + 1)
        decoder.step()
    found = decoder.logits.clone()
    decoder.restart()
    return found


def _size(bench: Bench) -> Dimensions:
    return LLAMA3_8B if bench.source == "gpu" else TINY


def _rows(bench: Bench) -> Iterator[list[Row]]:
    size = _size(bench)
    published = f"{size.layers} layers of Llama-3-8B's dimensions and its lm_head" if size is LLAMA3_8B else "a tiny model"
    for m in bench.ms:
        contest = Contest(bench, "end-to-end", "token step", m=m)
        plain = Decoder(size, m, bench.device, dense, dense_gate_up)
        note = f"{published}, context {size.context}"
        contest.add(bench.library, [plain.step], sku=f"decoder/{bench.library}", bytes=_bytes(plain, size, 2.0), note=note)
        for scheme in bench.schemes:
            ours = Decoder(size, m, bench.device, quantized(scheme, bench.device), quantized_gate_up)
            contest.add("tritonq", [ours.step], scheme=scheme, sku=f"decoder/{scheme}/{ours.head.q.layout}", note=note,
                        bytes=_bytes(ours, size, None), check=partial(_wrong, ours, scheme, m, bench.device, size))  # fmt: skip
        yield [_with_tokens(row) for row in contest.times()]


def _bytes(decoder: Decoder, size: Dimensions, per_weight: float | None) -> int:
    """Of all matrices; activations and the cache are small beside them."""
    if per_weight is not None:
        weights = sum(n * k for n, k in size.weights().values()) * size.layers + size.vocabulary * size.hidden
        return int(weights * per_weight)
    return sum(linear.q.nbytes for layer in decoder.layers for linear in layer.values()) + decoder.head.q.nbytes


def _wrong(ours: Decoder, scheme: str, m: int, device: torch.device, size: Dimensions) -> str:
    judge = Decoder(size, m, device, decoded(scheme), dense_gate_up)
    return check.far(logits(ours), logits(judge), FAR)


def _with_tokens(row: Row) -> Row:
    if row.us is not None:
        row.figures["tokens_per_s"] = row.m * 1e6 / row.us
    return row


def cases(bench: Bench) -> Iterator[Case]:
    yield Case(title="decoder", steps=len(bench.ms), run=partial(_rows, bench))


END_TO_END = Suite(name="end-to-end", title="tokens per second of a small decoder", cases=cases, schemes="int4.g128,nf4.g64,int8",
                   ms="1,8")  # fmt: skip
