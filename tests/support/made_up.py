"""The made-up format of CONTRIBUTING.md, registered from a file outside the package and taken out again."""
from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator

from tritonq.formats import FORMATS, Format

FILE = pathlib.Path(__file__).parent.parent / "data" / "made_up_format.py"
SCHEMES = ("sq4", "sq4.g96", "sq4.channel", "sq4.b3x5", "sq4.tensor", "sq4.g32.dq", "sq4.g32.se8m0")


@contextlib.contextmanager
def registered() -> Iterator[Format]:
    """The format while the block runs; the registry is what it was afterwards."""
    before = dict(FORMATS)
    spec = importlib.util.spec_from_file_location("made_up_format", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["made_up_format"] = module
    try:
        spec.loader.exec_module(module)
        yield module.SQ4
    finally:
        sys.modules.pop("made_up_format", None)
        FORMATS.clear()
        FORMATS.update(before)
