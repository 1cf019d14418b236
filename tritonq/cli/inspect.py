"""``tritonq inspect PATH``: what is in a checkpoint."""
from __future__ import annotations

from math import prod

from ..checkpoints import open as open_checkpoint
from ..checkpoints.tensorfile import DTYPES
from ..dtypes import dtype_name
from ..sizes import format_bytes
from .output import dimensions, print_json, say, table
from .parser import add_json


def add_command(commands) -> None:
    parser = commands.add_parser("inspect", help="list the tensors, schemes and sizes of a checkpoint (headers only)")
    parser.add_argument("path", metavar="PATH")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args) -> int:
    checkpoint = open_checkpoint(args.path)
    rows = [_row(checkpoint, name) for name in checkpoint.names()]
    quantized = [row for row in rows if row["scheme"]]
    weights = sum(prod(row["shape"]) for row in quantized)
    report = {
        "path": args.path,
        "family": checkpoint.family,
        "files": [str(file.path.name) for file in checkpoint.source.files],
        "parameters": sum(prod(row["shape"]) for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "bits_per_weight": round(8 * sum(row["bytes"] for row in quantized) / weights, 4) if weights else None,
        "tensors": rows,
    }
    if args.json:
        print_json(report)
        return 0
    table(
        args.path,
        ["tensor~", "shape", "dtype", "scheme", "bits/weight>", "size>"],
        [
            [r["name"], dimensions(r["shape"]), r["dtype"], r["scheme"] or "-", f"{r['bits_per_weight']:.3f}", format_bytes(r["bytes"])]
            for r in rows
        ],
    )
    bits = f" at {report['bits_per_weight']:.3f} bits per weight" if weights else ""
    size = f"{report['parameters']} parameters, {format_bytes(report['bytes'])}"
    say(f"{checkpoint.family}: {len(rows)} tensors, {len(quantized)} quantized{bits}, {size}")
    return 0


def _row(checkpoint, name: str) -> dict:
    entries = checkpoint.entries(name)
    record = checkpoint.records.get(name)
    size, shape = sum(entry.nbytes for entry in entries), checkpoint.shape(name)
    return {
        "name": name,
        "shape": list(shape),
        "dtype": dtype_name(record.dtype) if record else entries[0].dtype,
        "scheme": record.scheme if record else None,
        "bits_per_weight": round(8 * size / prod(shape), 4) if prod(shape) else float(DTYPES[entries[0].dtype][0]),
        "bytes": size,
        "stored": {entry.name: [entry.dtype, list(entry.shape)] for entry in entries},
    }
