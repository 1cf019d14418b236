"""What a scheme keeps of a weight: noise on normally distributed numbers, and sentence embeddings of a real model."""
from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import torch

from .. import reference
from ..checkpoints import quantize_checkpoint
from ..scheme import Scheme, scheme_names
from .minilm import Embedder, find_model
from .results import Row
from .suite import Bench, Case, Suite
from .timing import first_line


def normal_sample(rows: int = 256, columns: int = 1024) -> torch.Tensor:
    """Quantiles of a unit normal in a fixed random order: the same numbers on every machine."""
    count = rows * columns
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return torch.special.ndtri((order.double() + 0.5) / count).float().view(rows, columns)


@cache
def sqnr(scheme: Scheme) -> float:
    """Signal to quantization noise of normally distributed weights, in dB.

    >>> round(sqnr(Scheme.parse("int8")), 1)
    42.1
    """
    x = normal_sample()
    error = x.double() - reference.dequantize(reference.quantize(x, scheme), torch.float64)
    return 10 * math.log10(float(x.double().square().sum() / error.square().sum()))


def bits(scheme: Scheme) -> float:
    """Bits per weight of a 4096 x 4096 bfloat16 matrix, all metadata counted."""
    return scheme.bits_per_weight(4096, 4096, torch.bfloat16)


def _noise(bench: Bench) -> Iterator[list[Row]]:
    for name in bench.schemes:
        scheme = Scheme.parse(name)
        yield [Row(suite="quality", op="noise", name="tritonq", scheme=name, dtype="float32", source="cpu",
                   figures={"bits_per_weight": bits(scheme), "sqnr_db": sqnr(scheme)}, note="normally distributed weights",
                   command=f"tritonq bench quality --schemes {name}")]  # fmt: skip


def _embeddings(bench: Bench) -> Iterator[list[Row]]:
    common = {"suite": "minilm", "op": "sentence embeddings", "name": "tritonq", "dtype": "float32", "source": "cpu"}
    try:
        source = find_model()
        embed = Embedder(source)
    except Exception as error:  # transformers or the model are not installed
        yield [Row(note=f"skipped: {first_line(error)}", **common)]
        return
    with tempfile.TemporaryDirectory(prefix="tritonq-quality-") as folder:
        for name in bench.schemes:
            report = quantize_checkpoint(source, Path(folder) / name, name)
            cosines, sums = embed(Path(folder) / name), report["totals"]
            figures = {"bits_per_weight": sums["bits_per_weight"], "sqnr_db": sums["quality"]["sqnr_db"],
                       "cosine_min": float(cosines.min()), "cosine_mean": float(cosines.mean())}  # fmt: skip
            command = f"tritonq bench minilm --schemes {name}"
            yield [Row(scheme=name, figures=figures, note="all Linear weights of MiniLM-L6", command=command, **common)]


def noise_cases(bench: Bench) -> Iterator[Case]:
    yield Case(title="normal weights", steps=len(bench.schemes), run=partial(_noise, bench))


def embedding_cases(bench: Bench) -> Iterator[Case]:
    yield Case(title="MiniLM-L6", steps=len(bench.schemes), run=partial(_embeddings, bench))


_COARSE = ",".join(name for name in scheme_names() if Scheme.parse(name).has_scale)
QUALITY = Suite(name="quality", title="bits per weight and noise of every scheme", cases=noise_cases, schemes=_COARSE,
                needs_gpu=False)  # fmt: skip
MINILM = Suite(name="minilm", title="sentence embeddings of the quantized MiniLM", cases=embedding_cases, schemes=_COARSE,
               needs_gpu=False)  # fmt: skip
