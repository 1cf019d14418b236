"""Floor 3. The ranges of the groups of a tile [outer, repeat, N, G, threads, lanes] of quantize_rows."""
from __future__ import annotations

from .._triton import cuda_arch, jit, tl


@jit
def widen(loaded, COMPUTE: tl.constexpr):
    """The tile in COMPUTE. A bfloat16 is the upper half of a float32; said like this, it costs one instruction"""
    if tl.bfloat16 == loaded.dtype and tl.float32 == COMPUTE:
        x = (loaded.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        x = loaded.to(COMPUTE)
    return x


@jit
def range_of_group(loaded, x, STEPS: tl.constexpr, AFFINE: tl.constexpr):
    """Least value, greatest value, and the bits of the greatest magnitude of each group, [N, G] each; NaN counts as the greatest magnitude.

    A symmetric scheme needs the magnitude alone. The first steps run inside a thread and let NaN through, which takes one instruction.
    """
    PACKED: tl.constexpr = STEPS > 0 and loaded.dtype.primitive_bitwidth == 16
    if AFFINE:
        if cuda_arch() >= 80 and PACKED:
            low = widen(reduce_pairs(loaded, "min.NaN"), tl.float32)
            high = widen(reduce_pairs(loaded, "max.NaN"), tl.float32)
        else:
            low = x
            high = x
            for _ in tl.static_range(STEPS):
                a, b = halves(low)
                low = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
                a, b = halves(high)
                high = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
        most = tl.maximum(tl.abs(low), tl.abs(high), propagate_nan=tl.PropagateNan.ALL)
        magnitude = max_of_group(most.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        low = min_of_group(low)
        high = max_of_group(high)
    else:
        if cuda_arch() >= 86 and PACKED:
            most = widen(reduce_pairs(loaded, "max.NaN.xorsign.abs"), tl.float32)  # its sign is without meaning
        else:
            most = tl.abs(x)
            for _ in tl.static_range(STEPS):
                a, b = halves(most)
                most = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
        magnitude = max_of_group(most.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        high = magnitude.to(tl.float32, bitcast=True)
        low = -high
    return low, high, magnitude


@jit
def reduce_pairs(loaded, OPERATION: tl.constexpr):
    """A tile of 16-bit floats to [1, 1, N, G, threads, 2] by a PTX instruction for two pairs, as far as a thread holds more."""
    ASM: tl.constexpr = OPERATION + (".bf16x2 $0, $1, $2;" if tl.bfloat16 == loaded.dtype else ".f16x2 $0, $1, $2;")
    PAIRS: tl.constexpr = loaded.shape[0] * loaded.shape[1] * loaded.shape[5] // 2
    most = tl.permute(loaded, (2, 3, 4, 0, 1, 5))
    for i in tl.static_range(1, 16):
        if PAIRS >> i > 0:
            both = tl.reshape(most, (loaded.shape[2], loaded.shape[3], loaded.shape[4], 2, PAIRS >> i, 2))
            a, b = tl.split(tl.permute(both, (0, 1, 2, 4, 5, 3)))
            most = tl.inline_asm_elementwise(ASM, "=r,r,r", args=[a, b], dtype=loaded.dtype, is_pure=True, pack=2)
    return tl.reshape(most, (1, 1, loaded.shape[2], loaded.shape[3], loaded.shape[4], 2))


@jit
def halves(x):
    """The even and the odd lanes of a tile."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1], x.shape[2], x.shape[3], x.shape[4], x.shape[5] // 2, 2)))


@jit
def max_of_group(x):
    """[outer, repeat, N, G, threads, lanes] -> [N, G]; registers first, so that one value per thread crosses the warp."""
    return tl.max(tl.max(tl.max(tl.max(x, 5), 0), 0), 2)


@jit
def min_of_group(x):
    """[outer, repeat, N, G, threads, lanes] -> [N, G]."""
    return tl.min(tl.min(tl.min(tl.min(x, 5), 0), 0), 2)
