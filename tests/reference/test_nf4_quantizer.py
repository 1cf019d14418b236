"""Nf4Quantizer: flat blocks of NF4, against bitsandbytes, a search in plain Python, and the rules for what is odd or wrong."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tritonq
from tests.oracles.plain_methods import f32
from tests.support.schemes import same_tensors
from tritonq import Nf4Quantizer
from tritonq.errors import InvalidProblemError

LEVELS = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
          -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
          0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip


def plain_codes(values: list[float], block: int) -> tuple[list[int], list[float], list[float]]:
    """Codes, absmax and values by exhaustive search: the nearest level of x / absmax, a tie to the lower one."""
    codes, absmax, decoded = [], [], []
    for start in range(0, len(values), block):
        numbers = values[start : start + block]
        largest = max((abs(v) for v in numbers if math.isfinite(v)), default=0.0)
        absmax.append(largest)
        for value in numbers:
            value = 0.0 if math.isnan(value) else value
            u = f32(value / largest) if largest and math.isfinite(value) else value
            below = [i for i in range(15) if u > f32((LEVELS[i] + LEVELS[i + 1]) / 2)]
            codes.append(len(below))
            decoded.append(f32(LEVELS[len(below)] * largest))
    return codes, absmax, decoded


@pytest.mark.parametrize("block", [2, 4, 6, 16, 64, 100, 4096])
def test_encode_and_decode(block: int) -> None:
    values = torch.randn(block * 3)
    values[1], values[block], values[-1] = math.nan, math.inf, -math.inf
    values[2 * block : 3 * block - 1] = 0.0  # the last block: zeros and an infinity, no range
    quantizer = Nf4Quantizer(block_size=block)
    packed, absmax = quantizer.encode(values)
    codes, expected_absmax, decoded = plain_codes(values.tolist(), block)
    assert packed.dtype == torch.uint8 and absmax.dtype == torch.float32 and packed.shape == (block * 3 // 2,) and absmax.shape == (3,)
    assert packed.tolist() == [low | high << 4 for low, high in zip(codes[::2], codes[1::2])]
    assert absmax.tolist() == expected_absmax
    restored = quantizer.decode(packed, absmax)
    assert restored.dtype == torch.float32 and restored.tolist() == decoded


def test_it_is_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    x = torch.randn(64 * 200) * torch.rand(200).repeat_interleave(64)
    theirs, state = functional.quantize_4bit(x, blocksize=64, quant_type="nf4")
    packed, absmax = Nf4Quantizer().encode(x)
    swapped = ((packed & 15) << 4) | (packed >> 4)  # bitsandbytes puts the first element in the high nibble
    # They multiply by 1 / absmax: the last bit of the quotient may differ, and with it a code beside a threshold.
    assert torch.equal(absmax, state.absmax) and (swapped != theirs.flatten()).float().mean() < 1e-3
    same = (((theirs.flatten() & 15) << 4) | (theirs.flatten() >> 4)).to(torch.uint8)
    assert torch.equal(Nf4Quantizer().decode(same, absmax), functional.dequantize_4bit(theirs, state).flatten())


def test_zeros() -> None:
    packed, absmax = Nf4Quantizer(block_size=8).encode(torch.zeros(16))
    assert packed.tolist() == [0x77] * 8 and absmax.tolist() == [0.0, 0.0]
    assert Nf4Quantizer(block_size=8).decode(packed, absmax).tolist() == [0.0] * 16


def test_it_is_the_flat_scheme() -> None:
    x = torch.randn(5, 64)
    packed, absmax = Nf4Quantizer(block_size=32).encode(x.flatten())
    q = tritonq.quantize(x, "nf4.g32")
    assert torch.equal(packed, q.packed.flatten()) and torch.equal(absmax, q.scale.flatten())


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda v: torch.tensor(v), lambda v: torch.tensor(v, dtype=torch.float64)])
def test_what_can_be_encoded(make) -> None:
    values = [1.0, -0.5, 0.25, 0.125]
    quantizer = Nf4Quantizer(block_size=4)
    packed, absmax = quantizer.encode(make(values))
    assert packed.tolist() == [0x2F, 0x9A] and absmax.tolist() == [1.0]
    expected = quantizer.decode(packed, absmax)
    assert torch.equal(quantizer.decode(packed.tolist(), absmax.tolist()), expected)
    assert torch.equal(quantizer.decode(packed.numpy(), absmax.numpy()), expected)


def test_strided_and_half_input() -> None:
    x = torch.randn(256).bfloat16()
    assert same_tensors(Nf4Quantizer().encode(x[::2]), Nf4Quantizer().encode(x[::2].float()))
    packed, absmax = Nf4Quantizer().encode(x.float().requires_grad_())
    assert not packed.requires_grad and not absmax.requires_grad


def test_mse() -> None:
    x = torch.randn(640)
    quantizer = Nf4Quantizer()
    decoded = quantizer.decode(*quantizer.encode(x))
    expected = sum((a - b) ** 2 for a, b in zip(decoded.tolist(), x.tolist())) / 640
    assert quantizer.quantization_mse(x) == pytest.approx(expected, rel=1e-12) and 0 < expected < 0.02
    assert quantizer.quantization_mse([0.0] * 64) == 0.0
    x[3], x[70] = math.nan, math.inf
    assert 0 < quantizer.quantization_mse(x) < 0.02
    assert quantizer.quantization_mse(torch.full((64,), math.nan)) == 0.0
    ramp = torch.arange(128) / 64 - 1
    assert quantizer.quantization_mse(ramp) == pytest.approx(0.0028483, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Nf4Quantizer(block_size=0), "block_size must be positive and even .*, got 0; 64 is usual"),
        (lambda: Nf4Quantizer(block_size=-64), "got -64"),
        (lambda: Nf4Quantizer(block_size=63), "got 63"),
        (lambda: Nf4Quantizer(block_size=64.0), "block_size must be an? int, got float 64.0"),
        (lambda: Nf4Quantizer(block_size=True), "block_size must be an? int, got bool"),
        (lambda: Nf4Quantizer().encode([]), "x has 0 elements: the input is empty; NF4 needs at least one block of 64"),
        (lambda: Nf4Quantizer().encode(torch.empty(0)), "the input is empty"),
        (lambda: Nf4Quantizer().quantization_mse([]), "the input is empty"),
        (lambda: Nf4Quantizer().encode(torch.zeros(65)), "x has 65 elements, no multiple of the block size 64; pad it, or use"),
        (lambda: Nf4Quantizer().quantization_mse(torch.zeros(63)), "x has 63 elements"),
        (lambda: Nf4Quantizer().encode(torch.zeros(2, 64)), r"x must be flat, \[n\], got shape \(2, 64\); pass x.flatten\(\)"),
        (lambda: Nf4Quantizer().encode(torch.zeros(64, dtype=torch.int32)), "got torch.int32; convert it with .float"),
        (lambda: Nf4Quantizer().encode("nf4"), "x must be a tensor or a sequence of numbers, got str 'nf4'"),
        (lambda: Nf4Quantizer().encode(None), "got NoneType None"),
        (lambda: Nf4Quantizer().encode([[1.0, 2.0]]), r"x must be flat, got shape \(1, 2\)"),
        (lambda: Nf4Quantizer().decode([], []), "packed holds 0 codes: the input is empty"),
        (lambda: Nf4Quantizer().decode([0] * 33, [1.0]), "packed holds 66 codes, no multiple of the block size 64"),
        (lambda: Nf4Quantizer().decode([0] * 64, [1.0]), "absmax has 1 values, 128 codes in blocks of 64 need 2; pass what encode"),
        (lambda: Nf4Quantizer().decode([0] * 32, [1.0, 1.0]), "absmax has 2 values, 64 codes in blocks of 64 need 1"),
        (lambda: Nf4Quantizer().decode([0] * 32, [math.nan]), "absmax must be finite and not negative, got nan"),
        (lambda: Nf4Quantizer().decode([0] * 32, [math.inf]), "got inf"),
        (lambda: Nf4Quantizer().decode([0] * 32, [-1.0]), "got -1.0"),
        (lambda: Nf4Quantizer().decode([256] * 32, [1.0]), "packed must hold bytes, 0..255, got"),
        (lambda: Nf4Quantizer().decode([0.5] * 32, [1.0]), "packed must hold bytes"),
        (lambda: Nf4Quantizer().decode(torch.zeros(32, dtype=torch.int8), [1.0]), "packed must be torch.uint8, got torch.int8"),
        (lambda: Nf4Quantizer().decode([0] * 32, torch.ones(1).double()), "absmax must be torch.float32, got torch.float64"),
        (lambda: Nf4Quantizer().decode(torch.zeros(1, 32, dtype=torch.uint8), [1.0]), r"packed must be flat, got shape \(1, 32\)"),
    ],
)  # fmt: skip
def test_refusals(call, text: str) -> None:
    with pytest.raises(InvalidProblemError, match=text):
        call()
