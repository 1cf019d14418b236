"""``tritonq tune``: which config of a kernel is fastest, measured on this machine's GPU, or predicted for one that is not here."""
from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from ..plans.configs import VARIABLE
from .explain import DTYPES
from .parser import add_json, count

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
    how.add_argument("--report", type=Path, metavar="FILE", help="write every time that was taken here, after every problem")
    without = parser.add_argument_group("without the GPU")
    without.add_argument("--dry-run", action="store_true", help="print candidates, predictions, what is pruned; write nothing")
    without.add_argument("--from-model", action="store_true", help='write predicted entries, marked "measured": false')
    without.add_argument("--machine", metavar="NAME", help="h100-sxm, h200, a100, rtx-4090, ...; an unknown name lists all")
    without.add_argument("--arch", metavar="sm_90", help="with --multiprocessors, in place of --machine")
    without.add_argument("--multiprocessors", type=count, metavar="132")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    from . import tune_run  # the compiler's tools, which no other command needs

    return tune_run.run(args)


def duration(text: str) -> float:
    """``"90"``, ``"90s"``, ``"5m"``, ``"1.5h"`` -> seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 5m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
