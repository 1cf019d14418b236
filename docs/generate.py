"""Writes the generated pages from the registry: all of docs/formats.md, and what stands between markers in README.md.

    python docs/generate.py            write
    python docs/generate.py --check    exit status 1 where a page is stale
    python docs/generate.py --pictures write docs/*.png from benchmarks/results too (needs matplotlib)

Everything numeric is computed from the formats themselves, nothing is copied by hand.
"""
from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import math
import pathlib
import re
import sys

import torch

from tritonq import cli, quantize
from tritonq.bench import cpu
from tritonq.bench.quality import sqnr
from tritonq.bench.results import Results
from tritonq.formats import FORMATS, SCALE_FORMATS, Format, ScaleFormat
from tritonq.scheme import ALIASES, OPTIONS, PRESETS, Scheme, scheme_names

ROOT = pathlib.Path(__file__).resolve().parent.parent
_GRANULARITIES = {
    "tensor": "one scale for the matrix",
    "channel": "one per row of `[N, K]`",
    "token": "as `channel`, the word for activations",
    "column": "one per column",
    "g<size>": "one per `<size>` columns of a row, any size; the last group may be short",
    "b<rows>x<columns>": "one per block; blocks at the edges may be short",
}
_SPREAD_E4M3 = 17  # an e4m3 scale is off by at most 1/17 of itself, at the midpoint 1.0625


def _row(cells: list) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a column whose name ends in ``>`` is aligned to the right."""
    lines = [
        "| " + " | ".join(name.removesuffix(">") for name in header) + " |",
        "|" + "|".join("---:" if name.endswith(">") else "---" for name in header) + "|",
    ]
    return "\n".join(lines + [_row(row) for row in rows])


def distinct_levels(fmt: Format) -> torch.Tensor:
    """The levels that encode can choose, ascending, float64."""
    levels = fmt.levels.double()
    return levels[levels.abs() <= fmt.max_abs].unique()


def quotient_range(scheme: Scheme) -> tuple[float, float]:
    """Least and greatest absmax / scale that the scheme's rule for the scale allows (affine: of the extent)."""
    largest = scheme.divisor
    if scheme.recipe == "mx":
        return 2.0**scheme.max_exponent, 2.0 ** (scheme.max_exponent + 1)
    if scheme.recipe == "nv":
        return largest / (1 + 1 / _SPREAD_E4M3), largest / (1 - 1 / _SPREAD_E4M3)
    return largest, largest


def worst_error(scheme: Scheme) -> float:
    """Largest |x - decoded| in a group, as a share of its absmax (affine: of its extent); the scale not yet rounded to its storage,
    except where that rounding is the scheme's own rule (mx, nv). The level formats' casts: a share of the value itself.
    """
    if not scheme.has_scale:
        one = scheme.format.encode_ref(torch.ones(()))
        return float(scheme.format.decode_ref(one + 1) - 1) / 2
    low, high = quotient_range(scheme)
    if scheme.format.is_integer:
        return 0.5 / low
    levels = distinct_levels(scheme.format)
    worst = 0.0
    for side in (levels, levels.neg().flip(0)):
        gaps = [(float(b + a) / 2, float(b - a) / 2) for a, b in zip(side[:-1], side[1:]) if a + b > 0]
        for reach in {low, high, *(middle for middle, _ in gaps if low <= middle <= high)}:
            rounding = max((half for middle, half in gaps if middle <= reach), default=0.0)
            worst = max(worst, rounding / reach, (reach - float(side[-1])) / reach)
    return worst


def levels_text(fmt: Format) -> str:
    if fmt.is_integer:
        low, high = fmt.code_range
        return f"{low}..{high}"
    if fmt.bits > 8:
        return "floats"
    return f"{distinct_levels(fmt).numel()} levels"


def format_table() -> str:
    """One row per format and preset."""
    rows = []
    for name in scheme_names():
        scheme = Scheme.parse(name)
        of = "of the value" if not scheme.has_scale else "of the range" if scheme.format.affine else "of absmax"
        bits = scheme.bits_per_weight(4096, 4096, torch.bfloat16)
        rows.append([f"`{name}`", f"{bits:.2f}", scheme.granularity, levels_text(scheme.format),
                     f"{100 * worst_error(scheme):.2g} % {of}", f"{sqnr(scheme):.1f}", source(scheme)])  # fmt: skip
    return markdown(["scheme", "bits/weight>", "group", "codes", "worst error", "SQNR, dB>", "source"], rows)


