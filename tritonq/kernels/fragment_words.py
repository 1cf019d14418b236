"""Floor 3. Steps of 64 rows and 128 columns from x to words of layout ``frag``, each word in one thread from load to store.

The inverse of :mod:`fragment`, for codes of BITS = 2, 4 or 8 bits, U = 8 / BITS. Tiles are those of words_of_finite, [outer, repeat, N, G,
threads, lanes], here made of the axes of the layout:

    row = 16 warp + 8 h + g        column = 8 (U (4 b + w) + u) + (lane = 2 t + e)

A thread holds one (warp, g, w) and all else: h, u, the 4 / U values of b, and eight lanes, which are 2 BITS whole words. Where a group is
longer than a step, SPANS of them lie side by side, for as many times the threads.
"""
from __future__ import annotations

from .._triton import cuda_arch, jit, tl


@jit
def load_fragments(x_ptr, x_row, x_col, BITS: tl.constexpr, WIDTH: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr):
    """The tile from x_ptr on, with groups of WIDTH columns, 8 U or a power of two more; of all SPANS * 128 where SPANS is not 1.

    WIDE: offsets need 64 bits.
    """
    U: tl.constexpr = 8 // BITS
    B: tl.constexpr = 4 // U
    OUTER: tl.constexpr = WIDTH // (32 * U) if WIDTH > 32 * U else 1  # of the b and the w, those that lie in one group
    INNER: tl.constexpr = 4 if WIDTH > 32 * U else WIDTH // (8 * U)
    # A matrix of addresses with a row for each eight lanes: threads are the last 128 SPANS of its rows, registers the others.
    run = tl.arange(0, 1024 * SPANS)
    row = run // 32 % 4 * 16 + run // (128 * SPANS) % 2 * 8 + run // 4 % 8
    column = run // (256 * SPANS * U) * (32 * U) + run // 128 % SPANS * 128 + run % 4 * (8 * U) + run // (256 * SPANS) % U * 8
    lane = tl.arange(0, 8)
    if WIDE:
        row, column, lane = row.to(tl.int64), column.to(tl.int64), lane.to(tl.int64)
    loaded = tl.load(x_ptr + (row * x_row + column * x_col)[:, None] + (lane * x_col)[None, :])
    # b, b in a group, u, h, span, warp, g, w, w in a group, lane
    loaded = tl.reshape(loaded, (B // OUTER, OUTER, U, 2, SPANS, 4, 8, 4 // INNER, INNER, 8))
    loaded = tl.permute(loaded, (1, 2, 5, 3, 6, 0, 7, 4, 8, 9))
    return tl.reshape(loaded, (OUTER, U, 64, B // OUTER * (4 // INNER), SPANS * INNER, 8))


@jit
def _axes(raw):
    """A tile as [b in a group, u, warp, h, g, groups, w in a group, t, e]."""
    return tl.reshape(raw, (raw.shape[0], raw.shape[1], 4, 2, 8, raw.shape[3], raw.shape[4], 4, 2))


@jit
def fields_of_integers(raw, WORD: tl.constexpr):
    """Tile -> [b in a group, (warp, g), groups, w in a group, t, WORD codes], the lowest first: for FIELDS of words_of_finite."""
    fields = tl.permute(_axes(raw), (0, 2, 4, 5, 6, 7, 8, 1, 3))
    return tl.reshape(fields, (raw.shape[0], 32, raw.shape[3], raw.shape[4], 4, WORD))


@jit
def fields_of_floats(raw, WORD: tl.constexpr):
    """The same of 8-bit floats, and of levels in the order that :func:`relabel` takes."""
    fields = tl.permute(_axes(raw), (0, 2, 4, 5, 6, 7, 3, 1, 8))
    return tl.reshape(fields, (raw.shape[0], 32, raw.shape[3], raw.shape[4], 4, WORD))


@jit
def store_fragments(at, words, w_row, BITS: tl.constexpr, SPANS: tl.constexpr):
    """Words [b in a group, (warp, g), groups, w in a group, t] to those from ``at`` on, where they lie by span, b, warp, g, t, w.

    w_row: of the other layout, whose steps are no whole.
    """
    OUTER: tl.constexpr = words.shape[0]
    INNER: tl.constexpr = words.shape[3] // SPANS
    words = tl.reshape(words, (OUTER, 32, BITS // 2 // OUTER, 4 // INNER, SPANS, INNER, 4))
    words = tl.reshape(tl.permute(words, (4, 2, 0, 1, 6, 3, 5)), (256 * BITS * SPANS,))
    tl.store(at + tl.arange(0, 256 * BITS * SPANS), words.to(tl.int32, bitcast=True))


@jit
def relabel(words, LABELS: tl.constexpr):
    """The stored nibbles of words of codes, where nibbles 0 to 3 become 0, 2, 4, 6 and nibbles 4 to 7 become 1, 3, 5, 7.

    LABELS: of :func:`label_table`.
    """
    if cuda_arch() >= 80:
        labels = tl.inline_asm_elementwise(LABELS[1], "=r,r", args=[words], dtype=tl.uint32, is_pure=True, pack=1)
    else:
        labels = tl.zeros_like(words)
        for i in tl.static_range(8):
            code = (words >> (4 * i)) & 15
            label = (tl.full(words.shape, LABELS[0], tl.uint64) >> (4 * code).to(tl.uint64)).to(tl.uint32) & 15
            labels |= label << (8 * i if i < 4 else 8 * i - 28)
    return labels


def label_table(stored: list[int]) -> tuple[int, str]:
    """The stored nibble of each of 16 codes for :func:`relabel`: as a number, the first lowest, and as PTX.

    ``prmt`` looks up four nibbles in eight bytes, and gives the sign of a byte, 0 here, for a nibble of 8 or more. Those are found by their
    complement, among the other eight bytes, backwards.
    """
    def table(labels: list[int]) -> list[str]:
        return [hex(int.from_bytes(bytes(labels[i : i + 4]), "little")) for i in (0, 4)]

    (p, q), (r, s) = table(stored[:8]), table(stored[:7:-1])
    text = f"""{{
.reg .b32 p, q, r, s, n, a, b, c, d;
mov.b32 p, {p}; mov.b32 q, {q}; mov.b32 r, {r}; mov.b32 s, {s};
not.b32 n, $1; prmt.b32 a, p, q, $1; prmt.b32 b, r, s, n;
shr.u32 c, $1, 16; shr.u32 d, n, 16; prmt.b32 c, p, q, c; prmt.b32 d, r, s, d;
or.b32 a, a, b; or.b32 c, c, d; shl.b32 c, c, 4; or.b32 $0, a, c;
}}"""
    return sum(label << 4 * code for code, label in enumerate(stored)), text
