"""What all pictures share: colours, panels, legends, names of points, and the mark of what no GPU measured."""
from __future__ import annotations

from collections.abc import Iterable

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .results import Row

# Okabe and Ito, Color Universal Design: eight colours that colour-blind readers tell apart (without black and yellow).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#4B2E83")
MARKERS = "osD^vP*X"
MARKS = {"cpu": "CPU TRY-OUT: NO RESULT", "model": "PREDICTED BY A MODEL, NOT MEASURED"}


def panels(count: int, title: str, rows: list[Row], size: tuple[float, float] = (5.0, 3.8), columns: int = 3) -> tuple[Figure, list]:
    """A figure with ``count`` axes of ``size`` inches; what in ``rows`` no GPU measured is written across it."""
    columns = min(count, columns)
    lines = -(-count // columns)
    figure = Figure(figsize=(columns * size[0], lines * size[1] + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(count)]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    for source in MARKS:
        if any(row.source == source for row in rows):
            figure.text(0.5, 0.5, MARKS[source], fontsize=2 * figure.get_figwidth() + 6, color="#B00000", alpha=0.3, rotation=15,
                        ha="center", va="center", zorder=10)  # fmt: skip
    return figure, axes


def legend_below(figure: Figure, handles: list) -> Figure:
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), fontsize=9, frameon=False)
    return figure


def name_points(axis, points: list[tuple[float, float, str]]) -> None:
    """Names beside points, each where it covers least of the other names and points."""
    axis.figure.draw_without_rendering()  # fixes what is where
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in (axis.transData.transform(point[:2]) for point in points)]
    taken: list[tuple[float, float, float, float]] = []
    scale = axis.figure.dpi / 72
    for (x, y, name), mark in zip(points, marks):
        width, height = 5.2 * len(name), 10  # of the text, in points
        sides = [(7, -height / 2), (-7 - width, -height / 2), (-width / 2, 7), (-width / 2, -7 - height)]
        sides += [(dx, dy) for step in (6, 14) for dx in (step, -step - width) for dy in (step, -step - height)]
        at = [(mark[0] + 5 + dx * scale, mark[1] + 5 + dy * scale) for dx, dy in sides]
        boxes = [(px, py, px + width * scale, py + height * scale) for px, py in at]
        cost = [10 * sum(_overlap(box, other) for other in taken) + sum(_overlap(box, other) for other in marks) for box in boxes]
        best = cost.index(min(cost))
        taken.append(boxes[best])
        far = {"arrowstyle": "-", "linewidth": 0.5, "color": "gray"} if best >= 8 else None
        axis.annotate(name, (x, y), sides[best], textcoords="offset points", fontsize=8, va="bottom", arrowprops=far)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def m_ticks(axis, ms: list[int]) -> None:
    shown = ms[:: 2 if len(ms) > 9 else 1]
    axis.set_xticks(shown, [str(m) for m in shown])
    axis.set_xticks([], minor=True)


def si(value: float) -> str:
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g} "


def unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def png(figure: Figure, path, dpi: int = 110) -> None:
    """Write a figure to a path or a binary file."""
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
