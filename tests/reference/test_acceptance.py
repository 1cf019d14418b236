"""What an outside user stumbled over: each test is a call that once gave a foreign exception, a wrong result or a surprise."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tritonq
from tritonq.cli import main
from tritonq.errors import InvalidProblemError
from tritonq.formats import get_format
from tritonq.formats.numerics import decode_minifloat_ref, encode_minifloat_ref

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("bits", [4.0, True, "4", None])
def test_pack_takes_whole_numbers_of_bits(bits):
    with pytest.raises(InvalidProblemError, match="cannot be packed"):
        tritonq.pack(torch.tensor([1]), bits)


@pytest.mark.parametrize("length", [True, 1.0, "1"])
def test_unpack_takes_whole_lengths(length):
    with pytest.raises(InvalidProblemError, match="length"):
        tritonq.unpack(torch.tensor([1], dtype=torch.uint8), 4, length)


@pytest.mark.parametrize("text", ["int4.g\u0663\u0662", "int4.b\u0662x2"])
def test_sizes_are_ascii_digits(text):
    with pytest.raises(InvalidProblemError, match="unknown part"):
        tritonq.Scheme.parse(text)


@pytest.mark.parametrize("scheme", ["int4.g{}", "nf4.b{0}x{0}"])
def test_groups_beyond_64_bits_are_the_whole_row(scheme):
    """Kernels see the size of a group as an integer of at most 64 bits."""
    huge = tritonq.Scheme.parse(scheme.format(10**30))
    assert huge.group_shape(6, 40)[1] == 40 and huge.group_shape(0, 0) == (1, 1)
    x = torch.randn(6, 40)
    q, whole = tritonq.quantize(x, huge), tritonq.quantize(x, scheme.format(40))
    assert torch.equal(q.packed, whole.packed) and torch.equal(q.scale, whole.scale) and torch.equal(q.dequantize(), whole.dequantize())


def test_a_text_as_dtype_is_shown_as_text():
    q = tritonq.quantize(torch.randn(2, 4), "int8")
    with pytest.raises(InvalidProblemError, match="got 'float32'"):
        tritonq.dequantize(q, "float32")


def test_an_empty_backend_variable_counts_as_unset(monkeypatch):
    monkeypatch.delenv("TRITONQ_BACKEND", raising=False)
    unset = tritonq.backend()
    monkeypatch.setenv("TRITONQ_BACKEND", "")
    assert tritonq.backend() == unset


@pytest.mark.parametrize("name, exponent_bits, mantissa_bits", [("fp16", 5, 10), ("bf16", 8, 7)])
def test_casts_of_torch_equal_the_rule(name, exponent_bits, mantissa_bits):
    """All codes, all levels, and what lies beside every rounding boundary, against the arithmetic that all small floats use."""
    fmt = get_format(name)
    largest = {"fp16": 0x7BFF, "bf16": 0x7F7F}[name]
    rule = exponent_bits, mantissa_bits, decode_minifloat_ref(torch.tensor(largest), exponent_bits, mantissa_bits, largest).item()
    codes = torch.arange(1 << 16)
    levels, want = fmt.decode_ref(codes), decode_minifloat_ref(codes, exponent_bits, mantissa_bits, largest)
    assert torch.equal(levels.isnan(), want.isnan())
    assert torch.equal(levels[~levels.isnan()].view(torch.int32), want[~want.isnan()].view(torch.int32))
    finite = levels[levels.isfinite()].sort().values.double()
    middle = (finite[1:] + finite[:-1]) / 2
    above, below = torch.nextafter(middle, torch.tensor(torch.inf).double()), torch.nextafter(middle, torch.tensor(-torch.inf).double())
    special = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1e300, -1e300, 1e-320, -1e-320, 65519.0, 65520.0, 3.4e38]).double()
    for u in (torch.cat((finite, middle, above, below, special)), torch.cat((finite, middle, special)).float()):
        assert torch.equal(fmt.encode_ref(u).int() & 0xFFFF, encode_minifloat_ref(u, *rule).int() & 0xFFFF)


def test_plain_casts_are_those_of_torch():
    x = torch.cat((torch.randn(64, 512), torch.randn(64, 512) * 1e-7, torch.randn(64, 512) * 1e4))
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        finite = x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        q = tritonq.quantize(x, name)
        assert torch.equal(q.packed.view(dtype), finite.to(dtype)) and torch.equal(q.dequantize(), finite.to(dtype).float())


@pytest.mark.parametrize("blocks", [1, 2, 7, 1024, 1031, 2062])
def test_flat_nf4_is_that_of_one_row(blocks):
    """The quantizer cuts its input into rows; 1031 is prime and above the width of a row."""
    x = torch.randn(blocks * 64)
    quantizer, q = tritonq.Nf4Quantizer(), tritonq.quantize(x[None], "nf4.g64")
    packed, absmax = quantizer.encode(x)
    assert torch.equal(packed, q.packed[0]) and torch.equal(absmax, q.scale[0])
    assert torch.equal(quantizer.decode(packed, absmax), q.dequantize()[0])
    assert quantizer.quantization_mse(x) == pytest.approx((q.dequantize()[0].double() - x.double()).square().mean().item())


_PEAK = """
import torch, tritonq
def peak():
    return [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0] >> 10
x = torch.randn(32 << 20)
quantizer = tritonq.Nf4Quantizer()
quantizer.encode(x[: 1 << 20])
before = peak()
quantizer.encode(x)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_flat_nf4_of_128_MiB_takes_little_memory():
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 18 + 32, "the result, 18 MiB, and a quarter of the input"


@pytest.mark.parametrize("path", [None, 5, b"x", ""])
def test_paths_are_texts(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where an empty path must not write
    source = tmp_path / "model.safetensors"
    tritonq.save({"w": torch.randn(4, 64)}, source)
    for call in (
        lambda: tritonq.save({"w": torch.zeros(1)}, path),
        lambda: tritonq.load(path),
        lambda: tritonq.checkpoints.open(path),
        lambda: tritonq.checkpoints.quantize_checkpoint(path, tmp_path / "out", "nf4"),
        lambda: tritonq.checkpoints.quantize_checkpoint(source, path, "nf4", overwrite=True),
    ):
        with pytest.raises(InvalidProblemError, match="path is"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_save_refuses_the_name_of_the_header(tmp_path):
    with pytest.raises(InvalidProblemError, match="'__metadata__'"):
        tritonq.save({"__metadata__": torch.zeros(3)}, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("choice", ["triton", "nonsense"])
def test_a_backend_that_cannot_run_is_one_line(choice, tmp_path, monkeypatch, capsys):
    pytest.importorskip("triton")
    tritonq.save({"w": torch.randn(4, 64)}, tmp_path / "model.safetensors")
    monkeypatch.setenv("TRITONQ_BACKEND", choice)
    assert main(["quantize", str(tmp_path), "--scheme", "nf4", "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tritonq: TRITONQ_BACKEND={choice}".replace("=nonsense", "='nonsense'")) and said.count("\n") == 1
