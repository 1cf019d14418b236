"""Pictures of results, by matplotlib. Whatever was not measured on a GPU carries that across the picture."""
from __future__ import annotations

from collections.abc import Iterable

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .canvas import COLOURS, MARKERS, legend_below, m_ticks, name_points, panels, si, unique
from .results import Results, Row


def pictures(results: Results) -> dict[str, Figure]:
    """Every picture that the rows are enough for, by file name without its ending."""
    drawn = {"speedup": speedup(results), "roofline": roofline(results), "floor": floor(results), "quantize": quantize(results),
             "end-to-end": tokens(results), "quality": quality(results.rows)}  # fmt: skip
    return {name: figure for name, figure in drawn.items() if figure is not None}


def speedup(results: Results) -> Figure | None:
    """Times faster than the bfloat16 product over M, a panel a shape; dotted: what the bytes and operations allow."""
    rows = [row for row in results.rows if row.suite == "matmul"]
    library = _library(rows)
    timed = [row for row in rows if row.us and library in row.speedup]
    if not timed:
        return None
    shapes, schemes = unique(row.shape for row in timed), unique(row.scheme for row in timed)
    peers = [name for name in unique(row.name for row in timed) if name != "tritonq"]
    ms = sorted({row.m for row in timed})
    figure, axes = panels(len(shapes), f"Speed over {library}", rows)
    floors = {(row.shape, row.m): row.floor_us for row in rows if row.name == library and row.floor_us}
    for axis, shape in zip(axes, shapes):
        for i, scheme in enumerate(schemes):
            for name in ("tritonq", *peers):
                line = sorted((r for r in timed if (r.shape, r.scheme, r.name) == (shape, scheme, name)), key=lambda r: r.m)
                style = _style(name, peers)
                axis.plot([r.m for r in line], [r.speedup[library] for r in line], color=COLOURS[i % len(COLOURS)], **style)
                if name == "tritonq":
                    ideal = [(r.m, floors[shape, r.m] / r.floor_us) for r in line if (shape, r.m) in floors]
                    axis.plot(*zip(*ideal), ":", color=COLOURS[i % len(COLOURS)], linewidth=1.2) if ideal else None
        axis.axhline(1, color="black", linewidth=0.8)
        row = next(r for r in timed if r.shape == shape)
        axis.set(title=f"{shape}  [{row.n} x {row.k}]" if shape != f"{row.n}x{row.k}" else shape, xscale="log", xlabel="M, rows of x",
                 ylabel=f"times as fast as {library}", ylim=(0, None))  # fmt: skip
        m_ticks(axis, ms)
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=scheme, linewidth=3) for i, scheme in enumerate(schemes)]
    handles += [Line2D([], [], color="black", label=name, **_style(name, peers)) for name in ("tritonq", *peers)]
    handles += [Line2D([], [], color="black", linestyle=":", label="ideal: this machine's measured roofs"),
                Line2D([], [], color="black", linewidth=0.8, label=f"{library} = 1")]  # fmt: skip
    return legend_below(figure, handles)


def roofline(results: Results) -> Figure | None:
    """Operations per second over operations per byte, under this machine's measured copy and product."""
    rows = [row for row in results.rows if row.suite in ("matmul", "backward") and row.us and row.bytes and row.flops]
    if not rows or not {"bytes_per_s", "flops_per_s"} <= set(results.roofs):
        return None
    bandwidth, rate = results.roofs["bytes_per_s"], results.roofs["flops_per_s"]
    figure, (axis,) = panels(1, "Roofline", rows, size=(8.5, 5.6))
    intensity = [row.flops / row.bytes for row in rows]
    low, high, ridge = min(intensity) / 2, max(*intensity, 2 * rate / bandwidth) * 2, rate / bandwidth
    axis.plot([low, ridge, high], [low * bandwidth / 1e12, rate / 1e12, rate / 1e12], color="black", linewidth=1.6,
              label=f"measured: copy {si(bandwidth)}B/s, bf16 product {si(rate)}FLOP/s")  # fmt: skip
    kinds = unique((row.name, row.scheme) for row in rows if row.name == "tritonq" or row.scheme == "none")
    for i, (name, scheme) in enumerate(kinds):
        some = [row for row in rows if (row.name, row.scheme) == (name, scheme)]
        axis.plot([r.flops / r.bytes for r in some], [r.tflop_per_s for r in some], linestyle="none", marker=MARKERS[i % len(MARKERS)],
                  markersize=5, alpha=0.8, color=COLOURS[i % len(COLOURS)], label=name if scheme == "none" else scheme)  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="operations per byte that must move [FLOP/B]", ylabel="TFLOP/s")
    return legend_below(figure, axis.get_legend_handles_labels()[0])


