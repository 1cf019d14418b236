"""``tritonq convert SRC --to FAMILY -o DST``."""
from __future__ import annotations

from ..checkpoints import convert
from ..checkpoints.families import TARGETS
from ..checkpoints.job import report_rows
from ..sizes import format_bytes
from .output import print_json, progress, say, table
from .parser import add_json
from .quantize import bits, grouped, size_after


def add_command(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a quantized checkpoint as another family does, or decoded",
        description="Write the quantized checkpoint SRC into the folder DST as FAMILY stores it; safetensors: the weights decoded. No "
        "value changes. A killed job leaves SRC untouched and no half-written file; the same command finishes it.",
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("--to", required=True, choices=[target.name for target in TARGETS], metavar="FAMILY",
                        help=", ".join(target.name for target in TARGETS))  # fmt: skip
    parser.add_argument("-o", "--output", required=True, metavar="DST")
    parser.add_argument("--overwrite", action="store_true", help="write into a DST that holds something else, redo all files")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    with progress("converting", show=not args.json) as advance:
        report = convert(args.source, args.output, to=args.to, overwrite=args.overwrite, progress=advance)
    if args.json:
        print_json({"source": args.source, "destination": args.output, **report})
        return 0
    rows, sums = report_rows(report), report["totals"]
    for title, fate, some in (
        ("quantized", "scheme", [row for row in rows if row["scheme"]]),
        ("not quantized", "reason", [row for row in rows if not row["scheme"]]),
    ):
        lines = [[name, count, shape, word, bits(members), format_bytes(size_after(members))]
                 for name, count, shape, word, members in grouped(some, fate)]  # fmt: skip
        if lines:
            table(title, ["tensors~", "n>", "shape", "as", "bits>", "size>"], lines)
    if report["left_out"]:
        say(f"not carried (other weights, or over 64 MiB): {', '.join(report['left_out'])}")
    if report["resumed_files"]:
        say(f"{report['resumed_files']} of {len(report['files'])} files were finished before and not redone")
    before, after = (format_bytes(sums[key]) for key in ("bytes_before", "bytes_after"))
    say(f"{sums['tensors']} tensors, {sums['quantized']} quantized; {before} -> {after} in {report['seconds']:.1f} s: {args.output}")
    return 0
