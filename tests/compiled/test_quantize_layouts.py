"""The compiled quantize_frag and quantize_ksplit: bit for bit what relayout makes of the reference."""
import pytest
import torch

from tests.kernels import test_rounding as rounding
from tests.kernels.test_quantize_layouts import check, plain
from tests.support.schemes import hostile

BF16 = torch.bfloat16
F16, F32 = torch.float16, torch.float32
SAMPLE = [("frag", "int4.g128", BF16), ("frag", "uint4.g32", F32), ("frag", "mxfp4", F16), ("frag", "nf4.channel", BF16),
          ("frag", "uint4.g256.fz", BF16), ("frag", "mxfp8", F16), ("frag", "uint2.g16", BF16),
          ("ksplit", "int4.g128", BF16), ("ksplit", "uint3.g32", F32), ("ksplit", "mxfp8", F16),
          ("ksplit", "int8", BF16)]  # fmt: skip


@pytest.mark.parametrize("layout, scheme, dtype", SAMPLE, ids=str)
def test_bit_for_bit(layout, scheme, dtype, simulator):
    check(layout, scheme, hostile((70, 300), dtype), "cpu")


SHORT = [("int4.g128", BF16, 90), ("int4.g16", F16, 90), ("uint4.g32", BF16, 90), ("uint4.g64.fz", F32, 90), ("nf4.g64", BF16, 90),
         ("fp4_bnb.g32", F16, 90), ("mxfp4", BF16, 80), ("int8.g128", BF16, 80), ("int2.g32", BF16, 90), ("fp8_e4m3.g64", F32, 90),
         ("mxfp8", BF16, 90)]  # fmt: skip
KSPLIT = [("int4.g128", BF16, 90), ("uint4.g32", BF16, 80), ("nf4.g64", BF16, 90), ("int8.g64", BF16, 90), ("uint8.g16.fz", F32, 90),
          ("int2.g32", F16, 90), ("fp8_e4m3", BF16, 90)]  # fmt: skip


@pytest.mark.parametrize("scheme, dtype, simulator", SHORT, ids=str, indirect=["simulator"])
def test_whole_steps_of_frag(scheme, dtype, simulator):
    check("frag", scheme, plain(dtype), "cpu")


@pytest.mark.parametrize("scheme, dtype, simulator", KSPLIT, ids=str, indirect=["simulator"])
def test_whole_steps_of_ksplit(scheme, dtype, simulator):
    check("ksplit", scheme, plain(dtype, 512), "cpu")


@pytest.mark.parametrize("scheme, columns", [("int8", 512), ("nf4.g256", 512)], ids=str)
def test_long_groups(scheme, columns, simulator):
    check("frag", scheme, plain(BF16, columns), "cpu")


@pytest.mark.parametrize("scheme", ["int4.g128", "nf4.g128", "uint4.g256"])
def test_every_boundary(scheme, simulator):
    x = (rounding.near_affine_boundaries if scheme.startswith("u") else rounding.near_boundaries)(scheme, BF16)
    check("frag", scheme, x, "cpu")


@pytest.mark.parametrize("layout", ["frag", "ksplit"])
def test_one_number_takes_the_long_way(layout, simulator):
    x = torch.randn(128, 256).to(BF16)
    check(layout, "int4.g128", x, "cpu")
    few, x[0, 0] = simulator.steps, float("inf")
    check(layout, "int4.g128", x, "cpu")
    assert simulator.steps - few > 2 * few


@pytest.mark.parametrize("simulator", [80], indirect=True)
def test_sm_80(simulator):
    check("frag", "int4.g64", hostile((5, 72), F16), "cpu")
