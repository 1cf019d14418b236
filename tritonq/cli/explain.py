"""``tritonq explain --m M --n N --k K --scheme S``: every kernel for a matmul, chosen or refused and why."""
from __future__ import annotations

import torch

from ..layouts import LAYOUTS
from ..plans.core import Target
from ..plans.descriptors import MatmulDesc
from ..plans.select import explain
from ..scheme import Scheme
from .output import print_json, say
from .parser import UsageError, add_json, count

_DTYPES = {"fp16": torch.float16, "float16": torch.float16, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
           "fp32": torch.float32, "float32": torch.float32, "fp64": torch.float64, "float64": torch.float64}  # fmt: skip


def add_command(commands) -> None:
    parser = commands.add_parser("explain", help="which kernel a matmul takes, and why not another")
    for name, text in (("m", "rows of x"), ("n", "rows of the weight"), ("k", "columns of both")):
        parser.add_argument(f"--{name}", type=count, required=True, help=text)
    parser.add_argument("--scheme", required=True)
    parser.add_argument("--dtype", default="bf16", choices=sorted(_DTYPES), help="of x (default bf16)")
    parser.add_argument("--target", help="cpu, or a GPU that need not be here: sm_90, gfx942 (default: this machine)")
    parser.add_argument("--layout", default="row", choices=sorted(LAYOUTS), help="of the weight (default row)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    dtype = _DTYPES[args.dtype]
    scheme, target = Scheme.parse(args.scheme), _target(args.target)
    if reason := LAYOUTS[args.layout].refuses(scheme, dtype):
        raise UsageError(reason)
    desc = MatmulDesc(m=args.m, n=args.n, k=args.k, dtype=dtype, scheme=scheme, target=target, source_dtype=dtype, layout=args.layout)
    text = explain(desc)
    if args.json:
        problem, *kernels = text.splitlines()
        print_json({"problem": problem, "kernels": [line.strip() for line in kernels]})
    else:
        say(text)
    return 0


def _target(text: str | None) -> Target:
    if text is None:
        return Target.of()
    if text == "cpu":
        return Target.of("cpu")
    if text.startswith("sm_") and text[3:].isascii() and text[3:].isdigit():
        return Target(backend="triton", device="cuda", arch=int(text[3:]))
    if text.startswith("gfx") and text[3:].isalnum():
        return Target(backend="triton", device="cuda", arch=text)
    raise UsageError(f"--target {text!r} is unknown; write cpu, sm_90 (NVIDIA) or gfx942 (AMD)")
