"""Floor 0. Floating point as Triton's interpreter stores it, and as hardware computes it.

The interpreter keeps bf16 as uint16 and fp8 as uint8 arrays. Stock Triton 3.6 to 3.9 truncates float32 -> bf16, computes bf16 arithmetic,
comparisons and ``tl.dot`` on the raw 16-bit patterns, loses the mantissa carry in fp8 casts and rounds ``tl.fma`` twice before 3.9.
``install()`` replaces those parts, for every interpreted kernel of the process. Casts round once, as hardware does; torch's do too, except
from float64 to 16 bits, where torch goes by way of float32.
"""
from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as stock

from . import exact

Handle = stock.TensorHandle
Builder = stock.InterpreterBuilder
BF16 = tl.bfloat16
FP8_MAX = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
RAW = (tl.bfloat16, tl.float8e4nv, tl.float8e5)  # types stored as their bit patterns
TORCH_TYPE = {
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
}


def _storage(dtype) -> tuple[type, torch.dtype]:
    return (np.uint16, torch.int16) if dtype == BF16 else (np.uint8, torch.uint8)


def as_torch(data: np.ndarray, dtype) -> torch.Tensor:
    """The interpreter's array as a torch tensor of the real type (a copy)."""
    array = np.array(data, copy=True, order="C")
    if dtype not in RAW:
        return torch.from_numpy(array.reshape(-1)).view(TORCH_TYPE[dtype]).reshape(array.shape)
    numpy_type, torch_type = _storage(dtype)
    flat = torch.from_numpy(array.reshape(-1).view(np.int16 if torch_type == torch.int16 else numpy_type))
    return flat.view(TORCH_TYPE[dtype]).reshape(array.shape)


def as_stored(tensor: torch.Tensor, dtype) -> np.ndarray:
    """A torch tensor of the real type as the interpreter's array."""
    if dtype not in RAW:
        return tensor.contiguous().numpy()
    numpy_type, torch_type = _storage(dtype)
    return tensor.contiguous().view(torch_type).numpy().view(numpy_type)


def _saturate(tensor: torch.Tensor, dtype) -> torch.Tensor:
    """NVIDIA's ``cvt.rn.satfinite``: fp8 overflow and infinity become the largest finite value, NaN stays."""
    if dtype not in FP8_MAX:
        return tensor
    wide = tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
    return torch.where(torch.isnan(wide), wide, wide.clamp(-FP8_MAX[dtype], FP8_MAX[dtype]))


def to_float32(handle) -> np.ndarray:
    """The values of a handle; raw types as float32, all others as they are."""
    dtype = handle.dtype.scalar
    return as_torch(handle.data, dtype).to(torch.float32).numpy() if dtype in RAW else handle.data


def from_float(values: np.ndarray, dtype) -> np.ndarray:
    """Round float values to ``dtype`` (nearest, ties to even, once) in the interpreter's storage."""
    if values.dtype == np.float64 and dtype == BF16:
        return exact.float_to_bf16(values)
    if values.dtype == np.float64 and dtype == tl.float16:
        return values.astype(np.float16)
    tensor = _saturate(torch.from_numpy(np.array(values, copy=True, order="C")), dtype)
    return as_stored(tensor.to(TORCH_TYPE[dtype]), dtype)


def _convert_float(original):
    nearest = stock._ir.ROUNDING_MODE.RTNE

    def convert(data, source, target, rounding):
        if source in TORCH_TYPE and target in TORCH_TYPE and rounding in (None, nearest):
            values = as_torch(data if source in RAW else np.asarray(data).view(stock._get_np_dtype(source)), source)
            return from_float((values.to(torch.float32) if source in RAW else values).numpy(), target)
        return original(data, source, target, rounding)

    return convert


def _cast_impl(original):
    def cast(self, source, target_type):
        origin, target = source.dtype.scalar, target_type.scalar
        if origin not in RAW and target not in RAW:
            return original(self, source, target_type)
        values = to_float32(source)
        if target not in RAW:
            return Handle(values.astype(stock._get_np_dtype(target)), target)
        if values.dtype.kind in "iub":
            values = values.astype(np.float64)
        return Handle(from_float(values, target), target)

    return cast


def _in_float32(original, count: int):
    """Wrap a builder method: bf16 operands (the first ``count``) are widened, the float result is rounded back."""

    def method(self, *args):
        operands, rest = args[:count], args[count:]
        if not any(isinstance(h, Handle) and h.dtype.scalar == BF16 for h in operands):
            return original(self, *args)
        wide = [Handle(to_float32(h), tl.float32) if h.dtype.scalar == BF16 else h for h in operands]
        result = original(self, *wide, *rest)
        if result.data.dtype.kind == "f":
            return Handle(from_float(result.data, BF16), BF16)
        return Handle(result.data, tl.int1 if result.data.dtype == np.bool_ else operands[0].dtype.scalar)

    return method


def _clamp(original):
    """``max.f32`` / ``min.f32`` drop a single NaN; bf16 goes through float32."""

    def clamp(self, value, low, high, propagate_nan):
        if propagate_nan == stock._ir.PROPAGATE_NAN.NONE:
            return self.create_minnumf(self.create_maxnumf(value, low), high)
        if value.dtype.scalar != BF16:
            return original(self, value, low, high, propagate_nan)
        wide = [Handle(to_float32(h), tl.float32) for h in (value, low, high)]
        return Handle(from_float(original(self, *wide, propagate_nan).data, BF16), BF16)

    return clamp


def _fma(self, x, y, z):
    """One rounding for every float type."""
    if z.dtype.scalar == BF16:
        wide = exact.fma_unrounded(*(to_float32(h) for h in (x, y, z)))
        return Handle(from_float(wide, BF16), BF16)
    return Handle(exact.fma(x.data, y.data, z.data), z.dtype.scalar)


def _dot(original):
    def dot(self, a, b, accumulator, input_precision, max_num_imprecise_acc):
        if a.dtype.scalar in RAW or b.dtype.scalar in RAW:
            product = np.matmul(to_float32(a), to_float32(b)) + accumulator.data
            return Handle(product.astype(accumulator.data.dtype), accumulator.dtype.scalar)
        return original(self, a, b, accumulator, input_precision, max_num_imprecise_acc)

    return dot


def install() -> None:
    """Replace the interpreter's float casts, bf16 arithmetic, ``fma``, ``dot`` and NaN rule of min, max and clamp; once."""
    if Builder.create_fma is _fma:
        return
    stock._convert_float = _convert_float(stock._convert_float)
    Builder.cast_impl = _cast_impl(Builder.cast_impl)
    Builder.binary_op = _in_float32(Builder.binary_op, 2)
    Builder.unary_op = _in_float32(Builder.unary_op, 1)
    for name in ("create_rsqrt", "create_erf", "create_floor", "create_ceil"):
        setattr(Builder, name, _in_float32(getattr(Builder, name), 1))
    Builder.create_maxnumf = lambda self, left, right: self.binary_op(left, right, np.fmax)
    Builder.create_minnumf = lambda self, left, right: self.binary_op(left, right, np.fmin)
    Builder.create_clampf = _clamp(Builder.create_clampf)
    Builder.create_fma = _fma
    Builder.create_dot = _dot(Builder.create_dot)
    if not hasattr(Builder, "get_bf16"):
        Builder.get_bf16 = lambda self, value: Handle(from_float(np.array([value], dtype=np.float32), BF16), BF16)
