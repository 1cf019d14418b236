"""The compiled quantize_frag and quantize_ksplit: bit for bit what relayout makes of the reference."""
import pytest
import torch

from tests.kernels.test_quantize_layouts import check

BF16 = torch.bfloat16
F16, F32 = torch.float16, torch.float32
SAMPLE = [("frag", "int4.g128", BF16), ("frag", "uint4.g32", F32), ("frag", "mxfp4", F16), ("frag", "nf4.channel", BF16),
          ("frag", "uint4.g256.fz", BF16), ("ksplit", "int4.g128", BF16), ("ksplit", "uint3.g32", F32), ("ksplit", "mxfp8", F16),
          ("ksplit", "int8", BF16)]  # fmt: skip


@pytest.mark.parametrize("layout, scheme, dtype", SAMPLE, ids=str)
def test_bit_for_bit(layout, scheme, dtype, simulator):
    check(layout, scheme, (70, 300), dtype, "cpu")


@pytest.mark.parametrize("simulator", [80], indirect=True)
def test_sm_80(simulator):
    check("frag", "int4.g64", (5, 72), torch.float16, "cpu")
