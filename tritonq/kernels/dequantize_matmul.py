"""Floor 3. Large M: a chunk of the weight is decoded into the workspace, 16 bits a value, and the vendor's library multiplies.

Chunks cut a dimension of the *result*, rows of the weight in the forward and columns in the backward, so nothing is added up across
chunks. They are sized to stay in the L2 cache between the kernel that writes and the one that reads them.
"""
from __future__ import annotations

import contextlib
import threading

import torch

from ..backend import as_computed
from ..layouts.by_group import up
from ..qtensor import QTensor
from .dequantize_range import STEP, dequantize_range
from .epilogue import epilogue
from .matmul import GATED

MIB = 2**20
CHUNK_BYTES = 32 * MIB  # what an L2 of 40 to 50 MiB (A100, H100, H200) keeps beside what streams through it
MOST_CHUNK_BYTES = 48 * MIB  # where a smaller chunk would leave multiprocessors idle
SUM_BYTES = 16 * MIB  # float32 sums that wait for an epilogue, or what is left of
MOST_WORKSPACE = 64 * MIB
_TILE = 128  # rows and columns of a product that one multiprocessor takes at a time


def _pitch(k: int) -> int:
    """Values from one decoded row to the next: whole 32 bytes, so that rows are written 16 bytes at a time."""
    return up(max(k, 1), 16)


