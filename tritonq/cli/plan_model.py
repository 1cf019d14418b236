"""``tritonq plan MODEL``: what a checkpoint takes on each device with each scheme, and the best scheme for each weight."""
from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from math import isfinite
from pathlib import Path

import torch

from ..assignment import assign_model
from ..checkpoints import open as open_checkpoint
from ..checkpoints.rules import Rules
from ..checkpoints.source import Source
from ..checkpoints.tensorfile import read_json
from ..errors import CheckpointError, TritonQError
from ..files import writable, write_atomic
from ..memory_plan import MemoryPlan, plan_memory
from ..model_config import Use
from ..sizes import format_bytes
from .explain import target_named
from .output import print_json, progress, say, table

SCHEMES = ("int8", "fp8_e4m3", "nf4", "int4.g128", "mxfp4", "int3.g64", "int2.g32")
_AS_IS = "as it is"
_LOSSLESS = {"BF16": "bf16", "F16": "fp16"}  # schemes that hold weights of a dtype as they are
_LARGEST_ASSIGNMENT = 16 << 20  # bytes


def plan_model(args, memory: int, schemes: list[str]) -> int:
    checkpoint = open_checkpoint(args.model)
    if checkpoint.records or checkpoint.source.config.get("quantization_config") is not None:
        raise CheckpointError(f"{args.model}: is quantized already; plan takes the original weights, inspect shows the sizes of this one")
    source, use = checkpoint.source, _use(args)
    file = None if args.assign is None else _assign_to(args.assign)
    params = sum(entry.numel for entry in source.entries)
    plans = {_AS_IS: plan_memory(source, None, use)} | {scheme: plan_memory(source, scheme, use) for scheme in schemes}
    rows = [_row(name, plan, params, memory) for name, plan in sorted(plans.items(), key=lambda item: -item[1].saved)]
    report = {"model": args.model, "parameters": params, "memory": memory, "devices": use.devices, "target": str(use.target),
              "context": use.context, "batch": use.batch, "tokens": use.at_once}  # fmt: skip
    suggestion = next((row["precision"] for row in rows if row["fits"]), None)
    if file is not None:
        return _assigned(args, file, source, use, memory, schemes, report | {"choices": rows})
    if args.json:
        print_json(report | {"suggestion": suggestion, "choices": rows})
    else:
        _show(report, rows)
        told = any(row["fits"] is None for row in rows)
        nothing = "cannot tell whether any fits" if told else "does not fit at any of these; use more devices or fewer bits"
        say(f"suggestion: {suggestion}" if suggestion else nothing)
    return 0 if suggestion else 1


def _use(args) -> Use:
    target = target_named(args.target or (None if torch.cuda.is_available() else "sm_90"))
    given = {"context": args.context, "batch": args.batch, "tokens": args.tokens, "devices": args.devices}
    return Use(target=target, **{name: value for name, value in given.items() if value is not None})


def _row(name: str, plan: MemoryPlan, params: int, memory: int) -> dict:
    fields = asdict(plan)
    kept = ("saved", "weights", "kv_cache", "activations", "workspace", "load_peak", "unknown", "refused")
    bits = round(8 * plan.saved / params, 4) if params else 0.0
    figures = {key: fields[key] for key in kept} | {"needed": plan.needed, "fits": plan.fits(memory)}
    return {"precision": name, "bits_per_param": bits, **figures}


def _show(report: dict, rows: list[dict]) -> None:
    devices = (f"{report['devices']} x " if report["devices"] > 1 else "") + report["target"]
    asked = f"{report['batch']} x {report['context']} tokens, {report['tokens']} at once" if report["context"] else "weights alone"
    table(
        f"{report['model']}: {report['parameters']} parameters on {devices} with {format_bytes(report['memory'])}, {asked}",
        ["precision", "bits/parameter>", "file>", "weights>", "KV cache>", "activations>", "workspace>", "load peak>", "needed>", "fits"],
        [
            [r["precision"], f"{r['bits_per_param']:.3f}", *(_size(r[key]) for key in (
                "saved", "weights", "kv_cache", "activations", "workspace", "load_peak", "needed")), _fits(r["fits"])]
            for r in rows
        ],
    )  # fmt: skip
    if report["devices"] > 1:
        say("on each device; q, k, v, gate, up and lm_head are split by column, o and down by row, everything else is kept by each")
    if not report["context"]:
        say("KV cache and activations are left out; --context N counts them")
    for text in dict.fromkeys(reason for r in rows for reason in r["unknown"]):
        say(text)
    for r in rows:
        if r["refused"]:
            say(f"{r['precision']} cannot be split: {r['refused']}")


def _assign_to(text: str) -> Path:
    """Where --assign writes: nothing there yet, or an assignment, which is small; never weights."""
    file = writable(text)
    if file.exists():
        try:
            if file.stat().st_size > _LARGEST_ASSIGNMENT:
                raise CheckpointError(f"{file}: holds more than {format_bytes(_LARGEST_ASSIGNMENT)}")
            Rules.parse(read_json(file))
        except TritonQError as error:
            raise CheckpointError(f"--assign {text}: holds something else than schemes and is not written over ({error})") from error
    return file


def _assigned(args, file: Path, source: Source, use: Use, memory: int, schemes: list[str], report: dict) -> int:
    """Measure, choose, write the file, and hold the plan of the result against the memory."""
    with progress("measuring", show=not args.json) as advance:
        found, least = assign_model(source, memory, schemes, use, lossless=_LOSSLESS, progress=advance)
    plan = plan_memory(source, found.patterns(), use) if found else None
    if found:
        write_atomic(file, json.dumps(found.patterns(), indent=2, ensure_ascii=False) + "\n")
    row = None
    if found and plan:
        figures = {"sqnr_db": _finite(found.sqnr_db), "gap_db": _finite(found.gap_db), "schemes": found.schemes, "file": args.assign}
        row = _row("assigned", plan, report["parameters"], memory) | figures
    if args.json:
        print_json(report | {"assignment": row, "least_memory": least})
    elif row is None:
        _show(report, report["choices"])
        say(f"does not fit: the smallest assignment needs {format_bytes(least)}; use more devices or fewer bits")
    else:
        _show(report, [*report["choices"], row])
        counts = ", ".join(f"{count} x {scheme}" for scheme, count in Counter(found.schemes.values()).most_common())
        near = f"at most {found.gap_db:.3f} dB below the best possible"
        say(f"assigned: {counts}; SQNR {found.sqnr_db:.2f} dB over all weights, measured; {near}")
        say(f"tritonq quantize {args.model} --scheme @{args.assign} -o DST")
    return 0 if row and row["fits"] else 1


def _finite(value: float) -> float | None:
    """JSON has no infinity: None where nothing is lost, or nothing else is possible."""
    return round(value, 4) if isfinite(value) else None


def _size(size: int | None) -> str:
    return "?" if size is None else format_bytes(size)


def _fits(fits: bool | None) -> str:
    return "?" if fits is None else "yes" if fits else "no"
