"""The torch reference on the CPU: no kernel runs here."""
from tests.support.process import require_compiled

require_compiled("tests/reference")
