"""``tritonq plan MODEL|--params N --memory 24GiB``: what fits, scales counted."""
from __future__ import annotations

from fractions import Fraction
from math import ceil

from ..levels import QuantizationLevel
from ..planner import OVERHEAD, bits_per_param
from ..scheme import Scheme
from ..sizes import format_bytes, parse_bytes
from .output import print_json, say, table
from .parser import UsageError, add_json, count
from .plan_model import SCHEMES, plan_model

_OF_MODELS = ("context", "batch", "tokens", "devices", "target", "assign")


def add_command(commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="how much memory a model takes at each precision, and which fits",
        description="A MODEL (safetensors file or folder) is counted tensor by tensor: weights as they lie in a GPU's memory, KV cache, "
        "activations, workspace, load peak. --params counts all weights at the same precision, and 20 percent for all else. "
        "Exit status 1: nothing fits.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--params", type=count, metavar="N", help="number of parameters instead of a model: 7000000000 or 7B")
    parser.add_argument("--memory", required=True, metavar="24GiB", help="memory of a device")
    parser.add_argument("--scheme", action="append", metavar="SCHEME", help=f"schemes to consider (repeat; default {' '.join(SCHEMES)})")
    of_model = parser.add_argument_group("of a MODEL")
    of_model.add_argument("--context", type=count, metavar="N",
                          help="tokens of a sequence; without it no KV cache and activations are counted")  # fmt: skip
    of_model.add_argument("--batch", type=count, metavar="N", help="sequences at once (default 1)")
    of_model.add_argument("--tokens", type=count, metavar="N", help="tokens computed at once (default: batch x context, at most 2048)")
    of_model.add_argument("--devices", type=count, metavar="N", help="equal devices, tensor parallel (default 1)")
    of_model.add_argument("--target", help="cpu, or a GPU that need not be here: sm_90, gfx942 (default: this machine's, else sm_90)")
    of_model.add_argument("--assign", metavar="FILE", help="choose a scheme for each weight by the noise measured on it, write FILE for "
                          "tritonq quantize --scheme @FILE")  # fmt: skip
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    if (args.model is None) == (args.params is None):
        raise UsageError("plan takes either a MODEL or --params N (see tritonq plan --help)")
    memory, schemes = parse_bytes(args.memory), list(dict.fromkeys(str(Scheme.parse(scheme)) for scheme in args.scheme or SCHEMES))
    if args.model is not None:
        return plan_model(args, memory, schemes)
    if given := [name for name in _OF_MODELS if getattr(args, name) is not None]:
        raise UsageError(f"--{given[0]} is for a MODEL; --params counts weights and 20 percent for all else")
    return _plan_params(args, memory, schemes)


def _plan_params(args, memory: int, schemes: list[str]) -> int:
    params = args.params
    # Most precise first; ties keep this order, so FP16 comes before BF16 and levels (no scales) before schemes.
    choices = [(str(level), Fraction(params * level.bits_per_param, 8)) for level in QuantizationLevel]
    choices += [(scheme, params * bits_per_param(Scheme.parse(scheme)) / 8) for scheme in schemes]
    rows = [
        {
            "precision": name,
            "bits_per_param": round(float(8 * size / params), 4) if params else 0.0,
            "weights": ceil(size),
            "memory": ceil(size * OVERHEAD),
            "fits": ceil(size * OVERHEAD) <= memory,
            "counts_scales": name in schemes,
        }
        for name, size in sorted(choices, key=lambda choice: -choice[1])
    ]
    suggestion = next((row["precision"] for row in rows if row["fits"] and row["precision"] != "FP32"), None)
    if args.json:
        print_json({"model": None, "parameters": params, "memory": memory, "suggestion": suggestion, "choices": rows})
        return 0 if suggestion else 1
    table(
        f"model: {params} parameters, {format_bytes(memory)} of memory",
        ["precision", "bits/parameter>", "weights>", "with 20 % overhead>", "fits"],
        [
            [r["precision"], f"{r['bits_per_param']:.3f}", format_bytes(r["weights"]), format_bytes(r["memory"]), ("no", "yes")[r["fits"]]]
            for r in rows
        ],
    )
    say("FP32 to INT4 count bits alone; schemes count scales.")
    say(f"suggestion: {suggestion}" if suggestion else "does not fit at any of these; use more devices or fewer bits")
    return 0 if suggestion else 1
