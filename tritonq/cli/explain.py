"""``tritonq explain --m M --n N --k K --scheme S``: every kernel for a matmul, chosen or refused and why; ``--codegen``: its code."""
from __future__ import annotations

import re
from dataclasses import replace

import torch

from ..layouts import LAYOUTS
from ..plans.core import Target
from ..plans.descriptors import MatmulDesc
from ..plans.select import explain
from ..scheme import Scheme
from .output import print_json, progress, say, table
from .parser import UsageError, add_json, count

DTYPES = {"fp16": torch.float16, "float16": torch.float16, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
           "fp32": torch.float32, "float32": torch.float32, "fp64": torch.float64, "float64": torch.float64}  # fmt: skip


def add_command(commands) -> None:
    parser = commands.add_parser("explain", help="which kernel a matmul takes, and why not another")
    for name, text in (("m", "rows of x"), ("n", "rows of the weight"), ("k", "columns of both")):
        parser.add_argument(f"--{name}", type=count, required=True, help=text)
    parser.add_argument("--scheme", required=True)
    parser.add_argument("--dtype", default="bf16", choices=sorted(DTYPES), help="of x (default bf16)")
    parser.add_argument("--target", help="cpu, or a GPU that need not be here: sm_90, gfx942 (default: this machine)")
    parser.add_argument("--layout", default="row", choices=sorted(LAYOUTS), help="of the weight (default row)")
    text = "compile that kernel, report its registers, loads and instructions, and fail where they break a rule (docs/kernels.md)"
    parser.add_argument("--codegen", action="store_true", help=text)
    parser.add_argument("--arch", help="with --codegen, instead of --target: one or several architectures, 80,90,gfx942")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    if args.arch is not None and (args.target is not None or not args.codegen):
        raise UsageError("--arch takes the place of --target with --codegen; for the choice alone write --target sm_90")
    dtype = DTYPES[args.dtype]
    scheme, targets = Scheme.parse(args.scheme), _targets(args)
    if reason := LAYOUTS[args.layout].refuses(scheme, dtype):
        raise UsageError(reason)
    first = MatmulDesc(m=args.m, n=args.n, k=args.k, dtype=dtype, scheme=scheme, target=targets[0], source_dtype=dtype, layout=args.layout)
    descs = [replace(first, target=target) for target in targets]
    rows = _compiled(descs, show=not args.json) if args.codegen else []
    violations = [violation for row in rows for violation in row.violations()]  # reads the code, which a tool may refuse: before printing
    if args.json:
        told = [[line.strip() for line in explain(desc).splitlines()] for desc in descs]
        report = {"problems": [{"problem": problem, "kernels": kernels} for problem, *kernels in told]}
        print_json(report | ({"codegen": [row.summary() for row in rows]} if args.codegen else {}))
    else:
        say("\n".join(explain(desc) for desc in descs))
        if args.codegen:
            _print(rows, violations)
    return 1 if violations else 0


def _compiled(descs: list[MatmulDesc], *, show: bool) -> list:
    from ..codegen import examine

    rows = []
    with progress("compiling", show=show) as advance:
        for done, desc in enumerate(descs):
            advance(done, len(descs), str(desc.target))
            rows += examine(desc)
    return rows


def _print(rows: list, violations: list) -> None:
    from ..codegen.table import COLUMNS, cells

    table("compiled, not run", list(COLUMNS), [cells(row) for row in rows])
    for violation in violations:
        say(f"fails: {violation}")


def _targets(args) -> list[Target]:
    """What --target or --arch name; code is generated for sm_90 where neither does and there is no GPU."""
    if args.arch is not None:
        return [target_named(f"sm_{arch}" if arch.isdigit() else arch) for arch in args.arch.split(",")]
    if args.codegen and args.target is None and not torch.cuda.is_available():
        return [target_named("sm_90")]
    return [target_named(args.target)]


def target_named(text: str | None) -> Target:
    if text is None:
        return Target.of()
    if text == "cpu":
        return Target.of("cpu")
    if re.fullmatch("sm_[0-9]{1,5}", text):
        return Target(backend="triton", device="cuda", arch=int(text[3:]))
    if text.startswith("gfx") and text[3:].isalnum():
        return Target(backend="triton", device="cuda", arch=text)
    raise UsageError(f"--target {text!r:.60} is unknown; write cpu, sm_90 (NVIDIA) or gfx942 (AMD)")
