"""What all commands print with: tables, JSON, numbers, progress."""
from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_ENDLESS = 1 << 30  # columns
_NARROW = 16  # columns that a cell of a folding column takes at least, where it has as many


class _Console(Console):
    """Text as it is: names hold brackets and colons, which are no markup and no emoji. ``width`` None: that of the terminal."""

    def __init__(self, width: int | None = None):
        # without a height rich takes a dumb terminal for one of 80 columns, whatever width is given
        super().__init__(markup=False, emoji=False, highlight=False, width=width, height=25)

    def on_broken_pipe(self) -> None:
        """Exits with 1 in releases of rich that call this; here :func:`reader_may_leave` decides."""
        raise  # noqa: PLE0704


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """What is printed after the reader of stdout went away, as with ``| head``, goes nowhere; the command goes on and keeps its status."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_text(text: str) -> None:
    """Print text that no terminal is to fold or colour, whatever its length."""
    with reader_may_leave():
        print(text)


def print_json(value) -> None:
    print_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str = "", style: str = "") -> None:
    """Print a line as it is."""
    with reader_may_leave():
        _Console().print(Text(text, style), soft_wrap=True)


def table(title: str, columns: list[str], rows: list[list]) -> None:
    """A table. A column whose name ends in ``>`` is aligned to the right, one that ends in ``~`` folds where the terminal is narrow.

    What cannot fold is printed whole, beyond the right edge of the terminal if need be; so is everything in a file or pipe.
    """
    result = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    cells, foldable = [[str(cell) for cell in row] for row in rows], 0
    for i, column in enumerate(columns):
        name, folds = column.rstrip(">~"), column.endswith("~")
        result.add_column(name, justify="right" if column.endswith(">") else "left", no_wrap=not folds, overflow="fold")
        if folds:
            foldable += max(0, max(cell_len(text) for text in (name, *(row[i] for row in cells))) - _NARROW)
    for row in cells:
        result.add_row(*row)
    least = _Console(_ENDLESS).measure(result).maximum - foldable
    if title:
        say(title, "bold")
    with reader_may_leave():
        _Console(max(_Console().width, least) if sys.stdout.isatty() else _ENDLESS).print(result)


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
def progress(title: str, *, show: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, as ``advance(done, total, name)``; nothing where ``show`` is False or stderr is no terminal.

    Stdout may go elsewhere; it holds nothing of the bar.
    """
    if not (show and sys.stderr.isatty()):
        yield lambda *_: None
        return
    texts = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.percentage:>3.0f}%", "{task.fields[name]}")]
    columns = (texts[0], BarColumn(), texts[1], TimeRemainingColumn(), texts[2])
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(title, total=None, name="")
        yield lambda done, total, name: bar.update(task, completed=done, total=total, name=name)
