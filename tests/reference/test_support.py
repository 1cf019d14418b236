"""The parts of the test support that need no kernel."""
import math
import os

import numpy as np
import pytest
import torch

from tests import run
from tests.support import process
from tests.support.poison import check_fence, fenced, poisoned_empty
from tests.support.ptx import numbers
from tests.support.ptx.program import PtxError, bits_of, parse
from tests.support.schemes import same_tensors
from tritonq.interpreter import exact

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fenced_copies_and_surrounds(dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 100, (5, 7)).to(dtype)
    copy = fenced(tensor)
    assert torch.equal(copy.double(), tensor.double()) and copy.stride() == tensor.stride()
    check_fence(copy)
    storage = copy.as_strided((1,), (1,), copy.storage_offset() - 1)
    assert (storage.view(torch.uint8) == 0xFF).all()


def test_fence_keeps_strides_and_watches_holes() -> None:
    tensor = torch.randn(6, 8)[::2, ::4]
    copy = fenced(tensor)
    assert torch.equal(copy, tensor) and copy.stride() == tensor.stride()
    check_fence(copy)
    copy.as_strided((1,), (1,), copy.storage_offset() + 1).fill_(0.0)
    with pytest.raises(AssertionError, match="1 elements outside .* offset 1"):
        check_fence(copy)


@pytest.mark.parametrize("offset", [-1, 10])
def test_a_write_outside_is_seen(offset: int) -> None:
    copy = fenced(torch.zeros(10))
    copy.as_strided((1,), (1,), copy.storage_offset() + offset).fill_(1.0)
    with pytest.raises(AssertionError, match=f"first at offset {offset}"):
        check_fence(copy)


def test_poison_is_nan_or_all_ones() -> None:
    assert torch.isnan(poisoned_empty(3, 4)).all() and torch.isnan(poisoned_empty(3, dtype=torch.float8_e4m3fn).float()).all()
    assert (poisoned_empty(3, dtype=torch.uint8) == 255).all() and (poisoned_empty(3, dtype=torch.int32) == -1).all()
    assert poisoned_empty(0, 4).shape == (0, 4) and fenced(torch.empty(0, 3)).shape == (0, 3)


def test_fma_rounds_once() -> None:
    """(1 + 2^-12)^2 - 1 - 2^-11 is exactly 2^-24; two roundings lose it."""
    x = np.array([1 + 2.0**-12], np.float32)
    assert exact.fma(x, x, np.array([-1 - 2.0**-11], np.float32))[0] == 2.0**-24
    x = np.array([1 + 2.0**-30])
    assert exact.fma(x, x, np.array([-1 - 2.0**-29]))[0] == 2.0**-60
    assert math.isnan(exact.fma(np.array([np.inf]), np.array([0.0]), np.array([1.0]))[0])


def test_fma_breaks_no_false_tie() -> None:
    """The true sum lies just beside the middle of two float32, and float64 would round it onto the middle."""
    x, y = np.array([2.0**-24], np.float32), np.array([1.0], np.float32)
    above = np.array([1.0], np.float32)
    assert exact.fma(x, y, above)[0] == 1.0  # a true tie goes to even
    x = np.array([2.0**-24 * (1 + 2.0**-23)], np.float32)
    assert exact.fma(x, y * (1 + np.float32(2.0**-23)), above)[0] == np.float32(1 + 2.0**-23)


def test_sixteen_bit_rounding_is_single() -> None:
    """1 + 2^-8 + 2^-40 lies above the middle of two bf16; float32 would put it on the middle, and even is below."""
    values = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8 - 2.0**-40, 1e39, np.nan])
    expected = np.array([0x3F81, 0x3F80, 0x3F82, 0xBF81, 0x7F80, 0x7FFF], np.uint16)
    assert np.array_equal(numbers.float_to_bf16(values), expected)
    assert numbers.float_to_bf16(values, toward_zero=True)[0] == 0x3F80
    assert numbers.float_to_f16(np.array([1 + 2.0**-11 + 2.0**-40]))[0] == 0x3C01
    assert numbers.float_to_f16(np.array([1.9999], np.float32), toward_zero=True)[0] == 0x3FFF


@pytest.mark.parametrize("kind", ["f16", "bf16", "e4m3", "e5m2"])
def test_every_code_survives_decode_and_encode(kind: str) -> None:
    width = 8 if kind[0] == "e" else 16
    codes = np.arange(2**width, dtype=np.uint8 if width == 8 else np.uint16)
    values = numbers.decode(codes, kind)
    keep = np.isfinite(values)
    assert np.array_equal(numbers.encode(values[keep], kind), codes[keep]) and keep.sum() > 0.9 * len(codes)


def test_ptx_is_parsed() -> None:
    text = """
.visible .entry k(
    .param .u64 .ptr .global .align 16 k_param_0,
    .param .u32 k_param_1
)
{
    .reg .pred %p<3>;
    ld.param.b64 %rd1, [k_param_0]; // comment; with semicolon
    @!%p1 st.global.v2.b32 [ %rd1 + 16 ], { %r1, %r2 };
$L1:
    @%p2 bra $L1;
    {
        .reg .b32 t;
        mov.b32 {%rs1, %rs2}, %r1;
    }
    ret;
}
"""
    program = parse(text)
    assert program.parameters == ("k_param_0", "k_param_1") and program.labels == {"$L1": 2}
    assert [i.kind for i in program.code] == ["ld", "st", "bra", "mov", "ret", "ret"]
    store = program.code[1]
    assert (store.predicate, store.negated, store.bits) == ("%p1", True, 32)
    assert store.operands == ("[ %rd1 + 16 ]", "{ %r1, %r2 }")
    assert (bits_of("bf16x2"), bits_of("s64"), bits_of("sync")) == (32, 64, 0)
    assert issubclass(PtxError, Exception)


def test_tensors_of_two_lists() -> None:
    one, other = torch.zeros(2), torch.ones(2)
    assert same_tensors([one, other], iter([one, other]))
    assert not same_tensors([one, other], [one, one]) and not same_tensors([one, other], [one]) and not same_tensors([one], [one, other])
    assert not same_tensors([], []), "nothing was compared"


def test_a_process_runs_kernels_one_way(monkeypatch) -> None:
    monkeypatch.setattr(process, "_claimed_by", None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(pytest.UsageError, match="tests/compiled needs a process without TRITON_INTERPRET"):
        process.require_compiled("tests/compiled")
    monkeypatch.delenv("TRITON_INTERPRET")
    process.require_compiled("tests/compiled")
    with pytest.raises(pytest.UsageError, match="shares this process with tests/compiled"):
        process.require_interpreted("tests/kernels")
    monkeypatch.setattr(process, "_claimed_by", None)
    monkeypatch.setitem(process.sys.modules, "triton", object())
    with pytest.raises(pytest.UsageError, match="triton was already imported without TRITON_INTERPRET=1"):
        process.require_interpreted("tests/kernels")


def test_the_sample_on_the_oldest_triton_is_left_out_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "OLDEST", tmp_path)
    assert "oldest" not in run.default_groups(quick=False)
    (tmp_path / "triton").mkdir()
    assert run.default_groups(quick=False)[-1] == "oldest" and "oldest" not in run.default_groups(quick=True)
    assert run.environment("oldest", "", 1)["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
