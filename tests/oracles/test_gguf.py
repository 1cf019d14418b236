"""The ggml nibble order and the Q4_0, Q4_1 and Q8_0 blocks of llama.cpp, by way of the gguf package."""
import numpy as np
import pytest
import torch

import tritonq
from tests.oracles.peers import peer

gguf = peer("gguf")
X = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)


def blocks(kind: str, size: int) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[kind]
    return gguf.quants.quantize(X, kind).reshape(8, 8, size), gguf.quants.dequantize(gguf.quants.quantize(X, kind), kind)


@pytest.mark.parametrize("kind, size, header", [("Q4_0", 18, 2), ("Q4_1", 20, 4)])
def test_four_bit_blocks(kind, size, header):
    """Byte j of a block holds element j low and j + 16 high, after the fp16 scale (and minimum)."""
    data, values = blocks(kind, size)
    packed = torch.from_numpy(data[..., header:].reshape(8, 128))
    codes = tritonq.unpack(packed, 4, 256, "ggml").numpy().reshape(8, 8, 32).astype(np.float32)
    parameters = data[..., :header].copy().view(np.float16).astype(np.float32)
    decoded = parameters[..., :1] * (codes - 8) if kind == "Q4_0" else parameters[..., :1] * codes + parameters[..., 1:]
    assert np.array_equal(decoded.reshape(8, 256), values)
    assert torch.equal(tritonq.pack(torch.from_numpy(codes.reshape(8, 256)).byte(), 4, "ggml"), packed)


def test_q8_0_is_int8_away():
    """Q8_0 rounds half away from zero and stores its scale as fp16, but codes with the scale before that rounding: ours without s16."""
    data, _ = blocks("Q8_0", 34)
    scale = data[..., :2].copy().view(np.float16)[..., 0]
    theirs = data[..., 2:].view(np.int8).reshape(8, 256)
    q = tritonq.quantize(torch.from_numpy(X), "int8.g32.away.s16")
    assert np.array_equal(q.scale.numpy(), scale)
    exact = tritonq.quantize(torch.from_numpy(X), "int8.g32.away").codes().numpy()
    assert (np.abs(exact.astype(int) - theirs) <= 1).all() and (exact != theirs).mean() < 1e-3
