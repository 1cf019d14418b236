"""``tritonq tune``: which config of a kernel is fastest, measured on this machine's GPU, or predicted for one that is not here."""
from __future__ import annotations

import argparse
import os
import re
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

from .._triton import triton
from ..bench.machine import facts
from ..bench.shapes import shapes
from ..codegen.machines import MACHINES, Machine, machine_for, machine_named
from ..errors import InvalidProblemError
from ..plans.config_file import Source
from ..plans.configs import VARIABLE
from ..plans.core import Target, multiprocessors
from ..scheme import Scheme
from .explain import DTYPES, target_named
from .output import print_json, progress, say
from .parser import UsageError, add_json, count
from .tune_report import note, plain, plain_result, print_head, print_plan, print_result

M = "1,2,4,8,16,32,64,128,256,512"
EXAMPLES = """examples:
  tritonq tune --shapes llama3-8b                     measure on this GPU; Ctrl-C keeps what is done
  tritonq tune --shapes llama3-8b --budget 5m         the same for five minutes; again later to go on
  tritonq tune --dry-run --machine h200 --m 1,16      what would be timed and what is pruned, without a GPU
  tritonq tune --from-model --machine b200 --out DIR  predicted entries, marked "measured": false"""


def add_command(commands) -> None:
    parser = commands.add_parser(
        "tune", help="find the fastest config of each kernel and record it", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Candidates are pruned without the GPU (rules, spills, occupancy, instructions, a model of speed), the rest are timed\n"
        "with the protocol of tritonq bench. A wrong result is refused, and the status is 1. Entries are written after every problem:\n"
        "stop it whenever you like, run it again to go on. docs/tuning.md says more.",
    )  # fmt: skip
    what = parser.add_argument_group("what to tune")
    what.add_argument("--shapes", default="llama3-8b", metavar="TEXT", help="llama3-8b, llama3-70b.down, 4096x4096, FILE.json, ...")
    what.add_argument("--schemes", default="int4.g128,nf4.g64", metavar="TEXT", help="default: int4.g128,nf4.g64")
    what.add_argument("--m", default=M, metavar="TEXT", help=f"rows of x, rounded up to powers of two (default {M})")
    what.add_argument("--kernels", metavar="TEXT", help="default: the fused product, and decoding first where it may pay")
    what.add_argument("--dtype", default="bf16", choices=sorted(DTYPES), help="of x (default bf16)")
    how = parser.add_argument_group("how")
    how.add_argument("--candidates", type=count, default=12, metavar="N", help="timed per problem at most (default 12)")
    how.add_argument("--budget", type=duration, metavar="5m", help="begin no further problem after this long")
    how.add_argument("--again", action="store_true", help="also what is recorded already")
    how.add_argument("--jobs", type=count, default=min(os.cpu_count() or 1, 16), metavar="N", help="processes that compile")
    how.add_argument("--out", type=Path, metavar="DIR",
                     help=f"folder of configs (default: ${VARIABLE}, else a checkout's autotune_configs)")  # fmt: skip
    without = parser.add_argument_group("without the GPU")
    without.add_argument("--dry-run", action="store_true", help="print candidates, predictions, what is pruned; write nothing")
    without.add_argument("--from-model", action="store_true", help='write predicted entries, marked "measured": false')
    without.add_argument("--machine", choices=sorted(MACHINES), metavar="NAME", help=", ".join(MACHINES))
    without.add_argument("--arch", metavar="sm_90", help="with --multiprocessors, in place of --machine")
    without.add_argument("--multiprocessors", type=count, metavar="132")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    from .. import tuning

    target, machine = _place(args)
    dtype, schemes = DTYPES[args.dtype], [Scheme.parse(text) for text in args.schemes.split(",")]
    kernels = args.kernels.split(",") if args.kernels else tuning.default_kernels(target)
    if args.candidates < 1:
        raise UsageError("--candidates must be at least 1")
    todo, left_out = tuning.problems(shapes(args.shapes), schemes, _numbers(args.m), kernels, dtype, target)
    if not todo:
        raise UsageError("nothing to tune: " + "; ".join(dict.fromkeys(reason for _, reason in left_out)))
    compiler = tuning.Compiler(args.jobs)
    planner = tuning.Planner(compiler, machine, args.candidates, same_instruction=args.from_model)
    head = {"target": str(target), "multiprocessors": multiprocessors(target), "machine": machine and machine.name,
            "triton": triton.__version__, "left_out": [{"problem": name, "reason": reason} for name, reason in left_out]}  # fmt: skip
    if not args.json:
        print_head(head, len(todo))
    if args.dry_run:
        return _dry_run(todo, planner, head, args)
    return _tune(todo, planner, head, args, target, machine)


