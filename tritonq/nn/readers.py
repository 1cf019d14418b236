"""Floor 6. Modules that do more with the weight of a Linear than call it: they cannot do with packed codes."""
from __future__ import annotations

import inspect
import re
from functools import cache

import torch

# Of what a weight is asked for, this is the same of packed codes.
_READS = re.compile(r"\bself\.(\w+)\.weight\b(?!\.(?:device|is_meta|requires_grad)\b)(?!\s*=[^=])")
_MAKES = re.compile("__init__|reset_parameters|_?init_weights|tie_weights")  # what runs before a model computes


def why_read(model: torch.nn.Module, path: str, name: str) -> str | None:
    """Why the Linear at ``path``, whose weight is called ``name``, must stay one; None where nothing says so.

    Its module's own source says ``self.wo.weight`` outside of what makes a model: T5 casts to that weight's dtype, Mamba multiplies by it
    itself, torch's fast path of TransformerEncoderLayer hands it on. (Seen whether or not that code runs, and under no other name than
    this.) Or the model, one of Transformers, names it in ``_keep_in_fp32_modules``.
    """
    holder, _, child = path.rpartition(".")
    kind = type(model.get_submodule(holder))
    if child in _read_by(kind):
        return f"{kind.__name__} reads its weight itself"
    if any(re.search(rf"(^|\.){kept}(\.|$)", name) for kept in getattr(model, "_keep_in_fp32_modules", None) or ()):
        return f"{type(model).__name__} keeps it in float32"
    return None


@cache
def _read_by(kind: type) -> frozenset[str]:
    """Names of the children whose weights the methods of a class of modules read, inherited methods among them."""
    own = [value for base in kind.__mro__ if base is not torch.nn.Module and issubclass(base, torch.nn.Module)
           for name, value in vars(base).items() if not _MAKES.fullmatch(name)]  # fmt: skip
    methods = [getattr(value, "fget", None) or getattr(value, "func", value) for value in own]  # of properties and cached ones
    return frozenset(child for method in methods if inspect.isfunction(method) for child in _READS.findall(_source(method)))


def _source(method) -> str:
    try:
        return inspect.getsource(inspect.unwrap(method))
    except (OSError, TypeError):  # typed into an interpreter, or made by a program
        return ""
