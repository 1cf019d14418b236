"""Floor 0. A tensor of one element as the bound of a loop: with numpy 2.4 and later Triton 3.6 cannot make an integer of it."""
from __future__ import annotations

import numpy as np
from triton.runtime import interpreter as stock


def _index(self) -> int:
    return int(np.asarray(self.handle.data).reshape(-1)[0])


def _allow_tensor_as_index(original):
    def patch(tensor, *scope):
        original(tensor, *scope)
        if scope:
            scope[0].set_attr(tensor, "__index__", _index)
        else:
            tensor.__index__ = _index

    patch.mended = True
    return patch


def install() -> None:
    """Read the element itself; once."""
    if not hasattr(stock._patch_lang_tensor, "mended"):
        stock._patch_lang_tensor = _allow_tensor_as_index(stock._patch_lang_tensor)