def chunk_size(m: int, size: int, contracted: int, multiprocessors: int) -> int:
    """How many of ``size`` rows (columns) of the weight to decode at a time, a multiple of 128; each has ``contracted`` values.

    As many as CHUNK_BYTES hold; more where products of m x chunk would give less than a tile to each multiprocessor.
    """
    line = 2 * _pitch(contracted)
    busy = _TILE * -(-multiprocessors // max(-(-m // _TILE), 1))
    most = min(max(CHUNK_BYTES // line, busy), MOST_CHUNK_BYTES // line)
    chunks = max(-(-size // max(most // STEP * STEP, STEP)), 1)
    return max(up(-(-size // chunks), STEP), STEP)  # equal ones: a short last one would be a product of its own for little work


def forward_config(m: int, n: int, k: int, activation: str | None, sums: bool, multiprocessors: int) -> dict[str, int]:
    """CHUNK_N columns of the result at a time; CHUNK_M of its rows where ``sums`` wait for an epilogue, else 0."""
    halves = 1 + (activation in GATED)
    config = {"CHUNK_N": chunk_size(m, n // halves, halves * k, multiprocessors), "CHUNK_M": 0}
    if sums:
        room = min(SUM_BYTES, MOST_WORKSPACE - forward_workspace(k, activation, config))
        config["CHUNK_M"] = max(min(m, room // (4 * halves * config["CHUNK_N"])), 1)
    return config


def backward_config(m: int, n: int, k: int, multiprocessors: int) -> dict[str, int]:
    """CHUNK_K columns of the weight at a time."""
    return {"CHUNK_K": chunk_size(m, k, n, multiprocessors)}


def _weight_rows(activation: str | None, config: dict[str, int]) -> int:
    """Rows of a decoded chunk; up's start anywhere, and what is decoded starts at a multiple of 128."""
    return config["CHUNK_N"] + (STEP if activation in GATED else 0)


def forward_workspace(k: int, activation: str | None, config: dict[str, int]) -> int:
    """Bytes of the decoded chunk and of the sums behind it; any contents will do."""
    halves = 1 + (activation in GATED)
    return halves * (2 * _weight_rows(activation, config) * _pitch(k) + 4 * config["CHUNK_N"] * config["CHUNK_M"])


def backward_workspace(n: int, config: dict[str, int]) -> int:
    return 2 * n * config["CHUNK_K"]


_REDUCTIONS = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
_strict = threading.Lock()


@contextlib.contextmanager
def _whole_sums(device: torch.device):
    """Sums in float32 to their end: by default torch lets cuBLAS round partial sums to 16 bits before it adds them.

    The settings are torch's, for the whole process: changed while a call is queued and no longer, by one thread at a time.
    """
    if device.type != "cuda":
        yield
        return
    settings = torch.backends.cuda.matmul
    with _strict:
        before = {name: getattr(settings, name) for name in _REDUCTIONS}
        split = {name: getattr(settings, name + "_split_k", None) for name in _REDUCTIONS}  # torch 2.10 and later
        short = getattr(settings, "allow_fp16_accumulation", None)  # torch 2.7 and later
        try:
            for name in _REDUCTIONS:
                setattr(settings, name, False if split[name] is None else (False, split[name]))
            if short:
                settings.allow_fp16_accumulation = False
            yield
        finally:
            for name in _REDUCTIONS:
                setattr(settings, name, before[name] if split[name] is None else (before[name], split[name]))
            if short:
                settings.allow_fp16_accumulation = True


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out = a @ b of 16-bit operands with float32 sums, rounded once to out's dtype (that of a, or float32)."""
    if a.device.type == "cpu":  # where torch promises nothing about sums of 16-bit numbers
        with as_computed(a.device):
            out.copy_(a.float() @ b.float())
        return
    with _whole_sums(a.device):
        if out.dtype == a.dtype:
            torch.mm(a, b, out=out)
        else:
            torch.mm(a, b, out_dtype=out.dtype, out=out)


def matmul(x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, activation: str | None, residual: torch.Tensor | None,
           config: dict[str, int], workspace: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    """x ``[M, K]`` float16 or bfloat16 @ w_hat.T, and the epilogue on float32 sums."""
    (m, k), halves = x.shape, 1 + (activation in GATED)
    n = q.shape[0] // halves
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    x, wide, step, height = _dense_rows(x), _pitch(k), config["CHUNK_N"], config["CHUNK_M"]
    workspace = _bytes(workspace, forward_workspace(k, activation, config), x.device)
    weight = workspace[: 2 * halves * _weight_rows(activation, config) * wide].view(x.dtype).view(halves, -1, wide)
    sums = workspace[weight.nbytes :].view(torch.float32)
    bias = None if bias is None else bias.view(halves, n)
    for first in range(0, n, step):
        columns = slice(first, min(first + step, n))
        count = columns.stop - first
        chunks = [_decode_rows(q, weight[half], half * n + first, count)[:, :k].T for half in range(halves)]
        if not height:
            product(x, chunks[0], out[:, columns])
            continue
        for start in range(0, m, height):
            rows = slice(start, min(start + height, m))
            total = sums[: halves * (rows.stop - start) * count].view(halves, -1, count)
            for half, chunk in enumerate(chunks):
                product(x[rows], chunk, total[half])
            epilogue(total, out[rows, columns], None if bias is None else bias[:, columns], activation,
                     None if residual is None else residual[rows, columns])  # fmt: skip
    return out


def matmul_backward(dy: torch.Tensor, q: QTensor, config: dict[str, int], workspace: torch.Tensor | None = None) -> torch.Tensor:
    """dy ``[M, N]`` float16 or bfloat16 @ w_hat, ``[M, K]``."""
    (m, n), k = dy.shape, q.shape[1]
    out = torch.empty(m, k, dtype=dy.dtype, device=dy.device)
    if not out.numel():
        return out
    dy, step = _dense_rows(dy), config["CHUNK_K"]
    weight = _bytes(workspace, backward_workspace(n, config), dy.device).view(dy.dtype).view(n, step)
    for first in range(0, k, step):
        chunk = dequantize_range(q, weight[:, : min(step, k - first)], first_column=first)
        product(dy, chunk, out[:, first : first + step])
    return out


def _bytes(workspace: torch.Tensor | None, needed: int, device: torch.device) -> torch.Tensor:
    """uint8 ``[needed]``: the start of the caller's workspace (aligned, contiguous), or a new tensor."""
    return torch.empty(needed, dtype=torch.uint8, device=device) if workspace is None else workspace.view(-1).view(torch.uint8)[:needed]


def _decode_rows(q: QTensor, buffer: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Rows first .. first + count - 1 of the weight, in ``buffer``."""
    lead = first % STEP
    return dequantize_range(q, buffer[: lead + count], first_row=first - lead)[lead:]


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    """x as the library reads it without a copy per chunk."""
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()
