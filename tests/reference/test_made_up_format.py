"""A format is one file: one that is not in the package works everywhere in the library as soon as it is imported."""
import json
from dataclasses import replace

import pytest
import torch

import tritonq
from tests.support.made_up import SCHEMES, registered
from tests.support.schemes import DTYPES, hostile
from tritonq.cli import main
from tritonq.errors import InvalidProblemError
from tritonq.formats import FORMATS, register


@pytest.fixture(autouse=True)
def sq4():
    with registered() as fmt:
        yield fmt


def nearest(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Index of the nearest level, ties to the lower one, by looking at every level."""
    return (x.double()[..., None] - levels.double()).abs().argmin(-1)


def test_every_code_survives_decode_and_encode(sq4):
    codes = torch.arange(16)
    assert torch.equal(sq4.encode_ref(sq4.decode_ref(codes)), codes.int())


def test_both_sides_of_every_midpoint(sq4):
    levels = sq4.levels
    middle = (levels[1:] + levels[:-1]) / 2  # exact: levels are multiples of 1/64
    up, down = torch.full_like(middle, torch.inf), torch.full_like(middle, -torch.inf)
    for x, want in ((middle, 0), (middle.nextafter(down), 0), (middle.nextafter(up), 1)):
        assert torch.equal(sq4.encode_ref(x), torch.arange(15, dtype=torch.int32) + want)
        assert torch.equal(sq4.encode_ref(x.double()), torch.arange(15, dtype=torch.int32) + want)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_quantize_takes_the_nearest_level(sq4, dtype):
    x = torch.randn(9, 200, dtype=torch.float64).to(dtype)
    q = tritonq.quantize(x, "sq4.g50")
    # Quotients that lie on a tie after rounding to the computing dtype are decided there, as the library does.
    quotient = x.to(torch.float64 if dtype == torch.float64 else torch.float32) / q.scale.repeat_interleave(50, 1)
    assert torch.equal(q.codes().long(), nearest(quotient, sq4.levels))
    assert torch.equal(q.scale, x.view(9, 4, 50).abs().amax(-1).float())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dequantize_and_matmul(sq4, scheme):
    assert not tritonq.quantize(hostile((8, 130), torch.float32), scheme).dequantize().isnan().any()
    x, w = torch.randn(3, 130), torch.randn(8, 130)
    q = tritonq.quantize(w, scheme)
    w_hat = q.dequantize(torch.float64)
    assert w_hat.shape == w.shape and 10 < 10 * float((w.square().sum() / (w - w_hat).square().sum()).log10()) < 30
    plan = tritonq.select(tritonq.MatmulDesc.of(x, q))
    error = (plan.run(x, q).double() - x.double() @ w_hat.T).abs()
    assert (error <= plan.precision_guarantee().bound(x, q)).all()


def test_the_scheme_grammar_knows_it():
    scheme = tritonq.Scheme.parse("sq4.g32.se8m0")
    assert (scheme.format.name, scheme.group_size, scheme.scale, str(scheme)) == ("sq4", 32, "e8m0", "sq4.g32.se8m0")
    assert str(tritonq.Scheme.parse("sq4").granularity) == "g64"
    with pytest.raises(InvalidProblemError, match="option 'full' is for signed integer formats .*, not sq4"):
        tritonq.Scheme.parse("sq4.full")


def test_the_command_line_lists_it(capsys):
    assert main(["formats", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["formats"]}
    assert rows["sq4"]["bits_per_weight"] == 4.5 and rows["sq4"]["source"].startswith("made up")
    assert main(["formats"]) == 0
    assert "sq4" in capsys.readouterr().out


def test_save_and_load(tmp_path):
    q = tritonq.quantize(torch.randn(5, 70), "sq4.g32.dq")
    tritonq.save({"w": q}, tmp_path / "w.safetensors")
    loaded = tritonq.load(tmp_path / "w.safetensors")["w"]
    assert loaded.scheme == q.scheme and torch.equal(loaded.dequantize(), q.dequantize())


def test_the_generated_pages_would_list_it():
    from docs import generate

    assert any(line.startswith("| `sq4`") for line in generate.format_table().splitlines())


def test_it_is_gone_afterwards():
    with pytest.raises(InvalidProblemError, match="'sq4' is registered already"), registered():
        pass
    assert "sq4" in FORMATS
    del FORMATS["sq4"]
    with pytest.raises(InvalidProblemError, match="unknown format 'sq4'"):
        tritonq.Scheme.parse("sq4")


def test_recoding_keeps_the_code_of_zero(sq4):
    with pytest.raises(InvalidProblemError, match="'again' has recode, and 7 as the code of 0; it must be 0"):
        register(replace(sq4, name="again", recode=lambda ranks: ranks))
    assert "again" not in FORMATS
