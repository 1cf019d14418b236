"""Floor 5. A row of :func:`examine` as the cells of a table; docs/kernels.md says what the columns mean."""
from __future__ import annotations

from .examine import Row

# A name that ends in ">" is that of a column of numbers.
COLUMNS = (
    "kernel", "scheme", "dtype", "M>", "N>", "K>", "arch", "tile", "registers>", "spills>", "shared>", "programs>", "matrix",
    "weight loads", "waits>", "per weight>", "budget>", "rules",
)  # fmt: skip


def cells(row: Row | dict) -> list[str]:
    """Text for each column; "-" where a kernel has no such figure."""
    has = row if isinstance(row, dict) else row.summary()
    broken = ", ".join(violation["rule"] for violation in has["violations"])
    values = [has["kernel"], has["scheme"], has["dtype"], has["m"], has["n"], has["k"], has["arch"], has["tile"], has["registers"],
              has["spills"], has["shared"], has["programs"], " ".join(has["matrix"]), " ".join(map(str, has["weight_loads"])),
              has["waits"], has["per_weight"], has["budget"]]  # fmt: skip
    return ["-" if value is None or value == "" else str(value) for value in values] + [f"breaks {broken}" if broken else "ok"]
