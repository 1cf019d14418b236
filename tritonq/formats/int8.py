"""int8: signed 8-bit integers, codes -128..127, scale = absmax / 127."""
from .integer import signed_format

INT8 = signed_format(bits=8, group="channel")
