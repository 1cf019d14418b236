"""The torch reference against brute force in numpy: every scheme family, granularity, option and dtype, bit for bit."""
import numpy as np
import pytest
import torch

import tritonq
from tests.reference.brute_force import FP4_BNB, BruteForce
from tests.support.schemes import DTYPES, SCHEMES, hostile
from tritonq.formats import FORMATS

GEOMETRIES = ("tensor", "channel", "column", "g10", "b3x5")
EVERY_FORMAT = [f"{name}.{geometry}" for name, fmt in FORMATS.items() if fmt.max_abs for geometry in GEOMETRIES]
CASES = list(dict.fromkeys([*SCHEMES, *EVERY_FORMAT]))
SHAPES = ((6, 45), (1, 1), (2, 131))


def judge(x: torch.Tensor, scheme: str):
    wide = x.double() if x.dtype == torch.float64 else x.float()
    return BruteForce(scheme, str(x.dtype).removeprefix("torch.")).quantize(wide.numpy())


def assert_same(got: torch.Tensor, want: np.ndarray, what: str) -> None:
    """Equal bits but for the sign of zero, which is compared where codes are."""
    wrong = np.flatnonzero(~(got.double().numpy() == want).reshape(-1))
    if wrong.size:
        a, b = got.reshape(-1)[wrong[0]].item(), want.reshape(-1)[wrong[0]]
        raise AssertionError(f"{what}: {wrong.size} differ, first at {wrong[0]}: {a} for {b}")


def check(x: torch.Tensor, scheme: str) -> None:
    q, want = tritonq.quantize(x, scheme), judge(x, scheme)
    if scheme.startswith("fp4_bnb"):  # two codes mean zero; which of them is what bitsandbytes' own bytes decide (tests/oracles)
        levels = np.array([*FP4_BNB, *(-m for m in FP4_BNB)])
        assert_same(torch.from_numpy(levels[q.codes().numpy()]), levels[want.codes], "levels")
    else:
        assert_same(q.codes(), want.codes, "codes")
    if want.scale is not None and "dq" not in scheme:
        assert_same(q.stored_scale.to(torch.float64) if q.stored_scale.dtype.itemsize > 1 else q.stored_scale.float(), want.scale, "scale")
    if want.zero is not None:
        assert_same(q.zero_point, want.zero, "zero_point")
    if want.second is not None:
        assert_same(q.second_scale, want.second, "second_scale")
    assert_same(q.dequantize(torch.float32), want.decoded32, "decoded float32")
    assert_same(q.dequantize(torch.float64), want.decoded64, "decoded float64")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", CASES)
def test_equals_brute_force(scheme, dtype):
    for seed, shape in enumerate(SHAPES):
        check(hostile(shape, dtype, seed), scheme)


TIED = ("int4.g32", "uint8", "uint4.fz", "int2.g16", "int3.away.g8", "nf4", "fp8_e4m3", "fp4_e2m1", "mxfp4", "mxfp8", "nvfp4")


@pytest.mark.parametrize("scheme", TIED)
def test_ties(scheme):
    """Values exactly between codes, where every rounding rule shows."""
    steps = torch.arange(-24, 25, dtype=torch.float64) / 4
    x = torch.stack([steps, steps * 0.3, -steps, steps * 2.0**-10])
    for dtype in DTYPES:
        check(x.to(dtype), scheme)


@pytest.mark.parametrize("scheme", [*TIED, "int8.tensor", "int8.column", "uint4.tensor", "int4.b3x5", "nf4.dq", "fp16"])
def test_more_than_one_chunk(scheme, monkeypatch):
    """The reference works in chunks of rows; where they end must not show."""
    from tritonq.reference import matrix

    x = hostile((29, 75), torch.float32)
    whole = tritonq.quantize(x, scheme)
    for chunk in (1, 75, 200, 1000):
        monkeypatch.setattr(matrix, "CHUNK", chunk)
        q = tritonq.quantize(x, scheme)
        assert {name: t.tolist() for name, t in whole.tensors().items()} == {name: t.tolist() for name, t in q.tensors().items()}
        assert torch.equal(q.dequantize(), whole.dequantize())


def test_the_judge_can_fail():
    """Brute force of one rule refuses the codes of another: the comparison is not empty."""
    x = hostile((6, 45), torch.float32)
    for pair in ("int4 int4.full", "int4 int4.narrow", "int4.g9 int4.g10", "uint4 uint4.fz", "nf4 nf4.s16", "uint4 uint4.pow2"):
        scheme, other = pair.split()
        q, want = tritonq.quantize(x, scheme), judge(x, other)
        with pytest.raises((AssertionError, ValueError)):
            assert_same(q.dequantize(torch.float32), want.decoded32, "decoded")
