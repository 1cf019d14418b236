"""Runs the feature kernels on any device and says what torch, or arithmetic by hand, expects.

``CHECKS`` maps a name to ``Check``; ``Check.run(device)`` returns (got, expected), to be compared bit for bit with ``same``.
The interpreter tests, the simulator tests and a GPU run all use them, so the tools are held to one expectation.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from . import feature_kernels as kernels
from .poison import poisoned_empty

BLOCK = 1024
BF16, F16, F32, F64, E4M3, E5M2 = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
_LARGEST = {E4M3: 448.0, E5M2: 57344.0}
_SPECIAL = [0.0, -0.0, 1.0, float("inf"), -float("inf"), float("nan"), 65504.0, 65519.0, 65520.0, 448.0, 464.0, 465.0, 57344.0, 61441.0]
_SPECIAL += [1e-8, 6e-8, 3e-8, 2.0**-14, 2.0**-15, 2.0**-9, 2.0**-10, 1.5 * 2.0**-10, 2.0**-17, 1.99999988, 1e-40, -3e-45]
_SPECIAL += [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, 1 + 2.0**-11, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-11 + 2.0**-40]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One feature: how to run it, and the first CUDA architecture that has it."""

    run: Callable[[str], tuple[torch.Tensor, torch.Tensor]]
    min_arch: int = 80


CHECKS: dict[str, Check] = {}


def check(name: str, min_arch: int = 80):
    def register(function):
        CHECKS[name] = Check(run=function, min_arch=min_arch)
        return function

    return register


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Bit-identical, all NaNs alike."""
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    got, expected = got.cpu(), expected.cpu()
    if not got.dtype.is_floating_point:
        return torch.equal(got, expected)
    nan = torch.isnan(got.double()) & torch.isnan(expected.double())
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    return bool(((got.contiguous().view(width) == expected.contiguous().view(width)) | nan).all())


def numbers(dtype: torch.dtype) -> torch.Tensor:
    """Ordinary and awkward numbers of a type, BLOCK of them."""
    values = torch.cat([torch.tensor(_SPECIAL, dtype=F64), torch.randn(BLOCK - len(_SPECIAL), dtype=F64) * 3])
    if dtype in _LARGEST:
        values = values.clamp(-_LARGEST[dtype], _LARGEST[dtype])
    return values.to(dtype)


def rounded_once(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 -> 16 bits, nearest even of the true value (torch goes by way of float32): the nearest of three candidates."""
    near = values.to(dtype).view(torch.int16)
    candidates = torch.stack([(near + step).view(dtype) for step in (0, -1, 1)])
    distance = (candidates.double() - values).abs().nan_to_num(nan=torch.inf)
    odd = candidates.view(torch.int16) & 1
    best = (distance == distance.min(0).values).double() * (2 - odd)
    chosen = candidates.view(torch.int16).gather(0, best.argmax(0, keepdim=True))[0].view(dtype)
    ordinary = values.isfinite() & values.to(dtype).isfinite() & (values.to(dtype).double() != 0)
    return torch.where(ordinary, chosen, values.to(dtype))


def _expected_cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype in _LARGEST:
        wide = values.float()
        return torch.where(wide.isnan(), wide, wide.clamp(-_LARGEST[dtype], _LARGEST[dtype])).to(dtype)
    return rounded_once(values, dtype) if values.dtype == F64 and dtype in (F16, BF16) else values.to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _add_cast(source: torch.dtype, target: torch.dtype, kernel_name: str = "cast") -> None:
    fp8 = E4M3 in (source, target) or E5M2 in (source, target)

    @check(f"{kernel_name} {_name(source)} -> {_name(target)}", min_arch=90 if fp8 else 80)
    def run(device):
        x = numbers(source) if source.is_floating_point else torch.randint(-128, 128, (BLOCK,), dtype=source)
        if source == E5M2:
            x = torch.where(x.float().isnan(), 0.0, x.float()).to(E5M2)  # compiled e5m2 -> bf16 gets NaN and infinity wrong
        out = poisoned_empty(BLOCK, dtype=target, device=device)
        getattr(kernels, kernel_name)[(1,)](x.to(device), out, BLOCK=BLOCK)
        return out, _expected_cast(x, target)


for _source in (F64, F32, F16, BF16):
    for _target in (F64, F32, F16, BF16):
        if _source != _target:
            _add_cast(_source, _target)
for _wide in (F32, F16, BF16):
    for _narrow in (E4M3, E5M2):
        _add_cast(_wide, _narrow)
        _add_cast(_narrow, _wide)
