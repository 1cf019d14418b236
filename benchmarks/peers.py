"""Other libraries' kernels for the same product: each maker takes a bfloat16 weight [N, K] and gives a call of x, or raises Missing.

Every peer quantizes with its own code, in the scheme that is named beside it; ``differs`` says what is not the same as ours.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

Product = Callable[[torch.Tensor], torch.Tensor]


class Missing(Exception):
    """Why a peer cannot run here."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """One library: what it is compared with, and how its weights differ from that scheme's."""

    name: str
    scheme: str
    make: Callable[[torch.Tensor], Product]
    differs: str = ""


def _import(name: str):
    import importlib

    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken binary wheel raises anything at all
        raise Missing(f"{name}: {type(error).__name__}: {error}".splitlines()[0]) from error


def _bitsandbytes(weight: torch.Tensor) -> Product:
    bnb = _import("bitsandbytes")
    packed, state = bnb.functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
    return lambda x: bnb.matmul_4bit(x, packed.t(), quant_state=state)


def _gemlite(weight: torch.Tensor) -> Product:
    if not weight.is_cuda:
        raise Missing("gemlite: needs a CUDA device")
    gemlite = _import("gemlite")
    n, k = weight.shape
    group = 128
    blocks = weight.float().view(n, k // group, group)
    scale = (blocks.abs().amax(-1, keepdim=True) / 7).clamp_min(1e-8)
    codes = ((blocks / scale).round().clamp(-8, 7) + 8).to(torch.uint8).view(n, k)
    dtype = gemlite.DType.BF16
    layer = gemlite.GemLiteLinear(4, group_size=group, in_features=k, out_features=n, input_dtype=dtype, output_dtype=dtype)
    layer.pack(codes, scale.to(weight.dtype).view(n, -1), 8, None)
    return layer


def _tinygemm(weight: torch.Tensor) -> Product:
    if not weight.is_cuda:
        raise Missing("torch's tinygemm: needs a CUDA device")
    n, k = weight.shape
    group = 128
    blocks = weight.float().view(n, k // group, group)
    scale = (blocks.abs().amax(-1) / 7).clamp_min(1e-8)
    codes = ((blocks / scale[..., None]).round().clamp(-8, 7) + 8).to(torch.int32).view(n, k)
    pairs = ((codes[:, ::2] << 4) | codes[:, 1::2]).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), 8)
    scale_and_zero = torch.stack((scale, torch.zeros_like(scale)), -1).transpose(0, 1).contiguous().bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, group, scale_and_zero)


PEERS = (
    Peer("bitsandbytes", "nf4.g64", _bitsandbytes),
    Peer("gemlite", "int4.g128", _gemlite),
    Peer("torch tinygemm", "int4.g128", _tinygemm, differs="scales and zeros in bfloat16 pairs"),
)
