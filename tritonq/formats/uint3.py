"""uint3: unsigned 3-bit integers with an integer zero point, codes 0..7, scale = (max - min) / 7."""
from .integer import affine_format

UINT3 = affine_format(bits=3, group="g128")
