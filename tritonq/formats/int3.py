"""int3: signed 3-bit integers, codes -4..3, scale = absmax / 3."""
from .integer import signed_format

INT3 = signed_format(bits=3, group="g128")
