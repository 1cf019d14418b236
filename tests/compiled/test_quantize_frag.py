"""The compiled quantize_frag: bit for bit what relayout makes of the reference."""
import pytest
import torch

from tests.kernels.test_quantize_frag import check

SAMPLE = [("int4.g128", torch.bfloat16), ("uint4.g32", torch.float32), ("mxfp4", torch.float16), ("nf4.channel", torch.bfloat16),
          ("uint4.g256.fz", torch.bfloat16)]  # fmt: skip


@pytest.mark.parametrize("scheme, dtype", SAMPLE, ids=str)
def test_bit_for_bit(scheme, dtype, simulator):
    check(scheme, (70, 300), dtype, "cpu")


@pytest.mark.parametrize("simulator", [80], indirect=True)
def test_sm_80(simulator):
    check("int4.g64", (5, 72), torch.float16, "cpu")
