"""``tritonq quantize SRC --scheme S -o DST``."""
from __future__ import annotations

import re
from pathlib import Path

from ..checkpoints import quantize_checkpoint
from ..checkpoints.job import report_rows
from ..checkpoints.rules import RULES_TEXT
from ..checkpoints.tensorfile import read_json
from ..errors import CheckpointError, shorten
from ..sizes import format_bytes
from .output import cosine, decibel, dimensions, print_json, progress, quality_table, say, table
from .parser import add_json

_WORST = 5


def add_command(commands) -> None:
    parser = commands.add_parser(
        "quantize",
        help="quantize a safetensors checkpoint",
        description="Quantize SRC (a .safetensors file, or a folder with one or with an index) into the folder DST. " + RULES_TEXT + ". "
        "A killed job leaves SRC untouched and no half-written file; the same command finishes it.",
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("--scheme", action="append", required=True, metavar="[GLOB=]SCHEME",
                        help="nf4.g64, int4.g128, ...; with GLOB= for the tensors it matches (repeat; the first match counts); @FILE for a "
                        "JSON object {GLOB: SCHEME}, such as tritonq plan --assign writes")  # fmt: skip
    parser.add_argument("-o", "--output", required=True, metavar="DST")
    parser.add_argument("--include", action="append", default=[], metavar="GLOB", help="also quantize tensors that the rule keeps")
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="keep these tensors as they are")
    parser.add_argument("--overwrite", action="store_true", help="write into a DST that holds something else, redo all files")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    with progress("quantizing", show=not args.json) as advance:
        report = quantize_checkpoint(
            args.source, args.output, [part for text in args.scheme for part in _schemes(text)],
            include=args.include, exclude=args.exclude, overwrite=args.overwrite, progress=advance,
        )  # fmt: skip
    if args.json:
        print_json({"source": args.source, "destination": args.output, **report})
    else:
        show(report, args.output)
    return 0


def _schemes(text: str) -> list[str]:
    """An argument of ``--scheme``, or those that a file holds."""
    if not text.startswith("@"):
        return [text]
    pairs = read_json(Path(text[1:]))
    if wrong := next((glob for glob, scheme in pairs.items() if not isinstance(scheme, str)), None):
        raise CheckpointError(f"{text[1:]}: the scheme of {wrong!r} must be text, got {shorten(pairs[wrong])}")
    return [f"{glob}={scheme}" for glob, scheme in pairs.items()]


def show(report: dict, destination: str) -> None:
    """The tables at the end of a job: what was quantized, what was kept and why, the worst layers, the sums."""
    rows, sums = report_rows(report), report["totals"]
    coded = [
        [name, count, shape, scheme, bits(members), decibel(min((m["quality"] for m in members), key=_sqnr))]
        for name, count, shape, scheme, members in grouped([r for r in rows if r["scheme"]], "scheme")
    ]
    table("quantized (bits per weight, SQNR of the worst of n)", ["weights~", "n>", "shape", "scheme", "bits>", "SQNR>"], coded)
    kept = [
        [name, count, shape, format_bytes(size_after(members)), reason]
        for name, count, shape, reason, members in grouped([r for r in rows if not r["scheme"]], "reason")
    ]
    table("kept", ["tensors~", "n>", "shape", "size>", "why~"], kept)
    quantized = sorted((r for r in rows if r["scheme"]), key=lambda r: _sqnr(r["quality"]))
    quality_table("worst layers", quantized[:_WORST])
    bad = [r for r in quantized if r["quality"]["nonfinite"]]
    for row in bad:
        say(f"warning: {row['name']} holds {row['quality']['nonfinite']} NaN or Inf; NaN was coded as zero, Inf as the largest value")
    if report["left_out"]:
        say(f"not carried (other weights, or over 64 MiB): {', '.join(report['left_out'])}")
    if report["resumed_files"]:
        say(f"{report['resumed_files']} of {len(report['files'])} files were finished before and not redone")
    before, after = sums["bytes_before"], sums["bytes_after"]
    per_weight = f"{sums['bits_per_weight']:.3f} bits per weight, " if sums["bits_per_weight"] else ""
    quality = f"SQNR {decibel(sums['quality'])}, cosine {cosine(sums['quality'])}"
    say(f"{sums['quantized']} tensors quantized ({per_weight}{quality}), {sums['kept']} kept")
    ratio = f" ({before / after:.2f}x smaller)" if after else ""
    say(f"{format_bytes(before)} -> {format_bytes(after)}{ratio} in {report['seconds']:.1f} s: {destination}")


def grouped(rows: list[dict], fate: str) -> list[tuple[str, int, str, str, list[dict]]]:
    """``(name, count, shape, row[fate], rows)`` of tensors that differ only in their layer's number and agree in shape and fate."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", row["name"])
        groups.setdefault((pattern, tuple(row["shape"]), row[fate]), []).append(row)
    return [
        (pattern if len(members) > 1 else members[0]["name"], len(members), dimensions(list(shape)), word, members)
        for (pattern, shape, word), members in groups.items()
    ]


def bits(members: list[dict]) -> str:
    """Bits per weight of rows that agree in them."""
    bits = members[0]["bits_per_weight"]
    return "-" if bits is None else f"{bits:.3f}"


def size_after(members: list[dict]) -> int:
    """Bytes that rows take in the output."""
    return sum(member["bytes_after"] for member in members)


def _sqnr(quality: dict) -> float:
    """For sorting: exact results last."""
    return float("inf") if quality["sqnr_db"] is None else quality["sqnr_db"]
