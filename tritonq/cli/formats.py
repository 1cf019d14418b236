"""``tritonq formats``: every format and preset of the registry."""
from __future__ import annotations

from ..formats import FORMATS
from ..scheme import ALIASES, OPTIONS, PRESETS, Scheme, scheme_names
from .output import print_json, say, table
from .parser import add_json


def add_command(commands) -> None:
    parser = commands.add_parser("formats", help="list formats, presets and options")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    rows = [_row(name) for name in scheme_names()]
    if args.json:
        print_json({"formats": rows, "aliases": ALIASES, "options": OPTIONS})
        return 0
    table(
        "formats and presets",
        ["name", "bits>", "granularity", "bits/weight>", "codes", "scale", "source~"],
        [[r["name"], r["bits"], r["granularity"], f"{r['bits_per_weight']:.3f}", r["codes"], r["scale"], r["source"]] for r in rows],
    )
    table("options, as in int4.g64.full", ["option", "meaning~"], list(OPTIONS.items()))
    say("also known: " + ", ".join(f"{alias} = {scheme}" for alias, scheme in ALIASES.items()))
    return 0


def _row(name: str) -> dict:
    scheme = Scheme.parse(name)
    fmt = scheme.format
    low, high = fmt.code_range
    return {
        "name": name,
        "bits": fmt.bits,
        "granularity": str(scheme.granularity),
        "bits_per_weight": scheme.bits_per_weight(4096, 4096),
        "codes": f"{low} to {high}" if fmt.is_integer else f"{2**fmt.bits} levels",
        "scale": (scheme.scale or fmt.scale or "input") if scheme.has_scale else "none",
        "preset": name in PRESETS,
        "source": FORMATS[fmt.name].source,
    }
