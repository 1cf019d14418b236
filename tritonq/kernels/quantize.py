"""Floor 3. Quantize, scale and pack: which body takes a scheme, with which tiles, and its launch.

Two bodies. ``quantize_rows``: groups that lie in one row, each read once and held in registers. ``quantize_area``: every other
geometry (2-D blocks, columns, very long or odd groups), read twice, the second time from cache.
A scale over the whole tensor (``tensor``, nvfp4's second level) needs the range of all elements before the first code:
programs of one launch cannot wait for each other without a grid-wide barrier, so ``range_partials`` runs first.
"""
from __future__ import annotations

import torch

from .._triton import triton
from ..scheme import Scheme
from .constants import MAX_GRID_Y, carrier, encode_constants, next_power_of_two
from .quantize_area import quantize_area
from .quantize_rows import quantize_rows
from .ranges import range_partials
from .short_cuts import cells_tensor, short_cuts

# Columns of a group that quantize_rows holds in registers, of 512 threads, or 256 that hold twice as much.
LONGEST_ROW_GROUP = 32768
# Most programs of range_partials: each of them is read again by every program of the second launch.
MAX_PARTIALS = 1024
# Bytes of x that a thread of quantize_rows holds; twice as many for symmetric integers without masks, which take few registers.
THREAD_BYTES = 128
# Warps of quantize_rows that share what each of its programs reads of range_partials.
SHARING_WARPS = 4


def word_codes(scheme: Scheme, n: int, k: int) -> int:
    """Codes per stored word: 32 bits where rows and groups hold whole ones, else the fewest codes that fill bytes."""
    fmt = scheme.format
    wide = 32 // fmt.bits
    columns = scheme.group_shape(n, k)[1]
    whole = fmt.row_bytes(k) % 4 == 0 and (columns % wide == 0 or columns >= k)
    return wide if whole and (fmt.bits in (2, 4) or fmt.bits == 8 and not fmt.is_integer) else fmt.unit


def thread_elements(scheme: Scheme, group: int, k: int, itemsize: int) -> int:
    """How many elements a thread of quantize_rows holds, unless a run of thread_shape is longer."""
    few = scheme.format.is_integer and not scheme.format.affine and scheme.group_shape(1, k)[1] == group and k % group == 0
    return THREAD_BYTES * (2 if few else 1) // itemsize


