"""Floor 0. Byte counts as people write them: ``"24GiB"`` <-> 25769803776."""
from __future__ import annotations

import re
from fractions import Fraction

from .errors import InvalidProblemError

_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("b", 1000), ("ib", 1024))
}
_PATTERN = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(size: int | str) -> int:
    """Bytes of ``size``: an int, or text such as ``"24GiB"`` (1024-based; so is ``"24G"``), ``"24GB"`` (1000-based), ``"512"``.

    Raises:
        InvalidProblemError: neither, below 0, or more than 30 digits.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = _PATTERN.fullmatch(size) if isinstance(size, str) else None
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise InvalidProblemError(f"cannot read {size!r:.60} as a number of bytes; write 24GiB, 24GB, 512MiB or a whole number >= 0, in at "
                                  "most 30 digits")  # fmt: skip
    return int(Fraction(match[1]) * unit)


def format_bytes(size: int) -> str:
    """``size`` in the largest 1024-based unit that gives at least 1: ``format_bytes(3 << 29)`` is ``"1.50 GiB"``."""
    if size >> 100:  # more than a float need hold
        return f"at least 2^{size.bit_length() - 1} B"
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, 4)
    return f"{size / 1024**power:.2f} {' KMGT'[power]}iB"
