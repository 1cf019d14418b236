"""Floor 3. The portable fused dequant-matmul: right for every scheme, shape and dtype, with no requirement on layout or alignment."""
from __future__ import annotations

from collections.abc import Callable

import torch

from .._triton import jit, tl, triton
from ..formats.packing import load_code
from ..qtensor import QTensor
from .bound import BoundMatmul
from .constants import contracts, decode_constants
from .dequantize import load_parameters, loadable_scale, weight_sizes
from .numerics import cast
from .parameters import decode_value


def _name(specialization) -> str:
    return f"matmul_{specialization.constants['NAME']}"


@jit
def relu(y):
    return tl.where(y > 0.0, y, tl.where(y == y, 0.0, y))


@jit
def silu(y):
    return y / (1.0 + tl.exp(-y))


@jit
def gelu(y):
    """The erf form, y * Phi(y)."""
    return 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))


ACTIVATIONS = {None: None, "relu": relu, "silu": silu, "gelu": gelu, "swiglu": silu}
GATED = ("swiglu",)  # the activation of a row of W multiplies the row that stands N / 2 below it


@jit(repr=_name)
def matmul_tiles(
    x_ptr, packed_ptr, scale_ptr, zero_point_ptr, bias_ptr, residual_ptr, out_ptr, M, N, K, row_bytes, groups, group_rows, group_columns,
    x_row, x_col, residual_row, residual_col, bias_step,
    NAME: tl.constexpr, COMPUTE: tl.constexpr, DECODE: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr,
    HAS_SCALE: tl.constexpr, AFFINE: tl.constexpr, FLOAT_ZERO: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[M, N] = activation(x[M, K] @ w_hat[N, K].T + bias) + residual in COMPUTE; one program per BLOCK_M x BLOCK_N rows of W.

    GATED: out[M, N / 2] = activation(gate) * up + residual; a tile holds BLOCK_N / 2 rows of the gate, then the same of up.
    """
    HEIGHT: tl.constexpr = BLOCK_N // 2 if GATED else BLOCK_N  # columns of the result per tile
    features = N // 2 if GATED else N
    tiles_n = tl.cdiv(features, HEIGHT)
    pid = tl.program_id(0)
    m = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    feature = (pid % tiles_n).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    if GATED:
        half = (pid % tiles_n).to(tl.int64) * HEIGHT + tl.arange(0, BLOCK_N) % HEIGHT
        n = tl.where(half < features, half + tl.arange(0, BLOCK_N) // HEIGHT * features, N)
    else:
        n = feature
    acc = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_at = x_ptr + m[:, None] * x_row + k.to(tl.int64)[None, :] * x_col
        x = tl.load(x_at, mask=(m < M)[:, None] & (k < K)[None, :], other=0.0).to(COMPUTE)
        mask = (n < N)[:, None] & (k < K)[None, :]
        code = load_code(packed_ptr + n[:, None] * row_bytes, k[None, :], mask, BITS)
        scale, zero_point = load_parameters(scale_ptr, zero_point_ptr, n[:, None], k[None, :], mask, groups, group_rows, group_columns,
                                            COMPUTE, HAS_SCALE, AFFINE)  # fmt: skip
        w = tl.where(mask, decode_value(code, scale, zero_point, COMPUTE, DECODE, BITS, SIGNED, AFFINE, FLOAT_ZERO), 0.0)
        if tl.float64 == COMPUTE:
            acc += tl.sum(x[:, None, :] * w[None, :, :], 2)
        else:
            acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n * bias_step, mask=n < N, other=0.0).to(COMPUTE)[None, :]
    if GATED:
        gate, up = tl.split(acc.reshape(BLOCK_M, 2, HEIGHT).trans(0, 2, 1))
        acc = ACTIVATION(gate) * up
    elif ACTIVATION is not None:
        acc = ACTIVATION(acc)
    mask = (m < M)[:, None] & (feature < features)[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + m[:, None] * residual_row + feature[None, :] * residual_col, mask=mask, other=0.0).to(COMPUTE)
    tl.store(out_ptr + m[:, None] * features + feature[None, :], cast(acc, out_ptr.dtype.element_ty), mask=mask)


def config(m: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float64:
        return {"BLOCK_M": 2, "BLOCK_N": 16, "BLOCK_K": 64, "num_warps": 4}
    return {"BLOCK_M": 16 if m <= 16 else 32, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4}


class TurnedBack:
    """A product with a weight in another layout than ``row``, which is turned back in every call: two copies would fill the memory."""

    def __init__(self, *bound):
        self.bound = bound

    def run(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None,
            workspace: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """The product with the weight turned back."""
        row = q.relayout("row")
        return bind(x, row, bias, residual, *self.bound).run(x, row, bias, residual)

    def prepare(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None) -> None:
        """Compile and load, launching nothing."""
        row = q.relayout("row")
        bind(x, row, bias, residual, *self.bound).prepare(x, row, bias, residual)


def bind(x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None, activation: str | None,
         config: dict[str, int], shape: tuple[int, ...]) -> BoundMatmul | TurnedBack:  # fmt: skip
    """x ``[M, K]`` of any strides; nothing is launched for an empty result."""
    if q.layout != "row":
        return TurnedBack(activation, config, shape)
    grid = (triton.cdiv(x.shape[0], config["BLOCK_M"]) * triton.cdiv(q.shape[0], config["BLOCK_N"]), 1)
    decode = decode_constants(q.scheme, x.dtype)
    scale = loadable_scale(q)
    product = BoundMatmul(
        matmul_tiles, grid, x, q, bias, residual, shape=shape, weight=(q.packed, scale, q.zero_point),
        constants={"ACTIVATION": ACTIVATIONS[activation], "GATED": activation in GATED, **weight_sizes(q),
                   **decode, "enable_fp_fusion": contracts(decode["COMPUTE"]), **config},
    )  # fmt: skip
    if scale is not q.stored_scale:
        product.run = _refreshing(product.run)
    return product


def _refreshing(run: Callable) -> Callable:
    """:attr:`BoundMatmul.run` of scales that are no tensor of the weight: a look brings them up to date, where they lie."""

    def refreshed(x, q, bias, residual, workspace=None):
        loadable_scale(q)
        return run(x, q, bias, residual, workspace)

    return refreshed