def floor(results: Results) -> Figure | None:
    """The share of the floor that each product reaches: shapes and schemes down, M across."""
    rows = [row for row in results.rows if row.suite == "matmul" and row.name == "tritonq" and row.of_floor]
    if not rows:
        return None
    lines, ms = unique((row.shape, row.scheme) for row in rows), sorted({row.m for row in rows})
    share = {(row.shape, row.scheme, row.m): 100 * row.of_floor for row in rows}
    values = [[share.get((*line, m), float("nan")) for m in ms] for line in lines]
    figure, (axis,) = panels(1, "Share of the floor", rows, size=(max(6.5, 3.2 + 0.62 * len(ms)), 2.1 + 0.3 * len(lines)))
    axis.set_title("100 % is what this machine's measured copy and product allow", fontsize=10)
    image = axis.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            if value == value:
                axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color="black" if value > 55 else "white")
    axis.set_xticks(range(len(ms)), [str(m) for m in ms])
    axis.set_yticks(range(len(lines)), [f"{shape}  {scheme}" for shape, scheme in lines])
    axis.set_xlabel("M, rows of x")
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="% of the floor", fraction=0.04, pad=0.02)
    return figure


def quantize(results: Results) -> Figure | None:
    """Bandwidth of quantize and dequantize beside that of a copy measured in the same turns."""
    rows = [row for row in results.rows if row.suite in ("quantize", "dequantize") and row.us]
    ours = [row for row in rows if row.name == "tritonq"]
    if not ours:
        return None
    suites, shapes = unique(row.suite for row in ours), unique(row.shape for row in ours)
    figure, axes = panels(len(suites), "Bytes that must move per second", rows, size=(1.6 + 0.55 * len(shapes) + 5.5, 4.4), columns=1)
    for axis, suite in zip(axes, suites):
        kinds = unique((row.scheme, _layout(row)) for row in ours if row.suite == suite)
        width = 0.8 / len(shapes)
        for i, shape in enumerate(shapes):
            found = {(row.scheme, _layout(row)): row for row in ours if (row.suite, row.shape) == (suite, shape)}
            at = [j + (i - (len(shapes) - 1) / 2) * width for j, kind in enumerate(kinds) if kind in found]
            some = [found[kind] for kind in kinds if kind in found]
            gb = [row.tb_per_s * 1e3 for row in some]
            spread = [[g - 1e-3 * r.bytes / r.p80 for g, r in zip(gb, some)], [1e-3 * r.bytes / r.p20 - g for g, r in zip(gb, some)]]
            axis.bar(at, gb, width * 0.92, color=COLOURS[i % len(COLOURS)], label=shape, hatch=("", "//", "..", "xx")[i % 4],
                     edgecolor="white", yerr=[[max(v, 0) for v in side] for side in spread], ecolor="black", capsize=2)  # fmt: skip
        copies = [row.tb_per_s * 1e3 for row in rows if row.name == "copy" and row.suite == suite]
        axis.axhline(sorted(copies)[len(copies) // 2], color="black", linestyle="--", linewidth=1.2, label="copy, same turns (median)")
        axis.set_xticks(range(len(kinds)), [scheme if layout == "row" else f"{scheme}\n{layout}" for scheme, layout in kinds], fontsize=9)
        axis.set(title=suite, ylabel="GB/s (bars: median, p20 - p80)")
    return legend_below(figure, axes[0].get_legend_handles_labels()[0])


def tokens(results: Results) -> Figure | None:
    """Tokens per second of the small decoder."""
    rows = [row for row in results.rows if row.suite == "end-to-end" and "tokens_per_s" in row.figures]
    if not rows:
        return None
    kinds, ms = unique((row.name, row.scheme) for row in rows), sorted({row.m for row in rows})
    figure, axes = panels(len(ms), "Tokens per second, one graph a token", rows, size=(4.2, 3.6))
    for axis, m in zip(axes, ms):
        found = {(row.name, row.scheme): row.figures["tokens_per_s"] for row in rows if row.m == m}
        names = [kind for kind in kinds if kind in found]
        colours = [COLOURS[kinds.index(kind) % len(COLOURS)] for kind in names]
        bars = axis.bar(range(len(names)), [found[kind] for kind in names], color=colours)
        axis.bar_label(bars, fmt="{:.0f}", fontsize=9)
        axis.set_xticks(range(len(names)), [name if scheme == "none" else scheme for name, scheme in names], fontsize=9)
        axis.set(title=f"{m} sequence{'s' * (m > 1)}", ylabel="tokens per second", ylim=(0, 1.12 * max(found.values())))
    figure.supxlabel(rows[0].note, fontsize=8)
    return figure


def quality(rows: Iterable[Row]) -> Figure | None:
    """What a scheme keeps against what it costs: noise on normal weights, and a real model's sentence embeddings."""
    rows = [row for row in rows if row.suite in ("quality", "minilm") and row.figures.get("sqnr_db") is not None]
    suites = unique(row.suite for row in rows)
    if not rows:
        return None
    told = {"quality": ("normally distributed weights", "SQNR [dB], higher is better", "sqnr_db"),
            "minilm": ("sentence embeddings of MiniLM-L6, all Linear weights quantized",
                       "1 - mean cosine with the original's, lower is better", "cosine_mean")}  # fmt: skip
    figure, axes = panels(len(suites), "Quality against bits per weight, all metadata counted", [], size=(7, 5.2))
    named = []
    for axis, suite in zip(axes, suites):
        title, label, key = told[suite]
        points = [(row.figures["bits_per_weight"], row.figures[key] if suite == "quality" else 1 - row.figures[key], row.scheme)
                  for row in sorted(rows, key=lambda row: row.figures["bits_per_weight"]) if row.suite == suite]  # fmt: skip
        for x, y, scheme in points:
            i = _FAMILIES.index(_family(scheme))
            axis.plot(x, y, linestyle="none", marker=MARKERS[i], markersize=8, color=COLOURS[i], label=_family(scheme))
        axis.set(title=title, xlabel="bits per weight", ylabel=label, yscale="log" if suite == "minilm" else "linear")
        axis.margins(0.12)
        named.append((axis, points))
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    legend_below(figure, list(handles.values()))
    for axis, points in named:
        name_points(axis, points)
    return figure


def instructions(runs: list[dict], arch: int = 90, dtype: str = "bfloat16") -> Figure:
    """Instructions per weight of the compiled products against a kernel written as int4 kernels usually are; nothing ran."""
    run = runs[0]
    rows = [row for row in run["rows"] if (row["arch"], row["dtype"]) == (arch, dtype)]
    yard = next(row["per_weight"] for row in rows if row["kernel"] == "peer_style")
    ours = [row for row in rows if row["kernel"] == "matmul_frag"]
    n, k = ours[0]["n"], ours[0]["k"]  # the shape that every scheme was compiled for stands first
    ours = [row for row in ours if (row["n"], row["k"]) == (n, k)]
    schemes = unique(row["scheme"] for row in ours if row["m"] == 16)
    title = f"Instructions per weight in the compiled main loop, {n} x {k}, sm_{arch}, {dtype} (Triton {run['triton']})"
    figure, (axis,) = panels(1, title, [], size=(9.5, 4.6))
    for i, m in enumerate((1, 16)):
        some = {row["scheme"]: row["per_weight"] for row in ours if row["m"] == m}
        at = [j for j, scheme in enumerate(schemes) if scheme in some]
        bars = axis.bar([j + 0.4 * i - 0.2 for j in at], [some[schemes[j]] for j in at], 0.38, color=COLOURS[i], hatch=("", "//")[i],
                        edgecolor="white", label=f"tritonq matmul_frag, M = {m}")  # fmt: skip
        axis.bar_label(bars, fmt="{:.1f}", fontsize=7)
    axis.axhline(yard, color="black", linestyle="--", label=f"an int4 kernel as usually written: {yard:.1f}")
    axis.set_xticks(range(len(schemes)), schemes, rotation=35, ha="right", fontsize=9)
    axis.set(ylabel="instructions per weight", ylim=(0, None))
    axis.set_title("compiled, not run on a GPU: a count, not a speed", fontsize=10, style="italic")
    return legend_below(figure, axis.get_legend_handles_labels()[0])


_FAMILIES = ("integer with zero point", "integer", "code book or small float", "8-bit float", "block preset (mx, nv)")


def _family(scheme: str) -> str:
    name = scheme.split(".")[0]
    if name.startswith(("mx", "nv")):
        return _FAMILIES[4]
    if name.startswith("fp8"):
        return _FAMILIES[3]
    return _FAMILIES[0] if name.startswith("uint") else _FAMILIES[1] if name.startswith("int") else _FAMILIES[2]


def _style(name: str, peers: list[str]) -> dict:
    if name == "tritonq":
        return {"linestyle": "-", "marker": "o", "markersize": 5, "linewidth": 2}
    i = peers.index(name)
    return {"linestyle": ("--", "-.")[i % 2], "marker": MARKERS[1 + i % (len(MARKERS) - 1)], "markersize": 5, "linewidth": 1.2}


def _library(rows: list[Row]) -> str:
    return next((row.name for row in rows if row.scheme == "none" and row.name.endswith("bf16")), "")


def _layout(row: Row) -> str:
    return next((layout for layout in ("frag", "ksplit") if f"/{layout}/" in row.sku), "row")
