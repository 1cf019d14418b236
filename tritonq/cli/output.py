"""What all commands print with: tables, JSON, numbers, progress."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def console() -> Console:
    """The terminal as wide as it is; a file or pipe as wide as its lines."""
    return Console(highlight=False, soft_wrap=False) if sys.stdout.isatty() else Console(highlight=False, width=200)


def print_json(value) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str = "") -> None:
    """Print a line as it is: brackets in names are no markup."""
    console().print(text, markup=False, soft_wrap=True)


def table(title: str, columns: list[str], rows: list[list]) -> None:
    """A table. A column whose name ends in ``>`` is aligned to the right, one that ends in ``~`` folds where the terminal is narrow."""
    look = {"title_justify": "left", "title_style": "bold", "header_style": "bold", "box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
    result = Table(title=title or None, **look)
    for column in columns:
        right, folds = column.endswith(">"), column.endswith("~")
        result.add_column(column.rstrip(">~"), justify="right" if right else "left", no_wrap=not folds, overflow="fold")
    for row in rows:
        result.add_row(*(str(cell).replace("[", "\\[") for cell in row))
    console().print(result)


def dimensions(shape: list[int]) -> str:
    """``[64, 128]`` -> ``"64x128"``; "-" for a single number."""
    return "x".join(map(str, shape)) or "-"


def decibel(row: dict | None) -> str:
    """SQNR of a quality row: "exact" where nothing was lost."""
    if not row:
        return "-"
    return "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.2f} dB"


def cosine(row: dict | None) -> str:
    return f"{row['cosine']:.5f}" if row else "-"


def quality_table(title: str, rows: list[dict]) -> None:
    """A line per quantized weight: how far its decoded values are from the original."""
    cells = [[r["name"], r["scheme"], decibel(r["quality"]), cosine(r["quality"]), f"{r['quality']['max_error']:.3g}"] for r in rows]
    table(title, ["weight~", "scheme", "SQNR>", "cosine>", "max error>"], cells)


@contextmanager
def progress(title: str, *, show: bool, with_pipes: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, as ``advance(done, total, name)``; nothing where ``show`` is False or the output is no terminal.

    ``with_pipes``: also where stdout goes elsewhere, which then holds nothing of the bar.
    """
    piped = not sys.stdout.isatty()
    if not (show and sys.stderr.isatty() and (with_pipes or not piped)):
        yield lambda *_: None
        return
    texts = [TextColumn(text) for text in ("{task.description}", "{task.percentage:>3.0f}%", "{task.fields[name]}")]
    columns = (texts[0], BarColumn(), texts[1], TimeRemainingColumn(), texts[2])
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=not piped) as bar:
        task = bar.add_task(title, total=None, name="")
        yield lambda done, total, name: bar.update(task, completed=done, total=total, name=name.replace("[", "\\["))