def source(scheme: Scheme) -> str:
    """Where a format's or preset's numbers come from."""
    recipes = {"mx": "OCP Microscaling Formats v1.0", "nv": "NVIDIA NVFP4: e2m1, e4m3 per 16, fp32 per tensor"}
    return recipes.get(scheme.recipe) or scheme.format.source


def _summary(fmt: Format) -> str:
    """The first line of the module that defines ``fmt``."""
    module = fmt.encode_ref.__module__ if fmt.name not in _modules() else f"tritonq.formats.{fmt.name}"
    return (importlib.import_module(module).__doc__ or "").splitlines()[0].split(": ", 1)[-1].rstrip(".") + "."


def _modules() -> set[str]:
    return {path.stem for path in (ROOT / "tritonq" / "formats").glob("*.py")}


def _number(value: float) -> str:
    return f"{value:.9g}"


def _probe(fmt: Format) -> list[str]:
    """What a group with special values becomes."""
    q = quantize(torch.tensor([[1.0, -1.0, 0.0, math.nan, math.inf, -math.inf]]), fmt.name)
    codes = [int(c) if fmt.bits <= 8 else f"{int(c):#06x}" for c in q.codes()[0]]
    rows = [["x", "1", "-1", "0", "NaN", "+Inf", "-Inf"], ["code", *codes], ["decoded", *map(_number, q.dequantize()[0].tolist())]]
    lines = ["", markdown(rows[0], rows[1:])]
    if fmt.max_abs is not None:
        empty = quantize(torch.zeros(1, 1), fmt.name)
        zero_point = "" if empty.zero_point is None else f", zero point {int(empty.zero_point)}"
        lines += ["", f"A group without range has scale {_number(float(empty.scale))}{zero_point} and code {int(empty.codes())}."]
    return lines


def _half_gap(fmt: Format) -> float:
    return 0.5 if fmt.is_integer else float(distinct_levels(fmt).diff().max()) / 2


def format_section(fmt: Format) -> str:
    """The section of one format in docs/formats.md."""
    scheme = Scheme.parse(fmt.name)
    lines = [f"### {fmt.name}", "", _summary(fmt), ""]
    if scheme.has_scale:
        storage = f"`{fmt.scale}`" if fmt.scale else "the input's dtype (`fp32` for float64)"
        lines.append(f"- {fmt.bits} bits; default granularity `{scheme.granularity}`; scales stored as {storage}.")
    else:
        lines.append(f"- {fmt.bits} bits; no scale.")
    if fmt.is_integer:
        low, high = fmt.code_range
        lines.append(f"- Codes {low} to {high}, stored modulo {2**fmt.bits}; a code is its own level.")
    elif fmt.bits <= 4:
        lines.append("- Level of code 0, 1, ...: " + ", ".join(map(_number, fmt.levels.tolist())) + ".")
    elif fmt.bits == 8:
        used, levels = int((fmt.levels.abs() <= fmt.max_abs).sum()), distinct_levels(fmt)
        ends = f"least positive level {_number(float(levels[levels > 0][0]))}, largest {_number(float(levels[-1]))}"
        lines.append(f"- {used} of {2**fmt.bits} codes are written, both zeros among them; {ends}.")
    if scheme.has_scale:
        lines.append(f"- Half of the widest gap between levels, the worst rounding error in units of the scale: {_number(_half_gap(fmt))}.")
    return "\n".join([*lines, f"- Source: {fmt.source}.", *_probe(fmt)])


def _presets() -> list[list[str]]:
    rules = {"mx": "floor rule of the OCP specification", "nv": "and one fp32 scale per tensor, absmax / (448 * 6)"}
    return [[f"`{name}`", f"`{p['format'].name}` in `{p['granularity']}`, scales `{p['scale']}`, {rules[p['recipe']]}"]
            for name, p in PRESETS.items()]  # fmt: skip


def _scale_formats() -> list[list]:
    return [[f"`{f.option}`", f.name, f.bits, _number(_least(f)), _number(_largest(f)), f.source] for f in SCALE_FORMATS.values()]


