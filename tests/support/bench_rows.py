"""Made-up results in the shape of a run on a GPU, labelled as a model's: for pictures and reports, which need many rows."""
from __future__ import annotations

from tritonq.bench.results import Results, Row, with_speedups
from tritonq.bench.shapes import shapes
from tritonq.bench.timing import Times

ROOFS = {"bytes_per_s": 4.3e12, "flops_per_s": 7.9e14}
BITS = {"int4.g128": 4.125, "nf4.g64": 4.5, "int8.channel": 8.0}
PEERS = {"gemlite": ("int4.g128", 0.4), "bitsandbytes": ("nf4.g64", 0.35), "torchao": ("int8.channel", 0.5)}


def _at(suite: str, shape) -> dict:
    return {"suite": suite, "op": suite, "shape": shape.name, "n": shape.n, "k": shape.k, "source": "model", "command": "made up"}


def _row(name: str, scheme: str, shape, m: int, bits: float, share: float, suite: str = "matmul") -> Row:
    weight, flops = int(shape.n * shape.k * bits / 8), 2 * m * shape.n * shape.k
    row = Row(**_at(suite, shape), name=name, scheme=scheme, m=m, flops=flops, bytes=weight + 2 * m * (shape.n + shape.k),
              sku=f"{suite}/{scheme}/{name}")  # fmt: skip
    floor = max(row.bytes / ROOFS["bytes_per_s"], flops / ROOFS["flops_per_s"]) * 1e6
    us = floor / share + 2
    return row.timed(Times(us, 0.98 * us, 1.03 * us), ROOFS)


def made_up(names: str = "llama3-8b.o,llama3-8b.down", ms: tuple[int, ...] = (1, 16, 64, 256, 4096)) -> Results:
    """Rows of matmul, quantize, dequantize, end-to-end and quality, with one fault among them."""
    rows: list[Row] = []
    for shape in shapes(names):
        for m in ms:
            mine = [_row("cuBLAS bf16", "none", shape, m, 16, 0.86)]
            mine += [_row("tritonq", scheme, shape, m, bits, 0.75) for scheme, bits in BITS.items()]
            mine += [_row(name, scheme, shape, m, BITS[scheme], share) for name, (scheme, share) in PEERS.items()]
            rows += with_speedups(mine)
        for suite in ("quantize", "dequantize"):
            copy = Row(**_at(suite, shape), name="copy", bytes=4 * shape.n * shape.k)
            rows.append(copy.timed(Times(copy.bytes / 4.1e6, copy.bytes / 4.2e6, copy.bytes / 4e6), ROOFS))
            for scheme, bits in BITS.items():
                row = Row(**_at(suite, shape), name="tritonq", scheme=scheme, bytes=int(shape.n * shape.k * (2 + bits / 8)),
                          sku=f"{suite}/{scheme}/row/x")  # fmt: skip
                rows.append(row.timed(Times(row.bytes / 3.6e6, row.bytes / 3.7e6, row.bytes / 3.4e6), ROOFS))
    for name, scheme, speed in (("cuBLAS bf16", "none", 480.0), ("tritonq", "int4.g128", 1350.0), ("tritonq", "nf4.g64", 1200.0)):
        us = 1e6 / speed
        rows.append(Row(suite="end-to-end", op="token step", name=name, scheme=scheme, m=1, us=us, p20=us, p80=us, note="made up",
                        figures={"tokens_per_s": speed}, source="model"))  # fmt: skip
    close = {"int8": (8.0, 42.1), "nf4": (4.5, 20.7), "nvfp4": (4.5, 20.4), "uint4": (4.19, 20.0), "mxfp4": (4.25, 18.8),
             "uint2": (2.2, 6.0)}  # fmt: skip
    for scheme, (bits, sqnr) in close.items():
        figures = {"bits_per_weight": bits, "sqnr_db": sqnr}
        rows.append(Row(suite="quality", op="noise", name="tritonq", scheme=scheme, figures=figures, source="cpu"))
    rows.append(Row(suite="matmul", op="matmul", name="tritonq", scheme="nvfp4", shape="<bad>", n=8, k=8, m=1, fault="incorrect by 3",
                    source="model"))  # fmt: skip
    return Results(about={"device": "made up", "torch": "0"}, roofs=ROOFS, rows=rows)
