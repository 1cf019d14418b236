"""What the repaired interpreter refuses, and that the feature checks see each of its repairs missing."""
import os

import numpy as np
import pytest
import torch
import triton.language as tl

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels run on the GPU in this process", allow_module_level=True)

from tests.support import feature_kernels as kernels
from tests.support import interp_memory, ptx_inline
from tests.support.feature_checks import CHECKS, same
from tests.support.poison import fenced
from tritonq.interpreter import exact, floats


def truncated(values, dtype):
    """What stock interpreters do: cut float32 to bf16 instead of rounding."""
    if dtype == floats.BF16:
        return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return floats.as_stored(torch.from_numpy(np.array(values)).to(floats.TORCH_TYPE[dtype]), dtype)


FAULTS = {
    "bf16 casts truncate": (
        floats,
        "from_float",
        truncated,
        ["cast float32 -> bfloat16", "store_casts float32 -> bfloat16", "add bfloat16"],
    ),
    "fma rounds twice": (exact, "fma", lambda x, y, z: x * y + z, ["fma float32", "fma float64"]),
    "fp8 does not saturate": (floats, "FP8_MAX", {}, ["cast float32 -> float8_e5m2", "cast float16 -> float8_e5m2"]),
    "raw bits taken as numbers": (
        floats,
        "to_float32",
        lambda h: h.data.astype(np.float32),
        ["dot bfloat16 M=16 warps=4", "mul bfloat16"],
    ),
    "prmt ignores its selector": (ptx_inline, "OPERATIONS", {"prmt.b32": lambda a, b, s: a}, ["inline prmt"]),
    "lop3 ignores its table": (ptx_inline, "lop3", lambda a, b, c, table: a & b, ["inline lop3"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, monkeypatch) -> None:
    module, name, broken, checks = FAULTS[fault]
    for check in checks:
        assert same(*CHECKS[check].run("cpu")), f"{check} fails without the fault"
    monkeypatch.setattr(module, name, broken)
    for check in checks:
        assert not same(*CHECKS[check].run("cpu")), f"{check} passes in spite of the fault"


def test_load_outside_every_argument() -> None:
    out = torch.empty(256)
    with pytest.raises(Exception, match="load: 6 of 128 lanes outside"):
        kernels.unmasked_copy[(2,)](torch.randn(250), out, BLOCK=128)


def test_store_outside_every_argument() -> None:
    with pytest.raises(Exception, match="store: 6 of 128 lanes outside"):
        kernels.unmasked_copy[(2,)](torch.randn(256), torch.empty(250), BLOCK=128)


def test_atomic_outside_every_argument() -> None:
    with pytest.raises(Exception, match="atomic: 8 of 64 lanes outside"):
        kernels.atomic[(1,)](torch.randn(64), torch.zeros(7), OP="add", BLOCK=64)


def test_a_view_ends_where_it_ends() -> None:
    """The storage goes on, the argument does not."""
    storage = torch.randn(256)
    with pytest.raises(Exception, match="outside every argument"):
        kernels.unmasked_copy[(2,)](storage[:250], torch.empty(256), BLOCK=128)
    kernels.unmasked_copy[(2,)](storage, torch.empty(256), BLOCK=128)


def test_the_next_launch_forgets_earlier_arguments() -> None:
    x = torch.randn(256)
    kernels.unmasked_copy[(2,)](x, torch.empty(256), BLOCK=128)
    with pytest.raises(Exception, match="outside every argument"):
        kernels.unmasked_copy[(2,)](x[:250], torch.empty(256), BLOCK=128)


def test_int32_overflow_in_offsets() -> None:
    x, out = torch.randn(64), torch.empty(64)
    kernels.row_copy[(1,)](x, out, 70000, 30000, BLOCK=64)
    with pytest.raises(Exception, match="overflow"):
        kernels.row_copy[(1,)](x, out, 70000, 40000, BLOCK=64)


def test_device_assert_is_live() -> None:
    with pytest.raises(Exception, match="n must exceed 5"):
        kernels.checked[(1,)](torch.zeros(1), 4)
    kernels.checked[(1,)](torch.zeros(1), 6)


def test_masked_lanes_are_poison() -> None:
    out = torch.zeros(64)
    kernels.masked_copy[(1,)](torch.randn(50), out, 50, FILL=False, MASK_STORE=False, BLOCK=64)
    assert torch.isnan(out[50:]).all() and not torch.isnan(out[:50]).any()
    bytes_out = torch.zeros(64, dtype=torch.uint8)
    kernels.masked_copy[(1,)](torch.zeros(50, dtype=torch.uint8), bytes_out, 50, FILL=False, MASK_STORE=False, BLOCK=64)
    assert (bytes_out[50:] == 0xA5).all()


def test_dot_below_the_hardware_minimum() -> None:
    a, b, out = torch.randn(16, 8).half(), torch.randn(8, 16).half(), torch.empty(16, 16)
    with pytest.raises(Exception, match="K >= 16"):
        kernels.dot[(1,)](a, b, out, M=16, N=16, K=8, TRANSPOSED=False, PRECISION="tf32")


def test_unknown_inline_instruction_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="madc.u32"):
        ptx_inline.run("madc.u32 $0, $1, $1, $1;", [np.zeros(4, np.int32)], [32], 1)
    with pytest.raises(KeyError, match="read before it is written"):
        ptx_inline.run("mov.b32 $0, r1;", [np.zeros(4, np.int32)], [32], 1)


def test_inline_elements_share_registers_little_end_first() -> None:
    value = np.arange(8, dtype=np.uint8)
    (out,) = ptx_inline.run("shr.u32 $0, $1, 8;", [value], [8], 4)
    assert out.tolist() == [1, 2, 3, 0, 5, 6, 7, 0]


def test_bf16_atomics_are_added_one_by_one() -> None:
    """Eight times 1 onto 256: bf16 has no 257, so each addition is lost to rounding, as on hardware."""
    out = torch.full((8,), 256.0).bfloat16()
    kernels.atomic[(1,)](torch.ones(64).bfloat16(), out, OP="add", BLOCK=64)
    assert torch.equal(out, torch.full((8,), 256.0).bfloat16())


def test_range_table_is_of_this_launch_only() -> None:
    kernels.unmasked_copy[(1,)](fenced(torch.randn(128)), torch.empty(128), BLOCK=128)
    assert len(interp_memory._ranges) == 2


def test_types_of_one_shape_share_it_and_a_size_is_checked_whatever_equals_it() -> None:
    first, second = tl.block_type(tl.float32, [8, 4]), tl.block_type(tl.int8, [tl.constexpr(8), 4])
    assert first.shape is second.shape and (first.numel, first.shape.values) == (32, [8, 4]) and first != second
    assert first == tl.block_type(tl.float32, first.shape) and str(first) == "<['8', '4'], fp32>"
    one = tl.tensor(None, tl.block_type(tl.float32, [1, 1]))
    assert one.shape[0].value == one.numel.value == 1 and tl.tensor(None, tl.float32).shape.values == []
    refused = [([1.0, 1], TypeError), ([tl.constexpr(1.0), 1], TypeError), ([12], ValueError), ([2**21], ValueError), ([], TypeError)]
    for sizes, error in refused:
        with pytest.raises(error):
            tl.block_type(tl.float32, sizes)
