"""The command line, called in process: its exit status, stdout and stderr."""
from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.support.process import require_compiled

require_compiled("tests/cli")


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def cli(capsys):
    """``cli("inspect", path)`` -> Outcome. A command that fails must say so in one line, without a traceback."""
    from tritonq.cli import main

    def call(*args) -> Outcome:
        capsys.readouterr()
        status = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        if status == 2:
            assert err.startswith("tritonq: ") and err.count("\n") == 1 and err.endswith("\n") and len(err) < 700, err
            assert "Traceback" not in err and out == ""
        else:
            assert err == ""
        return Outcome(status, out, err)

    return call
