"""A 4-bit checkpoint of bitsandbytes in miniature, without bitsandbytes: what Transformers writes, tensor by tensor."""
from __future__ import annotations

import json

import torch

import tritonq
from tritonq.formats.dynamic_map import DYNAMIC_MAP

STATE = "a.weight.quant_state.bitsandbytes__nf4"


def state(**changes) -> torch.Tensor:
    """The JSON text; a change to None leaves the field out."""
    fields = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 128]} | changes
    return text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def text(value: str | bytes) -> torch.Tensor:
    return torch.tensor(list(value.encode() if isinstance(value, str) else value), dtype=torch.uint8)


NESTED = {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}


def weight(nested: bool = False) -> dict[str, torch.Tensor]:
    """``a.weight``, ``[4, 128]`` of bfloat16 in blocks of 64: the code of element i is i % 16."""
    codes = torch.arange(512, dtype=torch.uint8) % 16
    named = {"a.weight": ((codes[::2] << 4) | codes[1::2]).view(-1, 1), "a.weight.quant_map": tritonq.Scheme.parse("nf4").format.levels,
             "a.weight.absmax": torch.arange(1.0, 9), STATE: state()}  # fmt: skip
    if nested:
        named |= {"a.weight.absmax": torch.arange(200, 208, dtype=torch.uint8), "a.weight.nested_absmax": torch.tensor([3.0]),
                  "a.weight.nested_quant_map": torch.tensor(DYNAMIC_MAP), STATE: state(**NESTED)}  # fmt: skip
    return named


def decoded(nested: bool = False) -> torch.Tensor:
    """What ``weight`` holds."""
    scale = torch.arange(1.0, 9)
    if nested:
        scale = torch.tensor(DYNAMIC_MAP)[200:208] * 3 + 0.5
    levels = tritonq.Scheme.parse("nf4").format.levels
    return (levels.repeat(4).repeat(8, 1) * scale[:, None]).view(4, 128).bfloat16()


def stored(name: str, q: tritonq.QTensor) -> dict[str, torch.Tensor]:
    """What bitsandbytes would have saved for weight ``name`` of scheme ``nf4.g<size>``, with ``.dq`` or without."""
    packed, nested = q.packed, "dq" in q.scheme.options
    fields = {"blocksize": q.scheme.group_size, "dtype": str(q.dtype).removeprefix("torch."), "shape": list(q.shape)}
    named = {"": ((packed >> 4) | (packed << 4)).reshape(-1, 1), ".absmax": q.stored_scale.reshape(-1),
             ".quant_map": q.scheme.format.levels.clone()}  # fmt: skip
    if nested:
        fields |= NESTED | {"nested_offset": q.scale_offset.item()}
        named |= {".nested_absmax": q.second_scale, ".nested_quant_map": torch.tensor(DYNAMIC_MAP)}
    return {name + suffix: tensor for suffix, tensor in (named | {STATE.removeprefix("a.weight"): state(**fields)}).items()}
