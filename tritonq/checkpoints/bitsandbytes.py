"""4-bit weights of bitsandbytes (NF4 and FP4, scales plain or quantized themselves), as Transformers saves them.

``X.weight`` holds the codes of the flattened weight, the even element in the HIGH nibble, as bytes of any dtype. ``X.weight.absmax`` is the
scale of each block of the flattened weight: float32, or uint8 codes of ``X.weight.nested_quant_map`` times ``X.weight.nested_absmax`` of
each 256 blocks, plus an offset. ``X.weight.quant_state.bitsandbytes__nf4`` (or ``fp4``) is a JSON text as bytes with everything else.
Source: bitsandbytes ``functional.QuantState.as_dict``. Weights decode to the bits of ``functional.dequantize_4bit``.
"""
from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass

import torch

from ..dtypes import NAMED_DTYPES, dtype_name
from ..errors import CheckpointError, shorten
from ..formats import fp4_bnb, nf4
from ..formats.dynamic_map import DYNAMIC_MAP
from ..qtensor import QTensor
from ..scheme import DQ_BLOCK, Scheme
from .family import Family, Record, Target, checked_shape
from .source import Source
from .tensorfile import load_json
from .writer import Stored

_KINDS = {"nf4": ("nf4", nf4.LEVELS), "fp4": ("fp4_bnb", fp4_bnb.LEVELS)}  # their name -> (our format, its levels)
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # functional.quantize_4bit
_DTYPES = ("float16", "bfloat16", "float32")
_STATE = ".quant_state.bitsandbytes__"
_FIELDS = {"quant_type", "blocksize", "dtype", "shape"}
_NESTED_FIELDS = {"nested_blocksize", "nested_dtype", "nested_offset"}
_LARGEST_STATE = 1 << 16
# Blocks that run across rows are held as groups of the largest size that divides block and row; below this, scales outweigh codes.
_SMALLEST_GROUP = 16


