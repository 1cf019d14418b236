"""A few of the random problems of tests/support/fuzz.py; ``make fuzz`` goes on for as long as one likes."""
import pytest

from tests.support import fuzz
from tritonq import QuantizeDesc
from tritonq.plans.select import Plan


@pytest.mark.parametrize("number", range(8, 16))
def test_cases(number):
    assert fuzz.run(number)


def test_a_fault_is_reported_with_its_number(monkeypatch, capsys):
    run = Plan.run

    def wrong(self, x, *rest, **options):
        return run(self, -x if isinstance(self.desc, QuantizeDesc) else x, *rest, **options)

    monkeypatch.setattr(Plan, "run", wrong)
    assert fuzz.main(["--first", "12", "--seconds", "0"]) == 1
    said = capsys.readouterr()
    assert "1 failed: 12" in said.out and "case 12: int4.tensor 8x2048 on sm_80" in said.err
