"""``tritonq plan MODEL|--params N --memory 24GiB``: what fits, scales counted."""
from __future__ import annotations

from fractions import Fraction
from math import ceil, prod

from ..checkpoints import open as open_checkpoint
from ..checkpoints.rules import Rules
from ..checkpoints.source import Source
from ..checkpoints.tensorfile import DTYPES
from ..errors import CheckpointError
from ..levels import QuantizationLevel
from ..planner import OVERHEAD, bits_per_param
from ..scheme import Scheme
from ..sizes import format_bytes, parse_bytes
from .output import print_json, say, table
from .parser import UsageError, add_json, count

_SCHEMES = ("int8", "fp8_e4m3", "nf4", "int4.g128", "mxfp4", "int3.g64", "int2.g32")


def add_command(commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="how much memory a model takes at each precision, and which fits",
        description="Memory for weights plus 20 percent for activations and buffers. A MODEL (safetensors file or folder) is counted by "
        "tensor, what a quantize job keeps at its own size; --params counts all at the same precision. Exit status 1: nothing fits.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--params", type=count, metavar="N", help="number of parameters instead of a model: 7000000000 or 7B")
    parser.add_argument("--memory", required=True, metavar="24GiB", help="memory of the device")
    parser.add_argument("--scheme", action="append", metavar="SCHEME", help=f"schemes to consider (repeat; default {' '.join(_SCHEMES)})")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    if (args.model is None) == (args.params is None):
        raise UsageError("plan takes either a MODEL or --params N (see tritonq plan --help)")
    memory = parse_bytes(args.memory)
    source = _open_original(args.model) if args.model is not None else None
    params = sum(e.numel for f in source.files for e in f.entries.values()) if source else args.params
    schemes = [str(Scheme.parse(scheme)) for scheme in args.scheme or _SCHEMES]
    # Most precise first; ties keep this order, so FP16 comes before BF16 and levels (no scales) before schemes.
    choices = [(str(level), Fraction(params * level.bits_per_param, 8)) for level in QuantizationLevel]
    for scheme in schemes:
        choices.append((scheme, _model_bytes(source, scheme) if source else params * bits_per_param(Scheme.parse(scheme)) / 8))
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
        print_json({"model": args.model, "parameters": params, "memory": memory, "suggestion": suggestion, "choices": rows})
        return 0 if suggestion else 1
    table(
        f"{args.model or 'model'}: {params} parameters, {format_bytes(memory)} of memory",
        ["precision", "bits/parameter>", "weights>", "with 20 % overhead>", "fits"],
        [
            [r["precision"], f"{r['bits_per_param']:.3f}", format_bytes(r["weights"]), format_bytes(r["memory"]), ("no", "yes")[r["fits"]]]
            for r in rows
        ],
    )
    say("FP32 to INT4 count bits alone; schemes count scales" + (", and what a quantize job keeps" if source else "") + ".")
    say(f"suggestion: {suggestion}" if suggestion else "does not fit at any of these; use more devices or fewer bits")
    return 0 if suggestion else 1


def _open_original(path: str) -> Source:
    checkpoint = open_checkpoint(path)
    if checkpoint.records:
        raise CheckpointError(f"{path}: is quantized already; plan takes the original weights, inspect shows the sizes of this one")
    return checkpoint.source


def _model_bytes(source: Source, scheme: str) -> Fraction:
    """Bytes of ``source`` after a quantize job with ``scheme``."""
    entries = [entry for file in source.files for entry in file.entries.values()]
    decisions = Rules.parse(scheme).decide(entries, tied=bool(source.config.get("tie_word_embeddings")))
    total = Fraction(0)
    for entry in entries:
        chosen = decisions[entry.name].scheme
        if chosen and entry.numel:
            rows, columns = prod(entry.shape[:-1]), entry.shape[-1]
            total += Fraction(round(Scheme.parse(chosen).bits_per_weight(rows, columns, DTYPES[entry.dtype][1]) * rows * columns), 8)
        else:
            total += entry.nbytes
    return total
