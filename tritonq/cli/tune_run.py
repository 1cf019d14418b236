"""What ``tritonq tune`` does once its arguments are read."""
from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

from .. import tuning
from .._triton import triton
from ..bench.machine import facts
from ..bench.shapes import shapes
from ..bench.timing import PROTOCOL
from ..codegen.machines import Machine, machine_for, machine_named
from ..errors import InvalidProblemError
from ..files import writable, write_atomic
from ..plans.config_file import Source
from ..plans.configs import VARIABLE
from ..plans.core import Target, multiprocessors
from ..scheme import Scheme
from .explain import DTYPES, target_named
from .output import print_json, progress, say
from .parser import UsageError
from .tune_report import note, plain, plain_result, print_head, print_plan, print_result


def run(args) -> int:
    target, machine = _place(args)
    dtype, schemes = DTYPES[args.dtype], [Scheme.parse(text) for text in args.schemes.split(",")]
    kernels = args.kernels.split(",") if args.kernels else tuning.default_kernels(target)
    if args.candidates < 1:
        raise UsageError("--candidates must be at least 1")
    if args.report is not None:
        writable(str(args.report))  # before the times that go into it are taken
    todo, left_out = tuning.problems(shapes(args.shapes), schemes, _numbers(args.m), kernels, dtype, target)
    if not todo:
        raise UsageError("nothing to tune: " + "; ".join(dict.fromkeys(reason for _, reason in left_out)))
    head = {"target": str(target), "multiprocessors": multiprocessors(target), "machine": machine and machine.name,
            "triton": triton.__version__, "left_out": [{"problem": name, "reason": reason} for name, reason in left_out]}  # fmt: skip
    if not args.json:
        print_head(head, len(todo))
    with tuning.Compiler(args.jobs) as compiler:
        planner = tuning.Planner(compiler, machine, args.candidates, predicting=args.from_model)
        return _dry_run(todo, planner, head, args) if args.dry_run else _tune(todo, planner, head, args, target, machine)


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
    engine = tuning.ModelEngine() if args.from_model else gpu_engine()
    store = tuning.Store(_folder(args), *_source(engine, target, machine))
    started, results = time.monotonic(), []

    def report() -> dict:
        return head | {"measured": engine.measures, "folder": str(store.folder), "results": [plain_result(r) for r in results]}

    with progress("tuning", show=not args.json) as advance:

        def begin(problem, done: int, total: int) -> None:
            advance(done, total, problem.name)
            if not (args.json or sys.stderr.isatty()):
                note(done, total, started, problem.name)

        def end(result) -> None:
            results.append(result)
            if args.report:
                write_atomic(args.report, json.dumps(report(), indent=1) + "\n")
            if not args.json:
                print_result(result)

        summary = tuning.tune(todo, planner, engine, store, again=args.again, budget=args.budget, started=begin, finished=end)
    recorded = [result for result in summary.results if result.entry]
    if args.json:
        print_json(report() | {"done_before": len(summary.skipped), "left": [problem.name for problem in summary.left]})
    else:
        text = f"{len(recorded)} {'recorded' if engine.measures else 'predicted'} in {store.folder}"
        text += f", {len(summary.skipped)} were there before (--again redoes them)" if summary.skipped else ""
        say(text + (f", {len(summary.left)} left when the budget was over: run it again" if summary.left else ""))
        for problem, config, reason in summary.wrong:
            say(f"WRONG RESULT, refused: {problem.name} {tuning.short(config)}: {reason}")
    return 1 if summary.wrong or len(recorded) < len(summary.results) else 0


def gpu_engine():
    """What times candidates: this machine's GPU."""
    return tuning.GpuEngine(torch.device("cuda", torch.cuda.current_device()))


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