def thread_shape(group: int, columns: int, word: int, bits: int, itemsize: int, elements: int) -> dict[str, int]:
    """LANES neighbours per 16-byte load, REPEAT loads side by side for a 16-byte store, OUTER such runs to hold that many elements."""
    lanes = min(16 // itemsize, columns & -columns, group)
    run = min(max(128 // bits if bits != 3 else 8, word, lanes), group)
    return {"LANES": lanes, "STEPS": lanes.bit_length() - 1, "REPEAT": run // lanes, "OUTER": min(max(elements // run, 1), group // run)}


def row_group(scheme: Scheme, n: int, k: int) -> int | None:
    """The power of two that quantize_rows holds per group, None where the geometry needs quantize_area."""
    if not scheme.has_scale or k == 0 or scheme.granularity.kind == "tensor":
        return None
    group_rows, columns = scheme.group_shape(n, k)
    columns = min(columns, k)
    group = max(next_power_of_two(columns), word_codes(scheme, n, k))
    if group_rows > 1 or group > LONGEST_ROW_GROUP or (columns < k and columns % scheme.format.unit):
        return None
    return group


def config(scheme: Scheme, n: int, k: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes. quantize_rows: one warp for 16-bit dtypes where that holds a group, so that nothing waits for a barrier; as many
    groups side by side as divide the row, so that nothing is masked."""
    columns = min(scheme.group_shape(n, k)[1], k)
    if group := row_group(scheme, n, k):
        groups = -(-k // columns)
        warps = SHARING_WARPS if scheme.recipe == "nv" else 1
        elements = 32 * thread_elements(scheme, group, k, 2)
        room = max(warps * elements // group, 1)
        block_g = min(groups & -groups, room)
        if block_g * group < 256:
            block_g = min(next_power_of_two(groups), room)
        warps = max(group // elements, warps) * (dtype.itemsize // 2)
        # So many rows that each thread has a run of its own, if need be rows that are not there: codes of one word in several threads
        # are right, but Triton before 3.8 adds up other lanes.
        shape = thread_shape(group, columns, word_codes(scheme, n, k), scheme.format.bits, dtype.itemsize, elements // 32)
        filled = 32 * warps * shape["LANES"] * shape["REPEAT"] // (block_g * group)
        block_n = min(max(next_power_of_two(n), filled), max(room // block_g, 1))
        return {"BLOCK_N": block_n, "BLOCK_G": block_g, "num_warps": warps}
    if scheme.has_scale and columns == 1 and scheme.group_shape(n, k)[0] > 1:
        return {"BLOCK_N": 16, "BLOCK_K": 64, "num_warps": 4}
    block_k = min(max(next_power_of_two(columns), scheme.format.unit, 16), 256)
    return {"BLOCK_N": min(next_power_of_two(n), 1024 // block_k), "BLOCK_K": block_k, "num_warps": 4}


def launch(x: torch.Tensor, scheme: Scheme, config: dict[str, int]) -> tuple[torch.Tensor, ...]:
    """Quantize ``x`` ``[N, K]``, N and K at least 1: (packed, scale, zero_point or None, second_scale or None), scales plain for ``dq``."""
    n, k = x.shape
    fmt, device = scheme.format, x.device
    row_bytes = fmt.row_bytes(k)
    packed = torch.empty(n, row_bytes, dtype=torch.uint8, device=device)
    scale = zero_point = second = None
    groups = 1
    if scheme.has_scale:
        shape = scheme.scale_shape(n, k)
        groups = shape[1]
        scale = torch.empty(shape, dtype=scheme.scale_format(x.dtype).dtype, device=device)
        if fmt.affine:
            zero_point = torch.empty(shape, dtype=scheme.zero_dtype(x.dtype), device=device)
    constants = encode_constants(scheme, x.dtype)
    low = high = None
    partials = 0
    if scheme.recipe == "nv" or scheme.granularity.kind == "tensor":
        partials = min(triton.cdiv(n, 16) * triton.cdiv(k, 256), MAX_PARTIALS)
        low, high = torch.empty(2, partials, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=device)
        range_partials[(partials,)](x, low, high, n, k, x.stride(0), x.stride(1), partials, COMPUTE=constants["COMPUTE"],
                                    BLOCK_N=16, BLOCK_K=256, enable_fp_fusion=False)  # fmt: skip
    if group := row_group(scheme, n, k):
        word = word_codes(scheme, n, k)
        columns = scheme.group_shape(n, k)[1] if groups > 1 else group
        words = packed.view(torch.int32) if word * fmt.bits == 32 else packed
        if scheme.recipe == "nv":
            second = torch.empty((), dtype=torch.float32, device=device)
        cuts = short_cuts(scheme, x.dtype)
        cells = cuts["CELLS"] and cells_tensor(scheme, x.dtype, device)
        tiles = triton.cdiv(n, config["BLOCK_N"])
        deep = triton.cdiv(tiles, MAX_GRID_Y)
        rows = (tiles + deep) * config["BLOCK_N"]
        span = (groups + config["BLOCK_G"]) * group  # of a row with its padding, in elements
        span = rows * max(x.stride(0), span) + span * x.stride(1)
        covered = n % config["BLOCK_N"] == groups % config["BLOCK_G"] == tiles % deep == 0
        quantize_rows[triton.cdiv(groups, config["BLOCK_G"]), triton.cdiv(tiles, deep), deep](
            x, words, carrier(scale), zero_point, low, high, second, cells,
            n, k, groups, words.shape[1], x.stride(0), x.stride(1), partials,
            GROUP=group, COLUMNS=columns, WORD=word, FULL=covered and columns == group and k == groups * columns,
            **thread_shape(group, columns, word, fmt.bits, x.dtype.itemsize, thread_elements(scheme, group, k, x.dtype.itemsize)),
            RAGGED=k % word != 0, WIDE=span >= 2**31,
            TWO_LEVEL=scheme.recipe == "nv", PARTIALS=next_power_of_two(partials),
            **cuts, **constants, **config, enable_fp_fusion=False,
        )  # fmt: skip
        return packed, scale, zero_point, second
    group_rows, group_columns = scheme.group_shape(n, k) if scheme.has_scale else (n, k)
    if not scheme.has_scale or scheme.granularity.kind == "tensor":
        reduce, area_rows, area_columns = "tensor" if scheme.has_scale else "none", config["BLOCK_N"], config["BLOCK_K"]
    elif group_rows == 1:
        reduce, area_rows, area_columns = "row", config["BLOCK_N"], group_columns * fmt.unit
    elif group_columns == 1:
        reduce, area_rows, area_columns = "column", group_rows, config["BLOCK_K"]
    else:
        reduce, area_rows, area_columns = "block", group_rows, group_columns * fmt.unit
    grid = (triton.cdiv(n, area_rows) * triton.cdiv(k, area_columns),)
    quantize_area[grid](
        x, packed, carrier(scale), zero_point, low, high, n, k, groups, row_bytes, x.stride(0), x.stride(1), partials,
        group_rows, group_columns, area_rows, area_columns, REDUCE=reduce, PARTIALS=next_power_of_two(partials), UNIT=fmt.unit,
        **constants, **config, enable_fp_fusion=False,
    )  # fmt: skip
    return packed, scale, zero_point, second
