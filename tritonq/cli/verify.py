"""``tritonq verify PATH [--against SRC] [--fail-under 20dB]``: the check for a pipeline."""
from __future__ import annotations

from ..checkpoints import verify_checkpoint
from .output import cosine, decibel, print_json, progress, quality_table, say
from .parser import add_json, decibels


def add_command(commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="check a checkpoint, alone or against its source",
        description="Check that every tensor of PATH is there and decodes to finite numbers; against SRC also names, shapes, dtypes, kept "
        "tensors byte for byte, and SQNR and cosine of each quantized weight. Exit status 1: a check failed; 2: a file is malformed.",
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--against", metavar="SRC", help="the checkpoint that PATH was made from")
    parser.add_argument("--fail-under", type=decibels, metavar="20dB", help="fail where a weight's SQNR is lower")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    with progress("verifying", show=not args.json) as advance:
        report = verify_checkpoint(args.path, args.against, fail_under=args.fail_under, progress=advance)
    if args.json:
        print_json(report)
        return 0 if report["ok"] else 1
    compared = [row for row in report["tensors"] if row["quality"]]
    if compared:
        quality_table(f"{args.path} against {args.against}", compared)
    for failure in report["failures"]:
        say(f"failed: {failure}")
    overall = f", SQNR {decibel(report['quality'])}, cosine {cosine(report['quality'])}" if report["quality"] else ""
    verdict = "ok" if report["ok"] else f"{len(report['failures'])} checks failed"
    say(f"{verdict}: {len(report['tensors'])} tensors, {report['quantized']} quantized{overall}")
    return 0 if report["ok"] else 1