def _dry_run(todo, planner, head: dict, args) -> int:
    reports = []
    with progress("compiling", show=not args.json) as advance:
        planner.prepare(todo)
        for number, problem in enumerate(todo):
            advance(number, len(todo), problem.name)
            candidates = planner.candidates(problem)
            reports.append({"problem": problem.name, "shape": problem.shape, "candidates": [plain(candidate) for candidate in candidates]})
            if not args.json:
                print_plan(problem, candidates)
    if args.json:
        print_json(head | {"measured": False, "problems": reports})
    return 0


def _tune(todo, planner, head: dict, args, target: Target, machine: Machine | None) -> int:
    from .. import tuning

    engine = tuning.ModelEngine() if args.from_model else gpu_engine()
    store = tuning.Store(_folder(args), *_source(engine, target, machine))
    started, results = time.monotonic(), []
    with progress("tuning", show=not args.json, with_pipes=True) as advance:

        def begin(problem, done: int, total: int) -> None:
            advance(done, total, problem.name)
            if not (args.json or sys.stderr.isatty()):
                note(done, total, started, problem.name)

        def end(result) -> None:
            results.append(result)
            if not args.json:
                print_result(result)

        planner.prepare(todo)
        summary = tuning.tune(todo, planner, engine, store, again=args.again, budget=args.budget, started=begin, finished=end)
    recorded = [result for result in summary.results if result.entry]
    if args.json:
        print_json(head | {"measured": engine.measures, "folder": str(store.folder), "done_before": len(summary.skipped),
                           "left": [problem.name for problem in summary.left], "results": [plain_result(r) for r in results]})  # fmt: skip
    else:
        text = f"{len(recorded)} {'recorded' if engine.measures else 'predicted'} in {store.folder}"
        text += f", {len(summary.skipped)} were there before (--again redoes them)" if summary.skipped else ""
        say(text + (f", {len(summary.left)} left when the budget was over: run it again" if summary.left else ""))
        for problem, config, reason in summary.wrong:
            say(f"WRONG RESULT, refused: {problem.name} {tuning.short(config)}: {reason}")
    return 1 if summary.wrong or len(recorded) < len(summary.results) else 0


def gpu_engine():
    """What times candidates: this machine's GPU."""
    from ..tuning import GpuEngine

    return GpuEngine(torch.device("cuda", torch.cuda.current_device()))


def _place(args) -> tuple[Target, Machine | None]:
    """The GPU to tune for, and what the model knows of it."""
    elsewhere = args.machine or args.arch or args.multiprocessors
    if args.machine and (args.arch or args.multiprocessors):
        raise UsageError("--machine names architecture and multiprocessors; leave --arch and --multiprocessors out")
    if args.dry_run and args.from_model:
        raise UsageError("--dry-run writes nothing and --from-model writes entries; take one of them")
    if elsewhere and not (args.dry_run or args.from_model):
        raise UsageError("tune measures this machine's GPU; for another one take --dry-run or --from-model")
    if args.machine:
        machine = machine_named(args.machine)
        return Target(backend="triton", device="cuda", arch=machine.arch, multiprocessors=machine.multiprocessors), machine
    if elsewhere:
        if not (args.arch and args.multiprocessors):
            raise UsageError("--arch and --multiprocessors go together, as in --arch sm_90 --multiprocessors 132")
        named = target_named(args.arch)
        target = Target(backend="triton", device="cuda", arch=named.arch, multiprocessors=args.multiprocessors)
    elif torch.cuda.is_available():
        target = Target.of("cuda")
    else:
        raise UsageError("tune needs a GPU and none is visible; --dry-run --machine h200 prints its plan without one")
    try:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() and not elsewhere else ""
        return target, machine_for(target.arch, multiprocessors(target), device)
    except InvalidProblemError as error:
        if args.from_model:
            raise UsageError(str(error)) from None
        return target, None


def _folder(args) -> Path:
    if args.out or os.environ.get(VARIABLE):
        return args.out or Path(os.environ[VARIABLE])
    checkout = Path(__file__).resolve().parents[2] / "autotune_configs"
    if not checkout.is_dir():
        raise UsageError(f"name a folder for the configs, --out DIR, and set {VARIABLE} to it where they are to be used")
    return checkout


def _source(engine, target: Target, machine: Machine | None) -> tuple[Source, str]:
    """Where the entries come from, and what the file calls it."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    if not engine.measures:
        return Source(protocol=f"model of speed, {machine.name}: a prediction", time=now, triton=triton.__version__), "model-1"
    from ..bench.timing import PROTOCOL

    about = facts(torch.device("cuda"))
    wanted = ("commit", "device", "driver", "triton", "torch")
    return Source(protocol=PROTOCOL, time=now, **{name: about.get(name) for name in wanted}), now


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"--m {text!r} must be whole numbers from 1 on with commas between, such as 1,16,64")
    return found


def duration(text: str) -> float:
    """``"90"``, ``"90s"``, ``"5m"``, ``"1.5h"`` -> seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 5m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
