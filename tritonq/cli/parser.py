"""Argument parsing with errors of one line."""
from __future__ import annotations

import argparse
from decimal import Decimal, InvalidOperation

_MOST = 10**18  # of what is counted: products of a few such numbers are still numbers that print


class UsageError(Exception):
    """Arguments that make no sense; the text is the line that the user sees."""


class Parser(argparse.ArgumentParser):
    """argparse that raises :class:`UsageError` instead of printing usage and exiting."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str):
        raise UsageError(f"{message} (see {self.prog} --help)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables, no progress bar")


def decibels(text: str) -> float:
    """``"20dB"``, ``"20 db"`` or ``"20"`` -> 20.0."""
    number = text.strip()
    if number.lower().endswith("db"):
        number = number[:-2].strip()
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of decibels; write 20dB or 20")
    return value


def count(text: str) -> int:
    """A whole number from 0 to 10^18, such as ``7000000000``, ``7_000_000_000``, ``7e9`` or ``7B`` (K, M, B, T: thousands)."""
    number, factor = text.strip().replace("_", ""), 1
    if number[-1:].upper() in ("K", "M", "B", "T"):
        factor = 1000 ** ("KMBT".index(number[-1].upper()) + 1)
        number = number[:-1]
    try:
        value = Decimal(number)
        if value == 0 or value.is_finite() and 0 < value <= _MOST and 1 <= value * factor == int(value * factor) <= _MOST:
            return int(value * factor)
    except InvalidOperation:
        pass
    raise argparse.ArgumentTypeError(f"{text!r:.60} is no count; write 7000000000, 7e9 or 7B, at most 1e18")
