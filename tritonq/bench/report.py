"""Results as PNGs and as one HTML file that needs nothing else: pictures, tables, and how to measure each row again."""
from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from ..errors import UnsupportedError
from .results import Results, Row

_TITLES = {
    "speedup": "Speed over M", "roofline": "Roofline", "floor": "Share of the floor", "quantize": "Quantize and dequantize",
    "end-to-end": "Tokens per second", "quality": "Quality against bits per weight",
}  # fmt: skip
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#111}
img{max-width:100%}table{border-collapse:collapse;font-size:13px;margin:1em 0}th,td{padding:2px 8px;border-bottom:1px solid #ddd;
text-align:right}th:first-child,td.t,th.t{text-align:left}.mark{background:#B00000;color:#fff;padding:.6em 1em;font-weight:bold}
.fault{color:#B00000;font-weight:bold}code{font-size:12px}.wide{overflow-x:auto}"""


def require() -> None:
    """Refuse where matplotlib is missing.

    Raises:
        UnsupportedError: says how to get it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UnsupportedError("pictures need matplotlib: pip install 'tritonq[plot]'") from error


def write(results: Results, folder: Path) -> list[Path]:
    """``report.html`` and a PNG per picture in ``folder``, which is made; the paths that were written.

    Raises:
        UnsupportedError: matplotlib is missing.
    """
    require()
    from .canvas import png
    from .plots import pictures

    folder.mkdir(parents=True, exist_ok=True)
    images, written = {}, []
    for name, figure in pictures(results).items():
        buffer = io.BytesIO()
        png(figure, buffer)
        images[name] = buffer.getvalue()
        written.append(folder / f"{name}.png")
        written[-1].write_bytes(images[name])
    page = folder / "report.html"
    page.write_text(document(results, images), encoding="utf-8")
    return [*written, page]


def document(results: Results, images: dict[str, bytes]) -> str:
    """The HTML page; ``images`` are PNGs by name."""
    parts = ["<!doctype html><html lang='en'><head><meta charset='utf-8'><title>tritonq bench</title>",
             f"<style>{_STYLE}</style></head><body><h1>tritonq bench</h1>",
             *(f"<p class='mark'>{html.escape(text)}</p>" for text in _marks(results)), _about(results)]  # fmt: skip
    for name, image in images.items():
        data = base64.b64encode(image).decode()
        title = html.escape(_TITLES.get(name, name))
        parts.append(f"<h2>{title}</h2><img alt='{title}' src='data:image/png;base64,{data}'>")
    for suite in dict.fromkeys(row.suite for row in results.rows):
        parts.append(f"<h2>Rows of {html.escape(suite)}</h2>{_table([row for row in results.rows if row.suite == suite])}")
    return "\n".join([*parts, "</body></html>\n"])


def _marks(results: Results) -> list[str]:
    timed = {row.source for row in results.rows if row.us is not None and not row.suite.startswith("cpu")}
    marks = ["Times of a CPU: this tries the benchmark and says nothing of a GPU."] if "cpu" in timed else []
    if any(row.source == "model" for row in results.rows):
        marks.append("Rows predicted by a model: nothing of them was measured.")
    return marks + ([f"{len(results.faults)} rows are wrong or break a limit."] if results.faults else [])


def _about(results: Results) -> str:
    facts = {**results.about, **{name: f"{value:.4g}" for name, value in results.roofs.items()}}
    rows = "".join(f"<tr><td class='t'>{html.escape(str(name))}</td><td class='t'>{html.escape(str(value))}</td></tr>"
                   for name, value in facts.items() if value is not None)  # fmt: skip
    return f"<table>{rows}</table>"


_COLUMNS = ("shape", "N x K, M", "contender", "scheme", "us", "p20 - p80", "TB/s", "TFLOP/s", "of copy", "of product", "of floor",
            "times as fast as", "more", "note", "sku", "again")  # fmt: skip


def _table(rows: list[Row]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in _COLUMNS)
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(map(_line, rows))}</table></div>"


def _line(row: Row) -> str:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cells = [
        row.shape or row.op, row.problem, row.name, "" if row.scheme == "none" else row.scheme, number(row.us, ".2f"),
        "" if row.us is None else f"{row.p20:.2f} - {row.p80:.2f}", number(row.tb_per_s, ".2f"), number(row.tflop_per_s, ".1f"),
        number(row.of_copy, ".1%"), number(row.of_product, ".1%"), number(row.of_floor, ".1%"),
        ", ".join(f"{name} {value:.2f}" for name, value in row.speedup.items()),
        ", ".join(f"{name} {value:.4g}" for name, value in row.figures.items()), row.note,
    ]  # fmt: skip
    told = "".join(f"<td class='t'>{html.escape(cell)}</td>" if i in (0, 1, 2, 3, 11, 12, 13) else f"<td>{html.escape(cell)}</td>"
                   for i, cell in enumerate(cells))  # fmt: skip
    fault = f"<span class='fault'>{html.escape(row.fault)}</span> " if row.fault else ""
    last = f"<td class='t'>{fault}<code>{html.escape(row.sku)}</code></td><td class='t'><code>{html.escape(row.command)}</code></td>"
    return f"<tr>{told}{last}</tr>"
