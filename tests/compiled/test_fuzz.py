"""A few of the random problems of tests/support/fuzz.py; ``make fuzz`` goes on for as long as one likes."""
import pytest

import tritonq
from tests.support import fuzz


@pytest.mark.parametrize("number", range(8, 16))
def test_cases(number):
    assert fuzz.run(number)


def test_a_fault_is_reported_with_its_number(monkeypatch, capsys):
    quantize = tritonq.quantize
    monkeypatch.setattr(tritonq, "quantize", lambda x, *args, **kwargs: quantize(-x, *args, **kwargs))
    assert fuzz.main(["--first", "9", "--seconds", "0"]) == 1
    said = capsys.readouterr()
    assert "1 failed: 9" in said.out and "case 9: int3.g1 16x127 on sm_80" in said.err
