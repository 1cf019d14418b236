"""Small floats and scale formats against ml_dtypes' casts."""
import numpy as np
import pytest
import torch

import tritonq
from tests.oracles.peers import peer
from tritonq.formats import SCALE_FORMATS

ml_dtypes = peer("ml_dtypes")
PAIRS = [("fp4_e2m1", "float4_e2m1fn"), ("fp8_e4m3", "float8_e4m3fn"), ("fp8_e5m2", "float8_e5m2"), ("bf16", "bfloat16")]


def spectrum(largest: float) -> np.ndarray:
    """Every magnitude, random and on a fine grid, up to ``largest``; beyond it ml_dtypes gives NaN or Inf, tritonq saturates."""
    random = np.random.default_rng(0)
    values = random.standard_normal(200_000) * 10.0 ** random.uniform(-12, 6, 200_000)
    values = np.concatenate([values, np.linspace(-1, 1, 40_001) * min(largest, 1e6), [0.0, -0.0, largest, -largest]])
    return values[np.abs(values) <= largest].astype(np.float32)


@pytest.mark.parametrize("name, dtype", PAIRS)
def test_codes_and_levels(name, dtype):
    fmt, theirs = tritonq.Scheme.parse(name).format, getattr(ml_dtypes, dtype)
    x = spectrum(float(ml_dtypes.finfo(theirs).max))
    want = x.astype(theirs).view(np.uint16 if fmt.bits == 16 else np.uint8).astype(np.int32) & (2**fmt.bits - 1)
    assert np.array_equal(fmt.encode_ref(torch.from_numpy(x)).int().numpy(), want)
    codes = np.unique(want)
    levels = codes.astype(np.uint16 if fmt.bits == 16 else np.uint8).view(theirs).astype(np.float32)
    assert np.array_equal(fmt.decode_ref(torch.from_numpy(codes)).numpy(), levels)
    assert np.array_equal(np.signbit(fmt.decode_ref(torch.from_numpy(codes)).numpy()), np.signbit(levels))


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_saturation(name):
    """Above the largest finite value torch and ml_dtypes disagree with each other; tritonq saturates, Inf too."""
    fmt = tritonq.Scheme.parse(name).format
    far = torch.tensor([fmt.max_abs * 1.01, fmt.max_abs * 2, 1e30, float("inf")])
    for sign in (1, -1):
        assert fmt.levels[fmt.encode_ref(sign * far).long()].tolist() == [sign * fmt.max_abs] * 4


def test_e8m0_and_e4m3_scales():
    s = np.abs(spectrum(400.0))
    s = s[s > 2.0**-9]
    ours = SCALE_FORMATS["e4m3"].encode_ref(torch.from_numpy(s)).view(torch.uint8).numpy()
    assert np.array_equal(ours, s.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    powers = 2.0 ** np.arange(-126, 127).astype(np.float32)
    ours = SCALE_FORMATS["e8m0"].encode_ref(torch.from_numpy(powers)).view(torch.uint8).numpy()
    assert np.array_equal(ours, powers.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))