class BitsAndBytes(Family, Target):
    """The family of this file."""

    name = "bitsandbytes"

    def read_records(self, source: Source) -> dict[str, Record] | None:
        states = {name.partition(_STATE)[0]: name for name in source.owner if _STATE in name}
        orphan = next((name for name in source.owner if name.endswith(".absmax") and name.rpartition(".")[0] not in states), None)
        if orphan is not None and (states or source.quant_method == self.name):
            raise CheckpointError(f"{source.path}: tensor {orphan!r} needs '{orphan.rpartition('.')[0]}{_STATE}nf4' (or fp4) beside it")
        if states:
            return {name: _record(source, name, stored) for name, stored in states.items()}
        if source.quant_method == self.name:
            rule = "only its 4-bit weights are read, as Transformers saves them; start from the original weights"
            raise CheckpointError(f"{source.path}: config.json says quant_method {self.name!r}, but no tensor is a '{_STATE}nf4': {rule}")
        return None

    def stored_names(self, name: str) -> list[str]:
        parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        return [name, *(f"{name}.{part}" for part in parts), *(f"{name}{_STATE}{kind}" for kind in _KINDS)]

    def assemble(self, name: str, record: Record, tensors: dict[str, torch.Tensor]) -> QTensor:
        kind = next(kind for kind in _KINDS if f"{name}{_STATE}{kind}" in tensors)
        state = _State.parse(tensors[f"{name}{_STATE}{kind}"], kind, "its state")
        scheme, (n, k) = Scheme.parse(record.scheme), record.matrix_shape
        packed = tensors[name].reshape(-1).view(torch.uint8).view(n, k // 2)
        parts = {"packed": (packed >> 4) | (packed << 4)}
        scale = tensors[f"{name}.absmax"].reshape(-1)
        if state.offset is not None:
            outer = tensors[f"{name}.nested_absmax"].reshape(-1)
            offset = torch.tensor(state.offset, dtype=torch.float32, device=scale.device)
            if "dq" in scheme.options:
                parts |= {"second_scale": outer, "scale_offset": offset}
            else:
                inner = tensors[f"{name}.nested_quant_map"].reshape(-1)[scale.long()]
                scale = inner * outer.repeat_interleave(state.outer_block)[: inner.numel()] + offset
        if scheme.group_size != state.block:
            first = torch.arange(n * k // scheme.group_size, device=scale.device) * scheme.group_size
            scale = scale[first // state.block]
        return QTensor.from_tensors(scheme, (n, k), record.dtype, parts | {"scale": scale.view(scheme.scale_shape(n, k))})

    def stored(self, name: str, record: Record, *, act_order: bool) -> Stored:
        scheme, (n, k) = Scheme.parse(record.scheme), record.matrix_shape
        kind = _kind_of(scheme)
        if kind is None or act_order or n * k == 0 or k % scheme.group_size:
            rule = f"nf4 and fp4_bnb in groups of {', '.join(map(str, _BLOCK_SIZES))} that divide a row, with float32 scales or .dq"
            what = f"{record.scheme}{' in act-order' * act_order} of shape {list(record.shape)}"
            raise CheckpointError(f"bitsandbytes stores {rule}, not {what}; quantize the original weights to nf4.g64")
        if dtype_name(record.dtype) not in _DTYPES:
            raise CheckpointError(f"bitsandbytes decodes to {', '.join(_DTYPES)}, not {record.dtype}")
        blocks = n * k // scheme.group_size
        sizes = {"": ("U8", (n * k // 2, 1)), ".quant_map": ("F32", (16,)), f"{_STATE}{kind}": ("U8", (_LARGEST_STATE,))}
        if "dq" in scheme.options:
            sizes |= {".absmax": ("U8", (blocks,)), ".nested_absmax": ("F32", (-(-blocks // DQ_BLOCK),)),
                      ".nested_quant_map": ("F32", (256,))}  # fmt: skip
        else:
            sizes |= {".absmax": ("F32", (blocks,))}
        return {name + suffix: entry for suffix, entry in sizes.items()}

    def tensors(self, name: str, record: Record, q: QTensor) -> dict[str, torch.Tensor]:
        kind, nested = _kind_of(q.scheme), "dq" in q.scheme.options
        state = {"quant_type": kind, "blocksize": q.scheme.group_size, "dtype": dtype_name(record.dtype),
                 "shape": list(record.shape)}  # fmt: skip
        parts = {"": ((q.packed >> 4) | (q.packed << 4)).view(-1, 1), ".absmax": q.stored_scale.reshape(-1),
                 ".quant_map": _table(_KINDS[kind][1])}  # fmt: skip
        if nested:
            state |= {"nested_blocksize": DQ_BLOCK, "nested_dtype": "float32", "nested_offset": q.scale_offset.item()}
            parts |= {".nested_absmax": q.second_scale.reshape(-1), ".nested_quant_map": _table(DYNAMIC_MAP)}
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return {name + suffix: tensor for suffix, tensor in (parts | {f"{_STATE}{kind}": text}).items()}

    def config(self, records: dict[str, Record], kept: list[str]) -> dict:
        schemes = Counter(Scheme.parse(record.scheme) for record in records.values())
        scheme, dtype = schemes.most_common(1)[0][0], Counter(record.dtype for record in records.values()).most_common(1)[0][0]
        return {"quantization_config": {
            "quant_method": self.name, "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": _kind_of(scheme),
            "bnb_4bit_use_double_quant": "dq" in scheme.options, "bnb_4bit_compute_dtype": dtype_name(dtype),
            "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": [name.removesuffix(".weight") for name in kept],
        }}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _State:
    """The JSON text: ``offset`` and ``outer_block`` are None where the scales are plain."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    block: int
    outer_block: int | None
    offset: float | None

    @classmethod
    def parse(cls, stored: torch.Tensor, kind: str, where: str) -> _State:
        fields = load_json(bytes(stored.tolist()), where)
        nested = bool(_NESTED_FIELDS & set(fields))
        if set(fields) != (_FIELDS | _NESTED_FIELDS if nested else _FIELDS):
            wanted = ", ".join(sorted(_FIELDS | _NESTED_FIELDS if nested else _FIELDS))
            raise CheckpointError(f"{where}: needs exactly {wanted}, got {shorten(sorted(fields))}")
        block, dtype, shape = fields["blocksize"], fields["dtype"], checked_shape(fields["shape"], where)
        if fields["quant_type"] != kind:
            raise CheckpointError(f"{where}: quant_type must be {kind!r}, got {shorten(fields['quant_type'])}")
        outer_block, offset = fields.get("nested_blocksize"), fields.get("nested_offset")
        for name, size in ({"blocksize": block} | ({"nested_blocksize": outer_block} if nested else {})).items():
            if type(size) is not int or size not in _BLOCK_SIZES:  # 64.0 and True are equal to whole numbers
                raise CheckpointError(f"{where}: {name} must be one of {', '.join(map(str, _BLOCK_SIZES))}, got {shorten(size)}")
        if dtype not in _DTYPES:
            raise CheckpointError(f"{where}: dtype must be one of {', '.join(_DTYPES)}, got {shorten(dtype)}")
        if nested:
            if fields["nested_dtype"] != "float32":
                raise CheckpointError(f"{where}: nested_dtype must be float32, got {shorten(fields['nested_dtype'])}")
            if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not abs(offset) <= torch.finfo(torch.float32).max:
                raise CheckpointError(f"{where}: nested_offset must be a finite number, got {shorten(offset)}")
        return cls(shape=shape, dtype=NAMED_DTYPES[dtype], block=block, outer_block=outer_block, offset=offset)


def _kind_of(scheme: Scheme) -> str | None:
    """Their name for the format of a scheme that they have; None for another."""
    name, size, nested = scheme.format.name, scheme.group_size, ".dq" * ("dq" in scheme.options)
    if size not in _BLOCK_SIZES or scheme != Scheme.parse(f"{name}.g{size}{nested}"):
        return None
    return next((kind for kind, (fmt, _) in _KINDS.items() if fmt == name), None)


def _record(source: Source, name: str, stored: str) -> Record:
    """What the state in tensor ``stored`` says of weight ``name``, checked against the other tensors' headers and the code books."""
    where, kind = f"{source.owner[stored].path}: tensor {stored!r}", stored.partition(_STATE)[2]
    entry = source.entry(stored)
    if entry.dtype != "U8" or len(entry.shape) != 1 or entry.nbytes > _LARGEST_STATE:
        got = f"{entry.dtype} {shorten(list(entry.shape))}"
        raise CheckpointError(f"{where}: must be a JSON text of at most {_LARGEST_STATE} bytes, got {got}")
    if kind not in _KINDS or sum(f"{name}{_STATE}{other}" in source for other in _KINDS) != 1:
        raise CheckpointError(f"{where}: must end on one of {', '.join(_KINDS)}, once for each weight")
    state = _State.parse(source.read(stored), kind, where)
    n, k = math.prod(state.shape[:-1]), state.shape[-1]
    group = math.gcd(k, state.block) if n * k else state.block
    if len(state.shape) < 2:
        raise CheckpointError(f"{where}: shape {list(state.shape)}: a weight has at least two axes")
    if group < _SMALLEST_GROUP:
        rule = f"rows of {k} elements cut its blocks of {state.block} into pieces of {group}, and at least {_SMALLEST_GROUP} are needed"
        raise CheckpointError(f"{where}: shape {list(state.shape)}: {rule}; leave this weight out when quantizing")
    blocks = -(-n * k // state.block)
    wanted = {"": (None, n * k // 2, "half a byte per element"), ".quant_map": ("F32", 64, "16 levels")}
    if state.offset is None:
        wanted[".absmax"] = ("F32", 4 * blocks, "one per block")
    else:
        wanted |= {".absmax": ("U8", blocks, "one per block"), ".nested_quant_map": ("F32", 1024, "256 levels"),
                   ".nested_absmax": ("F32", 4 * -(-blocks // state.outer_block), "one per nested block")}  # fmt: skip
    for suffix, (dtype, nbytes, what) in wanted.items():
        if name + suffix not in source:
            raise CheckpointError(f"{where}: tensor {name + suffix!r} is missing")
        got = source.entry(name + suffix)
        if (dtype is not None and got.dtype != dtype) or got.nbytes != nbytes or got.torch_dtype is None:
            raise CheckpointError(f"{where}: {name + suffix!r} must hold {nbytes} bytes{f' of {dtype}' if dtype else ''} ({what}), "
                                  f"got {got.nbytes} of {got.dtype}")  # fmt: skip
    fmt, levels = _KINDS[kind]
    # bitsandbytes decodes with constants of its own, so its code book needs to be the known one, to rounding
    if not torch.allclose(source.read(f"{name}.quant_map").reshape(-1), _table(levels), rtol=0, atol=1e-6):
        raise CheckpointError(f"{where}: the levels in {name + '.quant_map'!r} are not those of {kind}")
    nested = False
    if state.offset is not None and group == state.block and state.outer_block == DQ_BLOCK:
        nested = torch.equal(source.read(f"{name}.nested_quant_map").reshape(-1), _table(DYNAMIC_MAP))
    return Record(scheme=f"{fmt}.g{group}{'.dq' * nested}", shape=state.shape, dtype=state.dtype)


def _table(values: tuple[float, ...]) -> torch.Tensor:
    """On the CPU and in float32, whatever defaults a framework has set while it loads."""
    return torch.tensor(values, device="cpu", dtype=torch.float32)