_add_cast(torch.int8, BF16)
_add_cast(torch.int8, F64)
_add_cast(F32, BF16, "store_casts")


def _add_binary(dtype: torch.dtype, operation: str, expected: Callable) -> None:
    @check(f"{operation} {_name(dtype)}")
    def run(device):
        x, y = numbers(dtype), numbers(dtype).flip(0)
        out = poisoned_empty(BLOCK, dtype=dtype, device=device)
        kernels.binary[(1,)](x.to(device), y.to(device), out, OP=operation, BLOCK=BLOCK, enable_fp_fusion=False)
        return out, expected(x, y)


for _dtype in (F64, F32, F16, BF16):
    _add_binary(_dtype, "add", lambda x, y: x + y)
    _add_binary(_dtype, "mul", lambda x, y: x * y)
    _add_binary(_dtype, "greater", lambda x, y: torch.where(x > y, x, y))
    # the hardware drops a single NaN
    _add_binary(_dtype, "max", lambda x, y: torch.fmax(x.double(), y.double()).to(x.dtype))
    _add_binary(_dtype, "min", lambda x, y: torch.fmin(x.double(), y.double()).to(x.dtype))
_add_binary(F32, "div_rn", lambda x, y: x / y)
_add_binary(F64, "divide", lambda x, y: x / y)  # tl.div_rn takes float32 only; a float64 division is IEEE


@check("integer floor division")
def _integer_division(device):
    x, y = torch.randint(-(2**31), 2**31 - 1, (BLOCK,), dtype=torch.int32), torch.randint(1, 1000, (BLOCK,), dtype=torch.int32)
    out = poisoned_empty(BLOCK, dtype=torch.int32, device=device)
    kernels.binary[(1,)](x.to(device), y.to(device), out, OP="floor_divide", BLOCK=BLOCK)
    return out, torch.div(x, y, rounding_mode="trunc")  # C's division


