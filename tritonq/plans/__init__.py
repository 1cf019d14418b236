"""Floor 4. Plans: what is computed, whether it can be, and with which kernel.

Here are the seed plans: one plan, one descriptor and one argument record per operation. Their modules are imported at the first use of a
name, because decorating their kernels takes a tenth of what importing tritonq takes.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .affine import (
        DequantizePerChannelBackwardPlan,
        DequantizePerChannelPlan,
        DequantizePerGroupBackwardPlan,
        DequantizePerGroupPlan,
        DequantizePerTensorBackwardPlan,
        DequantizePerTensorPlan,
        DequantizePerTokenBackwardPlan,
        DequantizePerTokenPlan,
        FakeQuantizeBackwardPlan,
        FakeQuantizePlan,
        QuantizePerChannelBackwardPlan,
        QuantizePerChannelPlan,
        QuantizePerGroupBackwardPlan,
        QuantizePerGroupPlan,
        QuantizePerTensorBackwardPlan,
        QuantizePerTensorPlan,
        QuantizePerTokenBackwardPlan,
        QuantizePerTokenPlan,
    )
    from .affine_args import (
        DequantizePerChannelArgs,
        DequantizePerChannelBackwardArgs,
        DequantizePerGroupArgs,
        DequantizePerGroupBackwardArgs,
        DequantizePerTensorArgs,
        DequantizePerTensorBackwardArgs,
        DequantizePerTokenArgs,
        DequantizePerTokenBackwardArgs,
        FakeQuantizeArgs,
        FakeQuantizeBackwardArgs,
        QuantizePerChannelArgs,
        QuantizePerChannelBackwardArgs,
        QuantizePerGroupArgs,
        QuantizePerGroupBackwardArgs,
        QuantizePerTensorArgs,
        QuantizePerTensorBackwardArgs,
        QuantizePerTokenArgs,
        QuantizePerTokenBackwardArgs,
    )
    from .affine_problem import (
        DequantizePerChannelBackwardDescriptor,
        DequantizePerChannelDescriptor,
        DequantizePerGroupBackwardDescriptor,
        DequantizePerGroupDescriptor,
        DequantizePerTensorBackwardDescriptor,
        DequantizePerTensorDescriptor,
        DequantizePerTokenBackwardDescriptor,
        DequantizePerTokenDescriptor,
        FakeQuantizeBackwardDescriptor,
        FakeQuantizeDescriptor,
        QuantizePerChannelBackwardDescriptor,
        QuantizePerChannelDescriptor,
        QuantizePerGroupBackwardDescriptor,
        QuantizePerGroupDescriptor,
        QuantizePerTensorBackwardDescriptor,
        QuantizePerTensorDescriptor,
        QuantizePerTokenBackwardDescriptor,
        QuantizePerTokenDescriptor,
    )
    from .dynamic_range import (
        DynamicRangeMode,
        DynamicRangeQuantizeArgs,
        DynamicRangeQuantizeDescriptor,
        DynamicRangeQuantizePlan,
        DynamicRangeScope,
    )
    from .linear import (
        QuantizedLinearArgs,
        QuantizedLinearDescriptor,
        QuantizedLinearPlan,
        SmoothQuantLinearArgs,
        SmoothQuantLinearDescriptor,
        SmoothQuantLinearPlan,
    )
    from .nf4 import (
        Nf4DequantizeArgs,
        Nf4DequantizeDescriptor,
        Nf4DequantizePlan,
        Nf4MatmulArgs,
        Nf4MatmulDescriptor,
        Nf4MatmulPlan,
    )
    from .seed_base import default_q_range

__all__ = [
    "DequantizePerChannelArgs",
    "DequantizePerChannelBackwardArgs",
    "DequantizePerChannelBackwardDescriptor",
    "DequantizePerChannelBackwardPlan",
    "DequantizePerChannelDescriptor",
    "DequantizePerChannelPlan",
    "DequantizePerGroupArgs",
    "DequantizePerGroupBackwardArgs",
    "DequantizePerGroupBackwardDescriptor",
    "DequantizePerGroupBackwardPlan",
    "DequantizePerGroupDescriptor",
    "DequantizePerGroupPlan",
    "DequantizePerTensorArgs",
    "DequantizePerTensorBackwardArgs",
    "DequantizePerTensorBackwardDescriptor",
    "DequantizePerTensorBackwardPlan",
    "DequantizePerTensorDescriptor",
    "DequantizePerTensorPlan",
    "DequantizePerTokenArgs",
    "DequantizePerTokenBackwardArgs",
    "DequantizePerTokenBackwardDescriptor",
    "DequantizePerTokenBackwardPlan",
    "DequantizePerTokenDescriptor",
    "DequantizePerTokenPlan",
    "DynamicRangeMode",
    "DynamicRangeQuantizeArgs",
    "DynamicRangeQuantizeDescriptor",
    "DynamicRangeQuantizePlan",
    "DynamicRangeScope",
    "FakeQuantizeArgs",
    "FakeQuantizeBackwardArgs",
    "FakeQuantizeBackwardDescriptor",
    "FakeQuantizeBackwardPlan",
    "FakeQuantizeDescriptor",
    "FakeQuantizePlan",
    "Nf4DequantizeArgs",
    "Nf4DequantizeDescriptor",
    "Nf4DequantizePlan",
    "Nf4MatmulArgs",
    "Nf4MatmulDescriptor",
    "Nf4MatmulPlan",
    "QuantizePerChannelArgs",
    "QuantizePerChannelBackwardArgs",
    "QuantizePerChannelBackwardDescriptor",
    "QuantizePerChannelBackwardPlan",
    "QuantizePerChannelDescriptor",
    "QuantizePerChannelPlan",
    "QuantizePerGroupArgs",
    "QuantizePerGroupBackwardArgs",
    "QuantizePerGroupBackwardDescriptor",
    "QuantizePerGroupBackwardPlan",
    "QuantizePerGroupDescriptor",
    "QuantizePerGroupPlan",
    "QuantizePerTensorArgs",
    "QuantizePerTensorBackwardArgs",
    "QuantizePerTensorBackwardDescriptor",
    "QuantizePerTensorBackwardPlan",
    "QuantizePerTensorDescriptor",
    "QuantizePerTensorPlan",
    "QuantizePerTokenArgs",
    "QuantizePerTokenBackwardArgs",
    "QuantizePerTokenBackwardDescriptor",
    "QuantizePerTokenBackwardPlan",
    "QuantizePerTokenDescriptor",
    "QuantizePerTokenPlan",
    "QuantizedLinearArgs",
    "QuantizedLinearDescriptor",
    "QuantizedLinearPlan",
    "SmoothQuantLinearArgs",
    "SmoothQuantLinearDescriptor",
    "SmoothQuantLinearPlan",
    "default_q_range",
]


def _home(name: str) -> str:
    """The module that holds ``name``."""
    for part, module in (("DynamicRange", "dynamic_range"), ("Linear", "linear"), ("Nf4", "nf4"), ("default_q_range", "seed_base")):
        if part in name:
            return module
    return "affine" if name.endswith("Plan") else "affine_args" if name.endswith("Args") else "affine_problem"


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_home(name)}", __name__), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
