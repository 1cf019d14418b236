"""uint2: unsigned 2-bit integers with an integer zero point, codes 0..3, scale = (max - min) / 3."""
from .integer import affine_format

UINT2 = affine_format(bits=2, group="g128")