def fma_by_hand(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """One rounding, by rational arithmetic on Python integers."""
    from fractions import Fraction

    # Python rounds int / int correctly, also to subnormals; a second rounding to float32 could go wrong only at a tie of 29 bits
    exact = [Fraction(a) * Fraction(b) + Fraction(c) for a, b, c in zip(x.tolist(), y.tolist(), z.tolist())]
    return torch.tensor([e.numerator / e.denominator for e in exact], dtype=F64).to(x.dtype)


def _add_fma(dtype: torch.dtype) -> None:
    @check(f"fma {_name(dtype)}")
    def run(device):
        x, y = torch.randn(2, BLOCK, dtype=F64).to(dtype)
        z = (-(x * y)).clone()  # what remains is the rounding error of the product: all of it is lost by two roundings
        z[::2] = torch.randn(BLOCK // 2, dtype=F64).to(dtype)
        out = poisoned_empty(BLOCK, dtype=dtype, device=device)
        kernels.fma[(1,)](x.to(device), y.to(device), z.to(device), out, BLOCK=BLOCK)
        return out, fma_by_hand(x, y, z)


_add_fma(F32)
_add_fma(F64)


@check("multiply then add, not fused")
def _multiply_add(device):
    x, y, z = torch.randn(3, BLOCK)
    out = poisoned_empty(BLOCK, device=device)
    kernels.multiply_add[(1,)](x.to(device), y.to(device), z.to(device), out, BLOCK=BLOCK, enable_fp_fusion=False)
    return out, x * y + z


@check("subnormal products and quotients")
def _subnormals(device):
    x, y = torch.rand(BLOCK) * 2.0**-120, torch.rand(BLOCK) * 2.0**-10
    out = poisoned_empty(2, BLOCK, device=device)
    kernels.binary[(1,)](x.to(device), y.to(device), out[0], OP="mul", BLOCK=BLOCK)
    kernels.binary[(1,)](x.to(device), (1 / y).to(device), out[1], OP="div_rn", BLOCK=BLOCK)
    return out, torch.stack([x * y, x / (1 / y)])


# torch.sqrt on a CPU is not always correctly rounded; through float64 it is
for _operation, _expected in (("sqrt_rn", lambda v: v.double().sqrt().float()), ("reciprocal", lambda v: 1 / v)):

    @check(f"{_operation} float32")
    def _unary(device, operation=_operation, expected=_expected):
        x, out = torch.rand(BLOCK) * 100, poisoned_empty(BLOCK, device=device)
        kernels.reciprocal_sqrt[(1,)](x.to(device), out, OP=operation, BLOCK=BLOCK)
        return out, expected(x)


for _kernel in ("round_magic", "round_asm"):

    @check(_kernel)
    def _rounding(device, kernel=_kernel):
        x = torch.cat([torch.arange(-256, 256) / 2.0, torch.randn(BLOCK - 512) * 40])
        out = poisoned_empty(BLOCK, device=device)
        getattr(kernels, kernel)[(1,)](x.to(device), out, BLOCK=BLOCK, enable_fp_fusion=False)
        return out + 0.0, torch.round(x) + 0.0


@check("inline lop3")
def _lop3(device):
    x = torch.randint(-(2**31), 2**31 - 1, (64,), dtype=torch.int32)
    out = poisoned_empty(64, dtype=torch.int32, device=device)
    kernels.nibbles_to_half[(1,)](x.to(device), out, BLOCK=64)
    return out, (x & 0x000F000F) | 0x64006400


@check("inline prmt")
def _prmt(device):
    x, y = torch.randint(-(2**31), 2**31 - 1, (2, 64), dtype=torch.int32)
    out = poisoned_empty(64, dtype=torch.int32, device=device)
    kernels.byte_shuffle[(1,)](x.to(device), y.to(device), out, BLOCK=64)
    pool = torch.cat([x.view(64, 1).view(torch.uint8), y.view(64, 1).view(torch.uint8)], 1)
    return out, pool[:, [0, 5, 2, 7]].contiguous().view(torch.int32).view(64)


def _nibbles() -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.randint(0, 16, (16, 256), dtype=torch.uint8)
    return q, q[:, 0::2] | (q[:, 1::2] << 4)


@check("pack nibbles")
def _pack(device):
    q, packed = _nibbles()
    out = poisoned_empty(16, 128, dtype=torch.uint8, device=device)
    kernels.pack_nibbles[(1,)](q.to(device), out, ROWS=16, COLS=256)
    return out, packed


@check("unpack nibbles")
def _unpack(device):
    q, packed = _nibbles()
    out = poisoned_empty(16, 256, dtype=torch.uint8, device=device)
    kernels.unpack_nibbles[(1,)](packed.to(device), out, ROWS=16, COLS=256)
    return out, q


@check("shifts, signed and unsigned")
def _shifts(device):
    x = torch.randint(-(2**31), 2**31 - 1, (256,), dtype=torch.int32)
    out = poisoned_empty(3, 256, dtype=torch.int32, device=device)
    kernels.shifts[(1,)](x.to(device), out, BLOCK=256)
    return out, torch.stack([x >> 28, ((x.long() & 0xFFFFFFFF) >> 28).int(), (x << 28) >> 28])


@check("gather from a table")
def _gather(device):
    q, table = torch.randint(0, 16, (BLOCK,), dtype=torch.uint8), torch.randn(16)
    out = poisoned_empty(BLOCK, device=device)
    kernels.gather[(1,)](q.to(device), table.to(device), out, BLOCK=BLOCK)
    return out, table[q.long()]


def _add_reduce(dtype: torch.dtype, operation: str, expected: Callable) -> None:
    @check(f"group {operation} {_name(dtype)}")
    def run(device):
        x = torch.randint(-50, 50, (16, 256)).to(dtype) if operation == "sum" else torch.randn(16, 256, dtype=F64).to(dtype)
        out = poisoned_empty(16, 4, dtype=dtype, device=device)
        kernels.group_reduce[(1,)](x.to(device), out, OP=operation, ROWS=16, COLS=256, GROUP=64)
        return out, expected(x.view(16, 4, 64)).to(dtype)


for _dtype in (F64, F32, F16, BF16):
    _add_reduce(_dtype, "absmax", lambda v: v.abs().amax(-1))
    _add_reduce(_dtype, "min", lambda v: v.amin(-1))
_add_reduce(F32, "sum", lambda v: v.sum(-1))
_add_reduce(torch.int32, "sum", lambda v: v.sum(-1))


def _add_dot(dtype: torch.dtype, rows: int, transposed: bool, warps: int, min_arch: int = 80) -> None:
    @check(f"dot {_name(dtype)} M={rows}{' transposed' if transposed else ''} warps={warps}", min_arch=min_arch)
    def run(device):
        # small integers: every partial sum is exact, so any order of summation gives the same bits
        a, b = torch.randint(-4, 5, (rows, 64)).to(dtype), torch.randint(-4, 5, (64, 32)).to(dtype)
        result = torch.int32 if dtype == torch.int8 else F32
        out = poisoned_empty(rows, 32, dtype=result, device=device)
        given = b.T.contiguous() if transposed else b
        sizes = {"M": rows, "N": 32, "K": 64, "TRANSPOSED": transposed, "PRECISION": "ieee" if dtype == F32 else "tf32"}
        kernels.dot[(1,)](a.to(device), given.to(device), out, **sizes, num_warps=warps)
        return out, (a.double() @ b.double()).to(result)


for _dtype in (F16, BF16, torch.int8):
    _add_dot(_dtype, 16, False, 4)
    _add_dot(_dtype, 64, True, 4)  # wgmma from sm_90 on
    _add_dot(_dtype, 128, True, 8)
_add_dot(F32, 16, False, 4)
_add_dot(E4M3, 16, False, 4, min_arch=90)
_add_dot(E4M3, 64, True, 4, min_arch=90)


@check("pipelined dot")
def _pipelined(device):
    x, w = torch.randint(-4, 5, (64, 256)).to(F16), torch.randint(-4, 5, (32, 256)).to(F16)
    out = poisoned_empty(64, 32, device=device)
    kernels.pipelined_dot[(1,)](x.to(device), w.to(device), out, 256, M=64, N=32, BK=64, num_stages=3)
    return out, x.float() @ w.float().T


def _add_atomic(dtype: torch.dtype, operation: str) -> None:
    @check(f"atomic {operation} {_name(dtype)}")
    def run(device):
        x = torch.randint(-20, 20, (256,)).to(dtype)
        start = torch.zeros(8, dtype=dtype)
        out = start.clone().to(device)
        kernels.atomic[(4,)](x.to(device), out, OP=operation, BLOCK=64)
        columns = torch.cat([x.view(-1, 8), start[None]])
        wide = columns.double()
        return out, {"add": wide.sum(0), "max": wide.amax(0), "min": wide.amin(0)}[operation].to(dtype)


for _dtype in (F32, torch.int32):
    for _operation in ("add", "max", "min"):
        _add_atomic(_dtype, _operation)
for _dtype in (F64, F16, BF16):
    _add_atomic(_dtype, "add")


@check("last program sums")
def _last_program(device):
    x = torch.randn(4, 64)
    partial, out = poisoned_empty(4, 64, device=device), poisoned_empty(64, device=device)
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    kernels.last_program_sums[(4,)](x.to(device), partial, counter, out, PROGRAMS=4, BLOCK=64)
    return out, (((x[0] * 2 + x[1] * 2) + x[2] * 2) + x[3] * 2)


@check("masked load with other")
def _masked(device):
    x, out = torch.randn(50), poisoned_empty(64, device=device)
    kernels.masked_copy[(1,)](x.to(device), out, 50, FILL=True, MASK_STORE=False, BLOCK=64)
    return out, torch.cat([x, torch.full((14,), -7.0)])


@check("masked store leaves the rest")
def _masked_store(device):
    x, out = torch.randn(300), torch.full((512,), 3.0, device=device)
    kernels.masked_copy[(4,)](x.to(device), out, 300, FILL=False, MASK_STORE=True, BLOCK=128)
    return out, torch.cat([x, torch.full((212,), 3.0)])


@check("misaligned view")
def _misaligned(device):
    x, out = torch.randn(300), poisoned_empty(300, device=device)
    source = x.to(device)[1:257]
    kernels.unmasked_copy[(2,)](source, out[3:259], BLOCK=128)
    return out[3:259], x[1:257]


@check("scalar arguments")
def _scalars(device):
    out, floats = torch.zeros(3, dtype=torch.int64, device=device), torch.zeros(1, device=device)
    kernels.scalars[(1,)](out, floats, -5, 2**40, 2.75, 1)
    return torch.cat([out.double(), floats.double()]), torch.tensor([-5, 2**40, 1, 2.75], dtype=F64)


@check("loop and branch")
def _loop(device):
    x, out = torch.randn(4, 64), poisoned_empty(64, device=device)
    kernels.loop_and_branch[(1,)](x.to(device), out, 4, MODE="negate", BLOCK=64)
    return out, -(((x[0] + x[1]) + x[2]) + x[3])


@check("function as constexpr")
def _function(device):
    x, out = torch.randn(64), poisoned_empty(64, device=device)
    kernels.apply[(1,)](x.to(device), out, FUNCTION=kernels.twice, BLOCK=64)
    return out, x + x
