"""The decoder of the suite end-to-end: token by token over a cache it computes what a whole sequence at once gives."""
import torch
import torch.nn.functional as F

from tritonq.bench.decoder import TINY, Decoder
from tritonq.bench.end_to_end import dense, dense_gate_up, logits, quantized, quantized_gate_up

CPU = torch.device("cpu")


def at_once(decoder: Decoder, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the last position of ``tokens`` [batch, length], in float64 with causal attention and no cache."""
    size, (batch, length) = decoder.size, tokens.shape
    weights = {name: weight.double() for name, weight in weights.items()}
    x = decoder.embedding.double()[tokens]
    half = size.head_dim // 2
    angle = torch.arange(length)[:, None] * 500000.0 ** (-torch.arange(half) / half)
    turn = torch.polar(torch.ones(()).double(), angle.double())

    def norm(v):
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def heads(v, count):
        return v.view(batch, length, count, size.head_dim).transpose(1, 2)

    def rotated(v):
        z = torch.complex(v[..., :half], v[..., half:]) * turn
        return torch.cat((z.real, z.imag), -1)

    for i in range(size.layers):
        q, k, v = (norm(x) @ weights[f"{i}.qkv"].T).split([size.heads * size.head_dim, *[size.kv_heads * size.head_dim] * 2], -1)
        q, k, v = rotated(heads(q, size.heads)), rotated(heads(k, size.kv_heads)), heads(v, size.kv_heads)
        share = size.heads // size.kv_heads
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(share, 1), v.repeat_interleave(share, 1), is_causal=True)
        x = x + y.transpose(1, 2).reshape(batch, length, -1) @ weights[f"{i}.o"].T
        gate, up = (norm(x) @ weights[f"{i}.gate_up"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ weights[f"{i}.down"].T
    return norm(x[:, -1]) @ weights["lm_head"].T


def test_token_by_token_is_the_whole_sequence_at_once():
    weights = {}

    def make(name, weight):
        weights[name] = weight
        return dense(name, weight)

    decoder = Decoder(TINY, 3, CPU, make, dense_gate_up)
    tokens = torch.randint(TINY.vocabulary, (3, 6), generator=torch.Generator().manual_seed(1))
    for i in range(tokens.shape[1]):
        decoder.tokens.copy_(tokens[:, i])
        decoder.step()
    want = at_once(decoder, weights, tokens)
    assert float((decoder.logits.double() - want).norm() / want.norm()) < 0.03  # bfloat16 all the way
    assert torch.equal(decoder.tokens, decoder.logits.argmax(-1)) and int(decoder.position) == 6


def test_one_seed_one_model_and_restart_forgets():
    plain = Decoder(TINY, 2, CPU, dense, dense_gate_up)
    first = logits(plain)
    assert torch.equal(first, logits(plain)) and int(plain.position) == 0
    near = Decoder(TINY, 2, CPU, quantized("int8", CPU), quantized_gate_up)
    assert float((logits(near).double() - first.double()).norm() / first.double().norm()) < 0.1


def test_the_position_wraps_within_the_context():
    plain = Decoder(TINY, 1, CPU, dense, dense_gate_up)
    for _ in range(TINY.context + 2):
        plain.step()
    assert int(plain.position) == 2 and bool(plain.logits.isfinite().all())
