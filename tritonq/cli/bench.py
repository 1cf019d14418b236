"""``tritonq bench [SUITE ...]``: fair times on this machine, as a table, JSON, PNGs and a report."""
from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from ..bench.results import Results, Row, merged
from ..bench.run import run as run_suites
from ..bench.shapes import MODELS, shapes
from ..bench.suite import Bench, Suite
from ..bench.suites import SUITES
from ..bench.timing import CPU_NOTE, REPLAYS, machine, roofs
from ..files import writable
from ..scheme import Scheme, scheme_names
from .output import print_text, progress, say, table
from .parser import UsageError

TRIED_SHAPES, TRIED_M = "256x512", "1,16"  # what --device cpu takes where nothing else is asked for
OF_THE_CPU = "the CPU is what is measured; contenders take turns call by call"
RESULTS = ("benchmarks", "results")
ROOF_TEXTS = {"bytes_per_s": "copy {:.3g} TB/s",
              "flops_per_s": "bf16 product {:.3g} TFLOP/s", "int8_ops_per_s": "int8 product {:.3g} TOP/s"}  # fmt: skip


def add_command(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure this machine: products, quantizers, launches, tokens per second",
        description="CUDA graphs over more weights than a cache holds, contenders interleaved, results checked before they are timed; "
        "docs/benchmarks.md. Ends with status 1 where a result is wrong or a limit is not held. Rows are kept when it is stopped.",
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="default: matmul; see --list")
    parser.add_argument("--list", action="store_true", help="name suites and sets of shapes, measure nothing")
    parser.add_argument("--shapes", metavar="TEXT", help="llama3-8b, llama3-70b.down, 4096x4096, FILE.json; commas between them")
    parser.add_argument("--schemes", metavar="TEXT", help="int4.g128,nf4.g64, or all")
    parser.add_argument("--m", metavar="TEXT", help="rows of x: 1,16,256")
    parser.add_argument("--minutes", type=_minutes, help="start nothing more after this long")
    parser.add_argument("--replays", type=int, default=REPLAYS, help=f"measurements per contender (default {REPLAYS})")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the same code on small shapes: no result")
    parser.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    parser.add_argument("--json", metavar="FILE", help="write the rows here after every problem; - for stdout, at the end")
    parser.add_argument("--from", dest="sources", action="append", metavar="FILE",
                        help="measure nothing, read the rows of an earlier --json (repeat: files of one device in one report)")  # fmt: skip
    parser.add_argument("--plot", metavar="DIR", help="write report.html and PNGs here (needs matplotlib)")
    parser.set_defaults(run=run)


def run(args) -> int:
    if args.list:
        _list()
        return 0
    if args.plot:
        from ..bench import report

        report.require()  # before minutes of measuring
    if args.sources:
        if args.suites:
            raise UsageError(f"--from measures nothing, so no suite can be chosen; leave out {args.suites[0]!r:.60}")
        _check_target(args, tries=False)
        results = merged([Results.read(source) for source in args.sources])
        if args.json != "-":
            _head(results)
            for row in results.rows:
                say(line(row))
            if args.json:
                results.write(Path(args.json))
    else:
        results = _measured(args)
    if args.json == "-":
        print_text(results.json().rstrip("\n"))
    if args.plot:
        for path in report.write(results, Path(args.plot)):
            _tell(f"wrote {path}")
    return 1 if results.faults else 0


