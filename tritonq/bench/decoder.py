"""A small decoder shaped like Llama, with random weights: one token step over a static cache, capturable as one CUDA graph."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Linear = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """Of a decoder; ``layers`` may be fewer than the published model has."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    layers: int
    context: int

    def weights(self) -> dict[str, tuple[int, int]]:
        """``[N, K]`` of the matrices of one layer."""
        return {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden), "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.ffn, self.hidden), "down": (self.hidden, self.ffn),
        }  # fmt: skip


LLAMA3_8B = Dimensions(hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocabulary=128256, layers=8, context=1024)
TINY = Dimensions(hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocabulary=256, layers=2, context=16)


class Decoder:
    """``step()`` reads ``tokens`` [batch] and ``position`` [1], writes ``logits`` and the next ``tokens``, and moves ``position`` on.

    ``make(name, weight) -> Linear`` decides what multiplies; ``swiglu(x, linear)`` applies gate and up.
    """

    def __init__(self, size: Dimensions, batch: int, device: torch.device, make: Callable[[str, torch.Tensor], Linear],
                 gate_up: Callable[[Linear, torch.Tensor], torch.Tensor], seed: int = 0):  # fmt: skip
        self.size, self.gate_up = size, gate_up
        generator = torch.Generator(device).manual_seed(seed)

        def random(n: int, k: int) -> torch.Tensor:
            return torch.randn(n, k, generator=generator, device=device).mul_(k**-0.5).bfloat16()

        self.embedding = random(size.vocabulary, size.hidden).mul_(size.hidden**0.5)
        self.layers = [{name: make(f"{i}.{name}", random(n, k)) for name, (n, k) in size.weights().items()} for i in range(size.layers)]
        self.head = make("lm_head", random(size.vocabulary, size.hidden))
        shape = (size.layers, batch, size.kv_heads, size.context, size.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
        self.norm = torch.ones(size.hidden, dtype=torch.bfloat16, device=device)
        at = torch.arange(size.context, device=device)
        half = size.head_dim // 2
        angle = at[:, None] * (500000.0 ** (-torch.arange(half, device=device) / half))[None, :]
        self.cos, self.sin = angle.cos().bfloat16(), angle.sin().bfloat16()
        self.at = at
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(batch, size.vocabulary, dtype=torch.bfloat16, device=device)

    @torch.no_grad()
    def step(self) -> None:
        """One token for every sequence of the batch; no memory of Python's changes, so that a graph can replay it."""
        x = self.embedding[self.tokens]
        seen = (self.at <= self.position)[None, None, None, :]
        cos, sin = self.cos[self.position], self.sin[self.position]
        for i, layer in enumerate(self.layers):
            x = x + self._attention(i, layer, self._norm(x), seen, cos, sin)
            x = x + layer["down"](self.gate_up(layer["gate_up"], self._norm(x)))
        self.logits.copy_(self.head(self._norm(x)))
        self.tokens.copy_(self.logits.argmax(-1))
        self.position.copy_((self.position + 1) % self.size.context)

    def restart(self) -> None:
        """The state before the first token."""
        for tensor in (self.tokens, self.position, self.keys, self.values):
            tensor.zero_()

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.size.hidden,), self.norm, 1e-5)

    def _attention(self, i: int, layer: dict[str, Linear], x: torch.Tensor, seen, cos, sin) -> torch.Tensor:
        size, batch = self.size, len(x)
        qkv = layer["qkv"](x).view(batch, -1, size.head_dim)
        q, k, v = qkv.split((size.heads, size.kv_heads, size.kv_heads), 1)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        self.keys[i].index_copy_(2, self.position, k[:, :, None])
        self.values[i].index_copy_(2, self.position, v[:, :, None].contiguous())
        groups = size.heads // size.kv_heads
        q = q.reshape(batch, size.kv_heads, groups, size.head_dim)  # queries of a group share keys and values
        y = F.scaled_dot_product_attention(q, self.keys[i], self.values[i], attn_mask=seen)
        return layer["o"](y.reshape(batch, -1))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
