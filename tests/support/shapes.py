"""The grid of shapes that users of fused kernels have reported as refused or wrong, and who meets what of it.

K: 7392, 8256, 10944, 13696, 14784, 27392 and 59136 are no multiples of the usual tiles or make odd numbers of groups; 11008 in groups of
1024 and 704 in groups of 128 end in a short one. N: 258 and 704 are no whole tiles. M: ragged on both sides of every tile of x, and empty.
"""
from __future__ import annotations

import os
from itertools import product

import torch

ROWS = (0, 1, 2, 3, 5, 15, 17, 63, 65, 4097)  # M
FEATURES = (1, 7, 258, 704, 10240)  # N
COLUMNS = (1344, 2048, 7392, 8256, 10944, 11008, 13696, 14784, 27392, 59136)  # K
FULL = os.environ.get("TRITONQ_TEST_FULL") == "1"
GROUPS = ("g128", "g64", "channel", "g32", "g96", "g1024", "g256")
KINDS = ("int4", "uint4", "uint4.fz", "nf4", "nf4.dq", "fp4_bnb", "fp4_e2m1", "mxfp4", "nvfp4", "int8", "uint8", "fp8_e4m3", "fp8_e5m2",
         "mxfp8", "int3", "uint3", "int2", "uint2")  # fmt: skip
FIXED = ("mxfp4", "nvfp4", "mxfp8")  # their group is part of their name

# (M, N, K): every value of every axis once or more, the large ones with small partners.
COVER = (
    (1, 1, 59136), (2, 7, 27392), (3, 1, 14784), (5, 7, 13696), (15, 7, 11008), (17, 7, 10944), (63, 1, 8256), (65, 7, 7392),
    (2, 258, 2048), (3, 704, 1344), (0, 258, 1344), (4097, 7, 64), (1, 10240, 64), (3, 7, 704),
)  # fmt: skip
MOST_WEIGHTS = 2**24  # of the whole grid's shapes: leaves out 704 x 27392, 704 x 59136 and 10240 x all but 1344


def every_pair() -> list[tuple[int, int, int]]:
    """Each value of an axis with each of each other axis, as long as the matrix has at most MOST_WEIGHTS weights."""
    pairs = [(ROWS[1 + i % 5], n, k) for i, (n, k) in enumerate(product(FEATURES, COLUMNS))]
    pairs += [(m, FEATURES[i % 2], k) for i, (m, k) in enumerate(product(ROWS, COLUMNS))]
    pairs += [(m, n, COLUMNS[0]) for m, n in product(ROWS, FEATURES)]
    return [shape for shape in dict.fromkeys((*COVER, *pairs)) if shape[1] * shape[2] <= MOST_WEIGHTS]


def scheme_of(kind: str, group: str) -> str:
    """``nf4.dq`` and ``g64`` to ``nf4.g64.dq``."""
    return kind if kind in FIXED else ".".join([*kind.split(".")[:1], group, *kind.split(".")[1:]])


def grid(kind: str) -> list[tuple[str, int, int, int]]:
    """(scheme, M, N, K) for one kind of scheme: COVER, or every pair of values under TRITONQ_TEST_FULL=1.

    Groups go round and begin elsewhere for every kind: each kind meets every value and every group, each value several groups.
    """
    first, cases = KINDS.index(kind), []
    for i, (m, n, k) in enumerate(every_pair() if FULL else COVER):
        group = {11008: "g1024", 704: "g128"}.get(k, GROUPS[(first + i) % len(GROUPS)])
        cases.append((scheme_of(kind, group), m, n, k))
    return cases


def activations(m: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """``[m, k]``, every other row zero but for about 64 columns, the last among them: where many products are summed, a bound
    would cover one wrong group."""
    x = torch.randn(m, k)
    dropped = torch.rand(k) > 64 / k
    dropped[-1:] = False
    x[::2, dropped] = 0.0
    return x.to(dtype)