def formats_page() -> str:
    """docs/formats.md."""
    parts = [
        "# Formats",
        "<!-- Written by docs/generate.py from the registry; edits here are lost. -->",
        "A scheme is written `<format>[.<granularity>][.<option>]...`, as in `int4.g64.full`. `Scheme.parse(text)` and `str(scheme)` are "
        "inverses; an unknown part is an error that lists the known ones. The rules behind the words are in [numerics.md](numerics.md).",
        "## All formats and presets",
        format_table(),
        "*bits/weight*: of a 4096 x 4096 bfloat16 matrix under the default granularity, all metadata counted. *worst error*: the largest "
        "|x - decoded x| in a group, before the scale is rounded to its storage (for the mx and nv presets with it, in groups whose scale "
        "is a normal number). *SQNR*: signal to quantization noise of normally distributed weights (256 x 1024 quantiles of the unit "
        "normal in random order).",
        "## Granularities",
        markdown(["granularity", "scales"], [[f"`{name}`", text] for name, text in _GRANULARITIES.items()]),
        "## Options",
        markdown(["option", "meaning"], [[f"`{name}`", text] for name, text in OPTIONS.items()]),
        "How a scale is stored, where the default is not wanted (codes are always computed with the scale as it is stored):",
        markdown(["option", "name", "bits>", "least positive>", "largest>", "source"], _scale_formats()),
        "## Presets and other names",
        markdown(["preset", "meaning"], _presets()),
        "The weight halves of names that other libraries use:",
        markdown(["name", "scheme"], [[f"`{name}`", f"`{scheme}`"] for name, scheme in ALIASES.items()]),
        "## Each format",
        *(format_section(fmt) for fmt in FORMATS.values()),
    ]
    return "\n\n".join(parts) + "\n"


def _least(storage: ScaleFormat) -> float:
    return float(storage.decode_ref(storage.encode_ref(torch.tensor([5e-324], dtype=torch.float64))))


def _largest(storage: ScaleFormat) -> float:
    return float(storage.decode_ref(storage.encode_ref(torch.tensor([sys.float_info.max], dtype=torch.float64))))


def evidence_table() -> str:
    """docs/has_run.csv as a table."""
    with open(ROOT / "docs" / "has_run.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return markdown(header, rows)


def cpu_table() -> str:
    """The rows of benchmarks/results/cpu.json."""
    return cpu.markdown(Results.read(ROOT / "benchmarks" / "results" / "cpu.json"))


COMMANDS = (
    "tritonq plan --params 8B --memory 12GiB",
    "tritonq explain --m 1 --n 4096 --k 14336 --scheme int4.g128 --target sm_90",
    "tritonq explain --m 1 --n 4096 --k 14336 --scheme int4.g128 --target cpu",
)


def command_output() -> str:
    """What the commands print, run in this process."""
    text = ["```console"]
    for command in COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            cli.main(command.split()[1:])
        text += [f"$ {command}", *(line.rstrip() for line in printed.getvalue().splitlines())]
    return "\n".join([*text, "```"])


def with_sections(text: str, sections: dict[str, str]) -> str:
    """``text`` with what stands between ``<!-- generated: name -->`` and ``<!-- end -->`` replaced by each section."""
    for name, content in sections.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda m, content=content: f"{m[1]}\n{content}\n\n{m[2]}", text)
        if count != 1:
            raise ValueError(f"README.md must hold the section {name!r} once, found {count} times")
    return text


def pages() -> dict[pathlib.Path, str]:
    """Every generated page with the content that it should have."""
    readme = ROOT / "README.md"
    sections = {"formats": format_table(), "has run": evidence_table(), "cpu": cpu_table(), "commands": command_output()}
    return {ROOT / "docs" / "formats.md": formats_page(), readme: with_sections(readme.read_text(encoding="utf-8"), sections)}


def draw() -> list[pathlib.Path]:
    """The pictures of README.md, from committed figures. Not compared by --check: a PNG's bytes are matplotlib's affair."""
    from tritonq.bench import plots
    from tritonq.bench.canvas import png

    results = ROOT / "benchmarks" / "results"
    runs = json.loads((results / "codegen.json").read_text(encoding="utf-8"))["runs"]
    figures = {"instructions": plots.instructions(runs), "quality": plots.quality(Results.read(results / "quality.json").rows)}
    for name, figure in figures.items():
        png(figure, ROOT / "docs" / f"{name}.png", dpi=90)
    return [ROOT / "docs" / f"{name}.png" for name in figures]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="write the generated pages")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a page is stale")
    parser.add_argument("--pictures", action="store_true", help="draw docs/*.png again")
    options = parser.parse_args(arguments)
    check = options.check
    if options.pictures:
        for path in draw():
            print(f"wrote: {path.relative_to(ROOT)}")
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(pages()[path], encoding="utf-8")
        print(f"{'stale' if check else 'wrote'}: {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
