"""Other libraries' kernels for the same product. Each is optional; what keeps one from running is told as its reason.

Where a library takes codes and scales, it gets tritonq's own, so that both sides read the same numbers; where it quantizes itself,
``differs`` says so. bitsandbytes' nf4 codes are tritonq's but for ties.
"""
from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..qtensor import QTensor
from .timing import first_line

Product = Callable[[torch.Tensor], torch.Tensor]


class Missing(Exception):
    """Why a peer cannot run here."""


@dataclass(frozen=True)
class Peer:
    """One library: the schemes that it is compared with, ``make(weight [N, K] bfloat16, q)`` -> a call of x, and what is not the same.

    ``distance``: how far its product may be from that of tritonq's decoded weight, as a share of the norm.
    """

    name: str
    schemes: tuple[str, ...]
    make: Callable[[torch.Tensor, QTensor], Product]
    distance: float = 0.02
    differs: str = ""


def load(name: str):
    """A package, without its warnings about absent GPUs, or Missing with the reason."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:  # a broken binary wheel raises anything at all
        raise Missing(f"{name}: {first_line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)


def _grouped(q: QTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes 0 to 15 int32 ``[N, K]``, scales and zero points float32 ``[N, K / group]``: w = scale * (code - zero point)."""
    row = q.relayout("row")
    codes, scale = row.codes().int(), row.scale.float()
    if row.zero_point is None:
        return codes + 8, scale, torch.full_like(scale, 8)
    return codes, scale, row.zero_point.float()


def _bitsandbytes(weight: torch.Tensor, q: QTensor) -> Product:
    bnb = load("bitsandbytes")
    packed, state = bnb.functional.quantize_4bit(weight.contiguous(), blocksize=q.scheme.group_size, quant_type="nf4")
    return lambda x: bnb.matmul_4bit(x, packed.t(), quant_state=state)


def _gemlite(weight: torch.Tensor, q: QTensor) -> Product:
    if not weight.is_cuda:
        raise Missing("gemlite: needs a CUDA device")
    gemlite = load("gemlite")
    if gemlite.core.selected_tag is None and torch.cuda.get_device_capability(weight.device) == (9, 0):
        # It matches its configs by the device's name; an H200 takes those of the H100 rather than tuning for minutes.
        gemlite.GemLiteLinear.load_config(os.path.join(os.path.dirname(gemlite.__file__), "configs", "h100.json"))
    codes, scale, zero = _grouped(q)
    dtype = gemlite.DType.BF16
    layer = gemlite.GemLiteLinear(4, group_size=q.scheme.group_size, in_features=q.shape[1], out_features=q.shape[0],
                                  input_dtype=dtype, output_dtype=dtype)  # fmt: skip
    layer.pack(codes.to(torch.uint8), scale.bfloat16(), 8 if q.zero_point is None else zero.bfloat16(), None)
    return layer


def _tinygemm(weight: torch.Tensor, q: QTensor) -> Product:
    """w = (code - 8) * scale + zero, both bfloat16."""
    codes, scale, zero = _grouped(q)
    group, aten = q.scheme.group_size, torch.ops.aten
    pairs = torch.stack((scale, scale * (8 - zero)), -1).transpose(0, 1).contiguous().bfloat16()
    if weight.is_cuda:
        packed = aten._convert_weight_to_int4pack(((codes[:, ::2] << 4) | codes[:, 1::2]).to(torch.uint8).contiguous(), 8)
        return lambda x: aten._weight_int4pack_mm(x, packed, group, pairs)
    packed = aten._convert_weight_to_int4pack_for_cpu(codes.contiguous(), 1)
    return lambda x: aten._weight_int4pack_mm_for_cpu(x, packed, group, pairs)


def _torchao(config: Callable) -> Callable[[torch.Tensor, QTensor], Product]:
    def make(weight: torch.Tensor, q: QTensor) -> Product:
        torchao = load("torchao.quantization")
        linear = torch.nn.Linear(q.shape[1], q.shape[0], bias=False, device="meta", dtype=weight.dtype)
        linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        torchao.quantize_(linear, config(torchao, q))
        return linear

    return make


def _torchao_int4(weight: torch.Tensor, q: QTensor) -> Product:
    if not weight.is_cuda:
        raise Missing("torchao int4: needs a CUDA device")
    form = "tile_packed_to_4d"
    return _torchao(lambda ao, q: ao.Int4WeightOnlyConfig(group_size=q.scheme.group_size, int4_packing_format=form))(weight, q)


PEERS = (
    Peer("bitsandbytes", ("nf4.g64",), _bitsandbytes, differs="absmax in float32"),
    Peer("gemlite", ("int4.g128", "uint4.g128"), _gemlite),
    Peer("torch tinygemm", ("int4.g128", "uint4.g128"), _tinygemm, differs="zero points as bfloat16 values"),
    Peer("torchao", ("uint4.g128",), _torchao_int4, distance=0.2, differs="its own codes, zero points as bfloat16 values"),
    Peer("torchao", ("int8.channel", "int8"), _torchao(lambda ao, q: ao.Int8WeightOnlyConfig()), distance=0.03, differs="its own codes"),
)
