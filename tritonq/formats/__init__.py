"""Number formats, scale formats and packings. A module here that calls :func:`register` is a format; nothing else needs editing."""
from importlib import import_module
from pkgutil import iter_modules

from .core import FORMATS, Format, get_format, register
from .scales import SCALE_FORMATS, ScaleFormat, default_scale_format, get_scale_format

_MACHINERY = {"codebook", "core", "dynamic_map", "integer", "minifloat", "numerics", "packing", "scales"}
for _module in iter_modules(__path__):
    if _module.name not in _MACHINERY:
        import_module(f"{__name__}.{_module.name}")

__all__ = ["FORMATS", "SCALE_FORMATS", "Format", "ScaleFormat", "default_scale_format", "get_format", "get_scale_format", "register"]
