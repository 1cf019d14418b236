"""Floor 7. Experts in Transformers checkpoints: one 3-D weight of a model is many weights of a file.

Transformers joins ``experts.*.gate_proj.weight`` and ``experts.*.up_proj.weight`` to ``experts.gate_up_proj`` while it loads, and takes
them apart while it saves, by a model's weight converters. Codes and scales of a row lie in that row, so the same converters do for them.
"""
from __future__ import annotations

import torch
from transformers.core_model_loading import WeightConverter, WeightTransform, revert_weight_conversion

from ..errors import UnsupportedError
from ..nn.experts import WEIGHTS, QuantExperts
from ..nn.weight import SUFFIXES
from ..qstack import QStack
from ..qtensor import expected_flat
from ..scheme import Scheme


def stored_as(model, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that parameter ``name`` is in a file; itself where the model has no converter for it."""
    parts = revert_weight_conversion(model, {name: torch.empty(shape, device="meta")})
    return {part: tuple(tensor.shape) for part, tensor in parts.items()}


def common_scheme(name: str, schemes: dict[str, str | None]) -> str | None:
    """The scheme that all weights of a file have which make up parameter ``name``; None where all were kept.

    Raises:
        UnsupportedError: they differ; one product reads all experts.
    """
    if len(set(schemes.values())) > 1:
        first = next(iter(schemes))
        other = next(part for part in schemes if schemes[part] != schemes[first])
        pair = f"{first} ({schemes[first] or 'kept'}) and {other} ({schemes[other] or 'kept'})"
        raise UnsupportedError(f"{name}: holds {pair}; quantize all of its experts with one scheme, or --exclude all")
    return next(iter(schemes.values()))


def with_companions(conversions: list[WeightTransform], model) -> list[WeightTransform]:
    """``conversions``, and for every converter of an experts' weight copies for its scales and zero points."""
    needed = {f"{path}.{name}": [SUFFIXES[field] for field in expected_flat(q.scheme, q.shape[1:], q.dtype, "row") if field != "packed"]
              for path, module in model.named_modules() if isinstance(module, QuantExperts)
              for name, q in module.quantized.items()}  # fmt: skip
    known = {tuple(one._original_target_patterns) for one in conversions if isinstance(one, WeightConverter)}
    result = []
    for one in conversions:
        result.append(one)
        if not isinstance(one, WeightConverter):
            continue
        sources, targets = one._original_source_patterns, one._original_target_patterns
        suffixes = {suffix for name, each in needed.items() for suffix in each if any(name.endswith(target) for target in targets)}
        for suffix in sorted(suffixes):
            renamed = [target + suffix for target in targets]
            if tuple(renamed) not in known:
                result.append(one.copy([source + suffix for source in sources], renamed, operations=list(one.operations)))
    return result


def empty_experts(module: torch.nn.Module, schemes: dict[str, str], dtype: torch.dtype) -> QuantExperts:
    """Experts on the meta device in place of ``module``, for weights of those schemes."""
    stacks = []
    for name in WEIGHTS:
        try:
            stacks.append(QStack.on_meta(Scheme.parse(schemes[name]), tuple(getattr(module, name).shape), dtype))
        except UnsupportedError as error:
            raise UnsupportedError(f"{name}: {error}") from error
    return QuantExperts.from_experts(module, *stacks)