def _measured(args) -> Results:
    chosen = [_suite(name) for name in args.suites] or [SUITES["matmul"]]
    needs_gpu = any(suite.needs_gpu for suite in chosen)
    device = torch.device(args.device if needs_gpu else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("bench needs a CUDA or HIP device and none is visible; --device cpu tries the same code and measures nothing "
                         "of interest")  # fmt: skip
    _check_target(args, tries=needs_gpu and device.type == "cpu")
    if args.replays < 1:
        raise UsageError(f"--replays must be at least 1, got {args.replays}")
    asked = [_asked(suite, args, device) for suite in chosen]  # refuses what cannot be, before anything is measured
    if needs_gpu and device.type == "cpu":
        _tell(f"NO RESULT: {CPU_NOTE}. Nothing below says how fast tritonq is on a GPU.")
    torch.manual_seed(0)
    limits = roofs(device) if needs_gpu else {}
    about = machine(device) | ({} if needs_gpu else {"protocol": OF_THE_CPU}) | {"arguments": " ".join(_words(args))}
    results = Results(about=about, roofs=limits)
    work = [(suite, Bench(device=device, roofs=limits, with_peers=not args.no_peers, replays=args.replays, **found))
            for suite, found in zip(chosen, asked)]  # fmt: skip
    save = (lambda: results.write(Path(args.json))) if args.json not in (None, "-") else (lambda: None)
    show = (lambda row: say(line(row))) if args.json != "-" else (lambda row: None)
    if args.json != "-":
        _head(results)
    left_out: list[str] = []
    try:
        with progress("bench", show=True) as advance:
            left_out = run_suites(work, results, minutes=args.minutes, show=show, save=save, progress=advance)
    except KeyboardInterrupt:
        _tell(f"stopped after {len(results.rows)} rows, which are kept")
    for text in left_out:
        _tell(f"left out, {args.minutes:g} minutes are over: {text}")
    return results


def _suite(name: str) -> Suite:
    if name not in SUITES:
        raise UsageError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    return SUITES[name]


def _asked(suite: Suite, args, device: torch.device) -> dict:
    """Shapes, schemes and M of a suite: what was asked for, else its defaults, else small ones off a GPU."""
    tries = suite.needs_gpu and device.type == "cpu"
    found = {}
    if suite.shapes:
        found["shapes"] = tuple(shapes(args.shapes or (TRIED_SHAPES if tries else suite.shapes)))
    if suite.schemes:
        text = args.schemes or suite.schemes
        names = [name for name in scheme_names() if Scheme.parse(name).has_scale] if text == "all" else text.split(",")
        found["schemes"] = tuple(dict.fromkeys(str(Scheme.parse(name.strip())) for name in names))
    if suite.ms:
        found["ms"] = tuple(_rows(part) for part in (args.m or (TRIED_M if tries else suite.ms)).split(","))
    return found


def _rows(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text.strip()) or int(text) < 1:
        raise UsageError(f"--m takes whole numbers of at least 1 with commas between them, got {text!r:.60}")
    return int(text)


def _check_target(args, *, tries: bool) -> None:
    """Where rows and pictures go, before the minutes that they take. What a CPU makes up for a GPU must not stand among results."""
    if args.json not in (None, "-") and writable(args.json).exists():
        Results.read(args.json)  # whatever else is there is not written over
    if args.plot is not None and not Path(args.plot).parent.is_dir():
        raise UsageError(f"{args.plot}: there is no folder {Path(args.plot).parent}")
    for text in (args.json, args.plot):
        if tries and text not in (None, "-") and RESULTS in zip(Path(text).resolve().parts, Path(text).resolve().parts[1:]):
            raise UsageError(f"{text}: rows of --device cpu are no results and are not written into {'/'.join(RESULTS)}")


def line(row: Row) -> str:
    """A row as text."""
    head = f"{row.suite:12} {row.shape or row.op:20} {row.problem:18} {row.name:16} {row.scheme:12}"
    told = "  ".join(part for part in (row.fault, row.note) if part)
    if row.us is None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in row.figures.items())
        return f"{head} {figures}  {told}".rstrip()
    parts = [f"{row.us:10.2f} us ({row.p20:.2f} - {row.p80:.2f})"]
    parts += [f"{row.tb_per_s:5.2f} TB/s"] if row.tb_per_s is not None else []
    parts += [f"{row.tflop_per_s:6.1f} TFLOP/s"] if row.tflop_per_s is not None else []
    parts += [f"{row.of_floor:6.1%} of floor"] if row.of_floor is not None else []
    parts += [f"{ratio:.2f}x {name}" for name, ratio in row.speedup.items()]
    parts += [f"{name} {value:.4g}" for name, value in row.figures.items()]
    return "  ".join([head, *parts, told]).rstrip()


def _head(results: Results) -> None:
    about = results.about
    limits = ", ".join(ROOF_TEXTS[name].format(value / 1e12) for name, value in results.roofs.items())
    told = {name: about.get(name) for name in ("device", "torch", "triton", "tritonq", "commit", "protocol", "state")}
    say(", ".join(f"{name} {value}" for name, value in told.items() if value is not None))
    if limits:
        say(f"measured roofs: {limits}")


def _list() -> None:
    rows = [[s.name, s.title, s.shapes or "-", s.ms or "-", s.schemes or "-"] for s in SUITES.values()]
    table("suites", ["suite", "what~", "shapes", "M~", "schemes~"], rows)
    table("shapes", ["name", "N>", "K>"], [[s.name, s.n, s.k] for model in MODELS for s in shapes(model)])


def _words(args) -> list[str]:
    """The command, to be named in a result."""
    options = {"--shapes": args.shapes, "--schemes": args.schemes, "--m": args.m, "--minutes": args.minutes}
    return ["tritonq bench", *args.suites, *(f"{name} {value}" for name, value in options.items() if value is not None)]


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no positive number of minutes")
    return value


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
