"""Floor 5. Instruction budgets: the one table of what code may cost, read by ``explain --codegen``, ``make lint-kernels`` and the tests.

To add a row: compile the case, ``tritonq explain --m 1 --n 4096 --k 4096 --scheme S --layout frag --target sm_90 --codegen``, on the newest
and the oldest Triton, and write down the larger figure, rounded up to the next 0.05. A row is only raised where correctness costs
more, or where that lets one more program run per multiprocessor.
"""
from __future__ import annotations

from .._triton import RELEASE

ARCH = 90  # whose figures these are
COLUMNS = 4096  # K of the matmuls' rows: another K may take another tile, which has no budget
# (scheme, dtype, M): instructions of the main loop per weight, at most. The tile of x has 8, 16 or, with wgmma, 32 or 64 rows.
MATMUL_FRAG = {
    ("int4.g128", "float16", 1): 1.7, ("int4.g128", "float16", 16): 1.85, ("int4.g128", "float16", 32): 2.3,
    ("int4.g128", "bfloat16", 8): 1.7, ("int4.g128", "bfloat16", 9): 1.85, ("int4.g128", "bfloat16", 32): 2.25,
    ("uint4.g128", "float16", 8): 1.85, ("uint4.g128", "bfloat16", 8): 1.85, ("uint4.g128", "float16", 16): 1.95,
    ("uint4.g128.fz", "float16", 8): 1.85, ("uint4.g128.fz", "float16", 16): 2.15, ("uint4.g128.fz", "bfloat16", 16): 2.15,
    ("uint3.g32.fz", "float16", 16): 3.95,
    ("int4.g64", "float16", 8): 1.8, ("int4.g32", "float16", 8): 2.05, ("int4.channel", "float16", 8): 1.6,
    ("int4.g256", "bfloat16", 8): 1.65,
    ("nf4.g64", "bfloat16", 8): 3.3, ("nf4.g64", "bfloat16", 16): 3.4, ("nf4.g64", "float16", 8): 3.3, ("nf4.g64", "bfloat16", 32): 4.0,
    ("fp4_bnb.g64", "float16", 8): 3.3, ("mxfp4", "bfloat16", 8): 3.65, ("nvfp4", "bfloat16", 8): 4.15, ("nvfp4", "bfloat16", 32): 6.15,
    ("int8.channel", "float16", 8): 1.5, ("int8.channel", "bfloat16", 16): 1.75, ("int8.channel", "bfloat16", 32): 2.15,
    ("uint8.channel", "float16", 8): 1.6, ("uint8.g128", "bfloat16", 8): 1.75,
    ("int8.g128", "float16", 8): 1.6, ("int8.g128", "bfloat16", 1): 1.6,
    ("fp8_e4m3.channel", "float16", 8): 1.0, ("fp8_e4m3.channel", "bfloat16", 8): 2.5, ("fp8_e5m2.channel", "float16", 8): 1.0,
    ("mxfp8", "float16", 8): 1.6, ("mxfp8", "bfloat16", 8): 3.0,
    ("int3.g128", "bfloat16", 8): 2.55, ("int3.g128", "float16", 16): 2.65, ("int3.g128", "float16", 32): 2.95,
    ("int2.g128", "bfloat16", 8): 1.6, ("int2.g128", "float16", 16): 1.75, ("uint3.g128.fz", "float16", 32): 2.9,
    ("int4.g48", "float16", 8): 2.65,
    # wgmma, once per 64 rows of x; with split-K and without
    ("int4.g128", "float16", 64): 3.3, ("int4.g128", "bfloat16", 64): 3.3, ("uint4.g128", "bfloat16", 64): 3.45,
    ("uint4.g128.fz", "bfloat16", 64): 4.5, ("nf4.g64", "bfloat16", 64): 5.35, ("nvfp4", "bfloat16", 64): 9.35,
    ("mxfp4", "bfloat16", 64): 6.5,
    ("int8.channel", "bfloat16", 64): 3.1, ("int3.g128", "float16", 64): 3.65, ("int4.g32", "float16", 64): 5.15,
}  # fmt: skip
# Where N is too small for tiles of 128 rows of W on every multiprocessor, or registers are too few, those of 64.
MATMUL_FRAG_FEW = {
    ("int4.g128", "float16", 16): 1.95, ("int4.g128", "bfloat16", 9): 1.95, ("uint4.g128", "float16", 16): 2.05,
    ("uint4.g128.fz", "float16", 16): 2.2, ("uint4.g128.fz", "bfloat16", 16): 2.25, ("uint3.g32.fz", "float16", 16): 4.15,
    ("nf4.g64", "bfloat16", 16): 3.6, ("int8.channel", "bfloat16", 16): 1.75, ("int3.g128", "float16", 16): 2.75,
    ("int2.g128", "float16", 16): 1.8, ("uint4.g128.fz", "bfloat16", 32): 3.25,
}  # fmt: skip
# Of those, the ones that the integer pipe takes (pipes.py), which keep it busy for two cycles of a warp each: it has half the lanes of a
# slot of issue, and code books are bound by it. What is not in this table is bound by something else.
MATMUL_FRAG_ALU = {
    ("nf4.g64", "bfloat16", 8): 2.0, ("nf4.g64", "bfloat16", 16): 2.0, ("nf4.g64", "float16", 8): 2.0, ("fp4_bnb.g64", "float16", 8): 2.0,
    ("fp8_e4m3.channel", "bfloat16", 8): 1.1,
    ("mxfp4", "bfloat16", 8): 2.05, ("nvfp4", "bfloat16", 8): 2.0,
}  # fmt: skip
# What swiglu may add: its weights lie in two places. (Triton 3.9, releases before it)
MATMUL_FRAG_GATED = (0.2, 0.25)
# What act-order may add where the kernel gathers x: one element at a time, by an index that is loaded.
MATMUL_FRAG_GATHERING = 0.8
# The same for layout ksplit.
MATMUL_KSPLIT = {
    ("int4.g128", "float16", 1): 2.95, ("int4.g128", "bfloat16", 1): 3.5, ("int4.g128", "bfloat16", 64): 4.75,
    ("int4.g32", "bfloat16", 64): 4.5, ("uint4.g128", "bfloat16", 16): 4.9, ("uint4.g128.fz", "bfloat16", 64): 4.8,
    ("nf4.g64", "bfloat16", 64): 8.85, ("mxfp4", "bfloat16", 16): 6.9, ("int8", "float16", 1): 3.3, ("int8", "bfloat16", 16): 5.9,
    ("uint8", "bfloat16", 64): 7.85, ("fp8_e4m3", "bfloat16", 16): 9.95, ("int3", "bfloat16", 16): 5.85, ("int2", "bfloat16", 16): 2.95,
}  # fmt: skip
# scheme: instructions per element of bfloat16 on the way without special values, at most. (Triton 3.9, releases before it)
QUANTIZE_ROWS = {
    "int4.g128": (4.5, 4.5), "nf4.g64": (6.95, 6.95), "uint4.g128": (7.0, 7.25), "mxfp4": (12.0, 12.05), "int8": (6.5, 7.45),
    "uint8": (10.75, 11.1), "fp8_e4m3": (7.45, 8.1), "mxfp8": (5.3, 5.45), "fp4_bnb.g64": (14.5, 14.4),
    "uint4.g128.fz": (9.85, 10.05),
}  # fmt: skip
# The same straight into layout frag.
QUANTIZE_FRAG = {
    "int4.g128": (7.6, 8.0), "uint4.g128": (10.15, 10.7), "nf4.g64": (13.1, 13.3), "mxfp4": (16.5, 16.75), "uint4.g128.fz": (13.0, 13.4),
    "fp4_bnb.g64": (20.65, 24.0), "fp4_e2m1": (19.3, 19.75), "int8.g128": (8.75, 9.2), "mxfp8": (11.45, 12.25), "int2.g128": (7.5, 7.95),
}  # fmt: skip
DEQUANTIZE_ROWS = {"int4.g128": 6.15, "uint4.g128": 6.9, "nf4.g64": 5.5, "mxfp4": 5.5, "int8": 5.85, "fp8_e4m3": 8.6, "int3": 6.8}


def of_release(figures: tuple[float, float]) -> float:
    """Of a pair, the figure of the installed Triton."""
    newest, before = figures
    return newest if RELEASE >= (3, 9) else before
