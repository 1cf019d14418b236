"""int2: signed 2-bit integers, codes -2..1, scale = absmax / 1."""
from .integer import signed_format

INT2 = signed_format(bits=2, group="g128")
