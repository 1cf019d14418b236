"""How codes share bytes. ``row`` order is canonical; the others are what checkpoints of other libraries hold."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from .._triton import jit, tl
from ..errors import InvalidProblemError, UnsupportedError

ORDERS = ("low_first", "high_first", "split_half", "awq", "gptq_int32", "ggml", "row_pair")
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# AWQ: nibble p of a word holds logical element _AWQ[p] of its eight (llm-awq pack_intweight).
_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def _view(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` read as ``dtype`` along its last axis; also where it is empty or a dimension of size 1 has an odd stride."""
    last = tensor.shape[-1] * tensor.element_size() // dtype.itemsize
    return tensor.reshape(-1).view(dtype).view(*tensor.shape[:-1], last)


def pack_row(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 codes ``[..., K]`` to the canonical bit stream ``[..., ceil(K * bits / 8)]``: code i starts at bit ``i * bits``.

    Neighbours are folded together inside one machine word: bytes to pairs, pairs to fours, fours to eights.
    """
    if bits == 8:
        return codes
    if bits == 16:
        return _view(codes.to(torch.int16), torch.uint8)
    unit = {4: 2, 2: 4, 3: 8}[bits]
    k = codes.shape[-1]
    if k % unit:
        codes = F.pad(codes, (0, -k % unit))
    word = _view(codes, _WORDS[unit])
    width, fields = bits, unit
    while fields > 1:
        fields //= 2
        word = word | (word >> (8 * unit // (2 * fields) - width))
        width *= 2
        if fields > 1:
            word = word & sum(((1 << width) - 1) << (8 * unit // fields * i) for i in range(fields))
    if bits == 3:
        packed = _view(word, torch.uint8).unflatten(-1, (word.shape[-1], 8))[..., :3].flatten(-2)
    else:
        packed = (word & 0xFF).to(torch.uint8)
    return packed[..., : -(-k * bits // 8)]


def unpack_row(packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """The inverse of :func:`pack_row`: unsigned codes ``[..., length]``, uint8 (int32 for 16 bits)."""
    if bits == 8:
        return packed[..., :length]
    if bits == 16:
        return _view(packed, torch.int16)[..., :length].to(torch.int32) & 0xFFFF
    unit = {4: 2, 2: 4, 3: 8}[bits]
    if bits == 3:
        if packed.shape[-1] % 3:
            packed = F.pad(packed, (0, -packed.shape[-1] % 3))
        word = _view(F.pad(packed.unflatten(-1, (packed.shape[-1] // 3, 3)), (0, 5)), torch.int64).squeeze(-1)
    else:
        word = packed.to(_WORDS[unit])
    width, fields = bits * unit, 1
    while fields < unit:
        width //= 2
        fields *= 2
        mask = sum(((1 << width) - 1) << (8 * unit // fields * i) for i in range(fields))
        word = (word | (word << (8 * unit // fields - width))) & _signed(mask, unit)
    return _view(word, torch.uint8)[..., :length]


def _signed(mask: int, unit: int) -> int:
    return mask - (1 << 8 * unit) if mask >> (8 * unit - 1) else mask


@jit
def load_code(row_ptr, k, mask, BITS: tl.constexpr):
    """Stored code k of a packed row (``row`` order), int32; pointer and k broadcast. Right for every width, whole bytes or not."""
    if BITS == 16:
        byte = k.to(tl.int64) * 2
        high = tl.load(row_ptr + byte + 1, mask=mask, other=0).to(tl.int32) << 8
        code = tl.load(row_ptr + byte, mask=mask, other=0).to(tl.int32) | high
    elif BITS == 8:
        code = tl.load(row_ptr + k, mask=mask, other=0).to(tl.int32)
    else:
        bit = k.to(tl.int64) * BITS
        word = tl.load(row_ptr + (bit >> 3), mask=mask, other=0).to(tl.int32)
        if BITS == 3:
            straddles = mask & ((bit & 7) > 5)
            word = word | (tl.load(row_ptr + (bit >> 3) + 1, mask=straddles, other=0).to(tl.int32) << 8)
        code = (word >> (bit & 7).to(tl.int32)) & (2**BITS - 1)
    return code


def pack(codes: torch.Tensor, bits: int, order: str = "low_first") -> torch.Tensor:
    """Pack integer codes along the last axis (``row_pair``: along the last axis but one).

    Args:
        codes: integer tensor ``[..., K]``; values ``-2**(bits-1) .. 2**bits - 1``, negative ones stored modulo ``2**bits``.
        bits: 2, 3, 4 or 8. The orders ``awq``, ``ggml`` and ``row_pair`` are defined for 4 bits alone.
        order: ``low_first`` (code i starts at bit ``i * bits`` of the row: element 2i in the low nibble),
            ``high_first`` (bitsandbytes: element 2i in the high nibble), ``split_half`` (byte j holds element j low and
            j + K/2 high), ``awq`` (int32, nibble p holds element (0, 2, 4, 6, 1, 3, 5, 7)[p]), ``gptq_int32`` (int32, low first),
            ``ggml`` (blocks of 32: byte j holds element j low and j + 16 high), ``row_pair`` (byte [r, k] holds row 2r low, 2r + 1 high).

    Returns:
        uint8, or int32 for ``awq`` and ``gptq_int32``. A length that does not fill the last unit is padded with code 0.

    Raises:
        InvalidProblemError: a code out of range, a float tensor, an unknown order.
        UnsupportedError: an order that is not defined for ``bits``.

    Example:
        >>> pack(torch.tensor([1, 2, 3]), 4).tolist()
        [33, 3]
    """
    _check(bits, order, codes, "codes")
    codes = computable(codes)
    if codes.numel():
        low, high = int(codes.min()), int(codes.max())
        if low < -(2 ** (bits - 1)) or high > 2**bits - 1:
            bad = low if low < -(2 ** (bits - 1)) else high
            raise InvalidProblemError(f"code {bad} does not fit in {bits} bits; codes must lie in {-(2 ** (bits - 1))}..{2**bits - 1}")
    codes = (codes.to(torch.int32) & (2**bits - 1)).to(torch.uint8)
    if order == "row_pair":
        codes = F.pad(codes, (0, 0, 0, codes.shape[-2] % 2))
        return codes[..., ::2, :] | (codes[..., 1::2, :] << 4)
    if order in ("low_first", "gptq_int32"):
        packed = pack_row(codes, bits)
        return packed if order == "low_first" else _to_words(packed)
    if order == "high_first":
        return _reverse_bits(pack_row(_reverse_bits(codes) >> (8 - bits), bits))
    per = 8 // bits
    if order == "split_half":
        codes = F.pad(codes, (0, -codes.shape[-1] % per))
        codes = codes.unflatten(-1, (per, codes.shape[-1] // per))
        return sum(codes[..., i, :] << (i * bits) for i in range(per)).to(torch.uint8)
    if order == "awq":
        codes = F.pad(codes, (0, -codes.shape[-1] % 8))
        codes = codes.unflatten(-1, (codes.shape[-1] // 8, 8))
        return _to_words(pack_row(codes[..., list(_AWQ)].flatten(-2), 4))
    codes = F.pad(codes, (0, -codes.shape[-1] % 32))
    codes = codes.unflatten(-1, (codes.shape[-1] // 32, 2, 16))
    return (codes[..., 0, :] | (codes[..., 1, :] << 4)).flatten(-2)


def unpack(packed: torch.Tensor, bits: int, length: int, order: str = "low_first") -> torch.Tensor:
    """The inverse of :func:`pack`: unsigned codes, uint8, ``length`` of them along the packed axis.

    Raises:
        InvalidProblemError: ``packed`` has the wrong dtype or holds fewer than ``length`` codes.

    Example:
        >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 4, 3).tolist()
        [1, 2, 3]
    """
    _check(bits, order, packed, "packed")
    want = torch.int32 if order in ("awq", "gptq_int32") else torch.uint8
    if packed.dtype != want:
        raise InvalidProblemError(f"order {order!r} packs into {want}, got {packed.dtype}")
    axis = -2 if order == "row_pair" else -1
    capacity = packed.shape[axis] * packed.element_size() * 8 // bits
    if type(length) is not int or not 0 <= length <= capacity:
        held = f"the codes that {tuple(packed.shape)} {packed.dtype} hold at {bits} bits"
        raise InvalidProblemError(f"length {length!r} is not in 0..{capacity}, {held}")
    if order == "row_pair":
        return torch.stack((packed & 15, packed >> 4), -2).flatten(-3, -2)[..., :length, :]
    if order == "low_first":
        return unpack_row(packed, bits, length)
    if order == "gptq_int32":
        return unpack_row(_view(packed, torch.uint8), bits, length)
    if order == "high_first":
        return _reverse_bits(unpack_row(_reverse_bits(packed), bits, length)) >> (8 - bits)
    if order == "split_half":
        return torch.cat([(packed >> (i * bits)) & (2**bits - 1) for i in range(8 // bits)], -1)[..., :length]
    if order == "awq":
        words = unpack_row(_view(packed, torch.uint8), 4, packed.shape[-1] * 8).unflatten(-1, (packed.shape[-1], 8))
        return words[..., [_AWQ.index(i) for i in range(8)]].flatten(-2)[..., :length]
    blocks = packed.unflatten(-1, (packed.shape[-1] // 16, 16))
    return torch.stack((blocks & 15, blocks >> 4), -2).flatten(-3)[..., :length]


def computable(codes: torch.Tensor) -> torch.Tensor:
    """Integer codes in a dtype that torch compares and shifts, which it does with none of uint16, uint32 and uint64."""
    if codes.dtype not in (torch.uint16, torch.uint32, torch.uint64):
        return codes
    wide = codes.to(torch.int64)
    if codes.dtype == torch.uint64 and codes.numel() and (low := int(wide.min())) < 0:  # it was 2**63 or more
        raise InvalidProblemError(f"code {low + 2**64} fits no format; codes have 16 bits at most")
    return wide


def _check(bits: int, order: str, tensor: torch.Tensor, what: str) -> None:
    if order not in ORDERS:
        raise InvalidProblemError(f"unknown order {order!r}; known orders: {', '.join(ORDERS)}")
    if type(bits) is not int or bits not in (2, 3, 4, 8):
        raise InvalidProblemError(f"bits={bits!r} cannot be packed; bits must be 2, 3, 4 or 8")
    if not isinstance(tensor, torch.Tensor) or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InvalidProblemError(f"{what} must be an integer tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}")
    if tensor.dim() < (2 if order == "row_pair" else 1):
        raise InvalidProblemError(f"{what} has {tensor.dim()} dimensions; order {order!r} needs at least {2 if order == 'row_pair' else 1}")
    if (bits != 4 and order in ("awq", "ggml", "row_pair")) or (bits == 3 and order == "split_half"):
        raise UnsupportedError(f"order {order!r} is not defined for {bits}-bit codes; use low_first, high_first or gptq_int32")
    if order == "ggml" and what == "packed" and tensor.shape[-1] % 16:
        raise InvalidProblemError(f"packed has {tensor.shape[-1]} bytes per row; order 'ggml' needs a multiple of 16")


def _to_words(packed: torch.Tensor) -> torch.Tensor:
    return _view(F.pad(packed, (0, -packed.shape[-1] % 4)), torch.int32)


def _reverse_bits(byte: torch.Tensor) -> torch.Tensor:
    byte = ((byte >> 1) & 0x55) | ((byte & 0x55) << 1)
    byte = ((byte >> 2) & 0x33) | ((byte & 0x33) << 2)
    return (byte >> 4) | ((byte & 15) << 4)
