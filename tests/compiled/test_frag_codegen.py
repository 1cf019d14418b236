"""What the compiler makes of ``matmul_frag``: every configuration that the heuristic chooses, without a GPU."""
import pytest
import torch

from tests.support import survey
from tritonq import Scheme, reference
from tritonq.kernels import frag_launch as kernels

# (scheme, dtype, M): instructions of the main loop per weight, at most. The tile of x has 8, 16 or 32 rows.
BUDGETS = {
    ("int4.g128", "float16", 1): 1.75, ("int4.g128", "float16", 16): 2.0, ("int4.g128", "float16", 64): 2.9,
    ("int4.g128", "bfloat16", 8): 2.0, ("int4.g128", "bfloat16", 9): 2.25, ("int4.g128", "bfloat16", 32): 3.15,
    ("uint4.g128", "float16", 1): 1.95, ("uint4.g128", "bfloat16", 1): 2.2, ("uint4.g128", "float16", 16): 2.2,
    ("uint4.g128.fz", "float16", 1): 2.2, ("uint4.g128.fz", "bfloat16", 16): 2.95,
    ("int4.g64", "float16", 1): 2.1, ("int4.g32", "float16", 1): 2.4, ("int4.channel", "float16", 1): 1.75,
    ("int4.g256", "bfloat16", 1): 2.0,
    ("nf4.g64", "bfloat16", 1): 3.55, ("nf4.g64", "bfloat16", 16): 3.85, ("nf4.g64", "float16", 1): 3.55, ("nf4.g64", "bfloat16", 64): 4.5,
    ("fp4_bnb.g64", "float16", 1): 3.55, ("mxfp4", "bfloat16", 1): 4.1,
}  # fmt: skip
N, K = 128, 4096


def compiled(scheme: str, dtype: torch.dtype, m: int, arch: int = 90):
    q = reference.quantize(torch.zeros(N, K, dtype=dtype), Scheme.parse(scheme)).relayout("frag")
    config = kernels.config(m, N, K, q.scheme, 132)
    with survey.launches(arch) as rows:
        kernels.matmul(torch.zeros(m, K, dtype=dtype), q, None, None, None, config)
    ((name, report, _),) = rows
    assert name == "matmul_frag"
    return report, config


def programs_per_multiprocessor(report) -> int:
    """On sm_90: 64 Ki registers handed out in eights per thread, 227 KiB of shared memory of which a program reserves one, 32 programs."""
    threads = 32 * report.num_warps
    return min(65536 // (-(-report.registers // 8) * 8 * threads), 227 * 1024 // (report.shared + 1024), 2048 // threads, 32)


@pytest.mark.parametrize("scheme, dtype, m", BUDGETS, ids=lambda v: str(v))
def test_the_main_loop(scheme, dtype, m):
    report, config = compiled(scheme, getattr(torch, dtype), m)
    loop, kinds = report.main_loop, report.histogram(in_loop=True)
    weights = config["BLOCK_N"] * config["BLOCK_K"] // (32 * report.num_warps)
    assert report.spills == 0
    assert kinds["HMMA"] and not kinds["HGMMA"], "mma.sync, which needs no proxy fence"
    detours = [kind for kind in kinds if kind.startswith(("STS", "SHFL", "I2F", "F2F", "STL", "LDL"))]
    assert not detours, "weights go from the load to the tensor core"
    copies = [i.width for i in loop if i.kind == "LDGSTS"]
    assert copies.count(128) >= weights // 32 and set(copies) <= {32, 64, 128}, "weights and x by 16 bytes, scales by 4 or 8"
    assert kinds["LDG"] == 0, "everything in the loop is copied ahead"
    assert len(loop) / weights <= BUDGETS[scheme, dtype, m], f"{len(loop) / weights:.3f} instructions per weight"
    assert programs_per_multiprocessor(report) >= (4 if m <= 16 else 2)


@pytest.mark.parametrize("arch", [80, 89, 120])
@pytest.mark.parametrize("scheme, dtype", [("int4.g128", torch.bfloat16), ("nf4.g64", torch.float16)], ids=str)
def test_other_architectures(scheme, dtype, arch):
    report, _ = compiled(scheme, dtype, 8, arch)
    kinds = report.histogram(in_loop=True)
    assert report.spills == 0 and kinds["HMMA"] and not kinds["SHFL"] and not kinds["STS"]


def test_names_tell_the_scheme():
    report, _ = compiled("nf4.g64", torch.float16, 1)
    assert ".entry matmul_frag_nf4_g64(" in report.ptx
