"""uint4: unsigned 4-bit integers with an integer zero point, codes 0..15, scale = (max - min) / 15."""
from .integer import affine_format

UINT4 = affine_format(bits=4, group="g128")
