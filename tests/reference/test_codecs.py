"""The torch twins of every format and scale format alone: all codes, all ties, both float neighbours of each, and the far ends."""
import numpy as np
import pytest
import torch

from tests.reference.brute_force import VALUES, nearest_even
from tritonq.formats import FORMATS, SCALE_FORMATS
from tritonq.formats.codebook import midpoints, search16_ref
from tritonq.formats.numerics import narrow_ref, round_half_away_ref, round_up_to_power_of_two_ref

LEVEL_FORMATS = [fmt for fmt in FORMATS.values() if not fmt.is_integer]
CODE_BOOKS = [fmt for fmt in LEVEL_FORMATS if fmt.bits == 4 and fmt.max_abs == 1]
MINIFLOATS = [fmt for fmt in LEVEL_FORMATS if fmt.name in VALUES]
COMPUTE = (torch.float32, torch.float64)
by_name = {"ids": lambda case: str(getattr(case, "name", case))}


def around(points: torch.Tensor) -> torch.Tensor:
    """Each point and its two neighbours in its dtype."""
    return torch.cat([points, points.nextafter(points + 1), points.nextafter(points - 1)])


def levels_of(fmt) -> torch.Tensor:
    return fmt.decode_ref(torch.arange(2**fmt.bits))


def special(dtype: torch.dtype) -> torch.Tensor:
    info = torch.finfo(dtype)
    tiny = [0.0, info.smallest_normal, info.smallest_normal * info.eps, info.smallest_normal * 0.75]
    return torch.tensor([*tiny, 1.0, info.max, float("inf")], dtype=dtype)


@pytest.mark.parametrize("dtype", COMPUTE, **by_name)
@pytest.mark.parametrize("fmt", MINIFLOATS, **by_name)
def test_small_floats_round_to_nearest_even(fmt, dtype):
    values = torch.from_numpy(VALUES[fmt.name])
    middle = (values[1:] + values[:-1]) / 2
    u = torch.cat([around(values.to(dtype)), around(middle.to(dtype)), special(dtype), values[-1:].to(dtype) * 1.25])
    u = torch.cat([u[~u.signbit()], -u[~u.signbit()]])
    sign = u.signbit().int() << (fmt.bits - 1)
    want = torch.from_numpy(nearest_even(VALUES[fmt.name], u.abs().double().numpy())).int() + sign
    assert torch.equal(fmt.encode_ref(u).int(), want)


@pytest.mark.parametrize("fmt", MINIFLOATS, **by_name)
def test_float64_is_rounded_once(fmt):
    """Just beside a tie in float64, on the tie in float32: rounding by way of float32 would go to even on both sides."""
    values = torch.from_numpy(VALUES[fmt.name])
    middle = (values[1:] + values[:-1]) / 2
    above, below = middle.nextafter(middle * 2), middle.nextafter(middle * 0)
    lower = torch.arange(len(middle)).int()
    assert torch.equal(fmt.encode_ref(below).int(), lower) and torch.equal(fmt.encode_ref(above).int(), lower + 1)


@pytest.mark.parametrize("fmt", MINIFLOATS, **by_name)
def test_small_float_levels(fmt):
    want = VALUES[fmt.name]
    got = levels_of(fmt).double().numpy()
    assert np.array_equal(got[: len(want)], want) and np.array_equal(got[2 ** (fmt.bits - 1) :][: len(want)], -want)
    assert np.signbit(got[2 ** (fmt.bits - 1)]), "the code of the sign bit alone is -0.0"


@pytest.mark.parametrize("dtype", COMPUTE, **by_name)
@pytest.mark.parametrize("fmt", CODE_BOOKS, **by_name)
def test_code_books_take_the_nearest_level(fmt, dtype):
    levels = levels_of(fmt)
    ordered = levels.unique().double()
    bounds = ((ordered[1:] + ordered[:-1]) / 2).float().to(dtype)
    even = torch.linspace(-1.2, 1.2, 5001, dtype=dtype)
    u = torch.cat([around(bounds), around(ordered.to(dtype)), special(dtype), -special(dtype), even])
    want = ordered[(u[:, None] > bounds[None]).sum(1)]  # a tie takes the lower level
    assert torch.equal(levels[fmt.encode_ref(u).long()].double(), want)


@pytest.mark.parametrize("dtype", COMPUTE, **by_name)
@pytest.mark.parametrize("bounds", [midpoints(tuple(range(16))), tuple(1.9**i for i in range(15)), (-1.0, -1.0, 0.0), (0.0, 1e-30, 1.0)])
def test_search_equals_bucketize(bounds, dtype):
    """Also where bounds coincide or lie too close for the table of cells."""
    table = torch.tensor(bounds, dtype=dtype)
    u = torch.cat([around(table), special(dtype), -special(dtype), torch.randn(2000, dtype=dtype) * table.abs().max()])
    assert torch.equal(search16_ref(u, bounds).long(), torch.bucketize(u, table))


