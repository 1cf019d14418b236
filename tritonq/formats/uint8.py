"""uint8: unsigned 8-bit integers with an integer zero point, codes 0..255, scale = (max - min) / 255."""
from .integer import affine_format

UINT8 = affine_format(bits=8, group="channel")
