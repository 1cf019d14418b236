"""int4: signed 4-bit integers, codes -8..7, scale = absmax / 7."""
from .integer import signed_format

INT4 = signed_format(bits=4, group="g128")