@pytest.mark.parametrize("dtype", COMPUTE, **by_name)
@pytest.mark.parametrize("fmt", LEVEL_FORMATS, **by_name)
def test_every_reachable_code_survives(fmt, dtype):
    """encode(decode(code)) is code, for every code that encode can give."""
    levels = levels_of(fmt)
    finite = levels.abs() <= (fmt.max_abs or levels[levels.isfinite()].max())
    codes = torch.arange(2**fmt.bits)[finite]
    again = fmt.encode_ref(levels[finite].to(dtype))
    same = again.long() == codes
    assert same[levels[finite] != 0].all()
    assert torch.equal(levels[again.long()], levels[finite])


@pytest.mark.parametrize("fmt", LEVEL_FORMATS, **by_name)
def test_encode_is_monotone(fmt):
    far = special(torch.float32)
    u = torch.cat([far, -far, *(torch.randn(4000) * size for size in (1e-3, 1.0, 300.0, 1e5))]).sort().values
    assert (levels_of(fmt)[fmt.encode_ref(u).long()].diff() >= 0).all()


@pytest.mark.parametrize("fmt", LEVEL_FORMATS, **by_name)
def test_registered_facts(fmt):
    """``levels`` is the table of ``decode``, and the largest level is what absmax maps to."""
    if fmt.bits <= 8:
        assert torch.equal(fmt.levels.nan_to_num(), levels_of(fmt).nan_to_num())
    if fmt.max_abs is not None:
        reachable = levels_of(fmt)[fmt.encode_ref(torch.tensor([-torch.inf, torch.inf])).long()]
        assert reachable.tolist() == [-fmt.max_abs, fmt.max_abs]


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS.values() if fmt.is_integer], **by_name)
def test_integer_levels(fmt):
    low, high = fmt.code_range
    assert sorted(fmt.levels.tolist()) == list(range(low, high + 1))
    assert fmt.levels[low % 2**fmt.bits] == low


@pytest.mark.parametrize("dtype", COMPUTE, **by_name)
@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3"])
def test_scale_storage_rounds_to_nearest_even(name, dtype):
    fmt = SCALE_FORMATS[name]
    values = torch.from_numpy(VALUES["fp8_e4m3" if name == "e4m3" else name])
    s = torch.cat([around(values.to(dtype)), around(((values[1:] + values[:-1]) / 2).to(dtype)), special(dtype)])
    s = s[s >= 0]
    want = nearest_even(values.numpy(), s.double().numpy())
    want[(want == 0) & (s > 0).numpy()] = 1  # underflow stores the smallest positive value
    assert np.array_equal(fmt.decode_ref(fmt.encode_ref(s)).double().numpy(), values.numpy()[want])


@pytest.mark.parametrize("dtype", COMPUTE, **by_name)
def test_e8m0_scales(dtype):
    fmt = SCALE_FORMATS["e8m0"]
    powers = torch.from_numpy(VALUES["e8m0"])
    s = torch.cat([around(powers.to(dtype)), around((powers * 1.5).to(dtype)), special(dtype)])
    s = s[s >= 0]
    stored = fmt.encode_ref(s)
    assert stored.dtype == torch.float8_e8m0fnu
    assert np.array_equal(stored.view(torch.uint8).numpy(), nearest_even(VALUES["e8m0"], s.double().numpy()))
    assert torch.equal(fmt.decode_ref(torch.arange(255, dtype=torch.uint8).view(fmt.dtype)).double(), powers)


def test_fp32_and_fp64_scales():
    wide = torch.tensor([0.0, 1e-60, 1.0, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e300, float("inf")], dtype=torch.float64)
    largest = torch.finfo(torch.float32).max
    assert SCALE_FORMATS["fp32"].encode_ref(wide).tolist() == [0.0, 2.0**-149, 1.0, 1.0, 1 + 2.0**-22, largest, largest]
    assert SCALE_FORMATS["fp64"].encode_ref(wide).tolist() == [*wide[:-1].tolist(), torch.finfo(torch.float64).max]


def test_rounding_helpers():
    u = around(torch.tensor([0.5, 1.5, 2.5, 3.0, 4194303.5, -0.5, -1.5, -2.5]))
    magnitude = u.abs().double()
    assert torch.equal(round_half_away_ref(u).double(), (magnitude + 0.5).floor().copysign(u.double()))  # exact in float64
    s = torch.cat([around(2.0 ** torch.arange(-120.0, 120.0)), torch.tensor([1e-44, 3e38])])
    up = round_up_to_power_of_two_ref(s).double()
    assert (up.log2() % 1 == 0).all()
    normal = (s >= 2.0**-126) & (s <= 2.0**127)
    assert ((up >= s) & (up < 2 * s.double()))[normal].all() and up[-2:].tolist() == [2.0**-126, 2.0**127]


def test_narrow_keeps_the_side_of_every_tie():
    """float64 to float32 by rounding to odd: exact where it can be, else the neighbour with an odd last bit."""
    wide = torch.cat([torch.randn(5000, dtype=torch.float64) * 10.0**e for e in (-30, 0, 30)])
    got = narrow_ref(wide)
    exact = wide.float().double() == wide
    assert torch.equal(narrow_ref(got.double()), got)
    assert (got.view(torch.int32)[~exact] & 1 == 1).all()
    assert ((got.double() - wide).abs() <= (wide.float().nextafter(torch.tensor(torch.inf)) - wide.float()).double()).all()
