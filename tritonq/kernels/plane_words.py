"""Floor 3. Steps of 32 rows and 256 columns from x to words of layout ``ksplit``, each word in one thread from load to store.

For codes of BITS = 2, 4 or 8 bits, P = 16 / BITS planes of J = 2 BITS runs of eight columns. Tiles are those of words_of_finite, [outer,
repeat, N, G, threads, lanes]:

    column = 8 (J plane + run) + lane

A thread holds every plane of one run, and the rows that 128 threads do not cover: four, two or one. Two of the layout's words, those of
neighbouring lanes, are one word here. Where a group is longer than a step, SPANS of them lie side by side, for as many times the threads.
"""
from __future__ import annotations

from .._triton import jit, tl


@jit
def load_planes(x_ptr, x_row, x_col, BITS: tl.constexpr, WIDTH: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr):
    """The tile from x_ptr on, with groups of WIDTH columns, 8 or a power of two more; of all SPANS * 256 where SPANS is not 1.

    WIDE: offsets need 64 bits.
    """
    P: tl.constexpr = 16 // BITS
    J: tl.constexpr = 2 * BITS
    OUTER: tl.constexpr = WIDTH // (8 * J) if WIDTH > 8 * J else 1  # of the planes and the runs, those that lie in one group
    INNER: tl.constexpr = J if WIDTH > 8 * J else WIDTH // 8
    # A matrix of addresses with a row for each eight lanes: threads are the last 128 SPANS of its rows, registers the others.
    number, lane = tl.arange(0, 1024 * SPANS), tl.arange(0, 8)
    row = number // (J * SPANS) % 32
    column = number // (32 * J * SPANS) * (8 * J) + number // J % SPANS * 256 + number % J * 8
    if WIDE:
        row, column, lane = row.to(tl.int64), column.to(tl.int64), lane.to(tl.int64)
    loaded = tl.load(x_ptr + (row * x_row + column * x_col)[:, None] + (lane * x_col)[None, :])
    # plane, plane in a group, row, span, run, run in a group, lane
    loaded = tl.permute(tl.reshape(loaded, (P // OUTER, OUTER, 32, SPANS, J // INNER, INNER, 8)), (1, 2, 0, 4, 3, 5, 6))
    return tl.reshape(loaded, (OUTER, 1, 32, P // OUTER * (J // INNER), SPANS * INNER, 8))


@jit
def fields_of_planes(raw, WORD: tl.constexpr):
    """Tile -> [1, rows, runs, runs in a group, 4, WORD codes], the lowest first: for FIELDS of words_of_finite."""
    OUTER: tl.constexpr = raw.shape[0]
    P: tl.constexpr = WORD // 2
    RUNS: tl.constexpr = raw.shape[3] * OUTER // P
    fields = tl.reshape(raw, (OUTER, 32, P // OUTER, RUNS, raw.shape[4], 4, 2))
    return tl.reshape(tl.permute(fields, (1, 3, 4, 5, 6, 2, 0)), (1, 32, RUNS, raw.shape[4], 4, WORD))


@jit
def store_planes(at, words, w_row, BITS: tl.constexpr, SPANS: tl.constexpr):
    """Words [1, rows, runs, runs in a group, 4] to the blocks from ``at`` on, whose rows are ``w_row`` words apart."""
    words = tl.reshape(words, (32, 8 * BITS * SPANS)).to(tl.int32, bitcast=True)
    at += tl.arange(0, 32).to(tl.int64)[:, None] * w_row
    tl.store(at + tl.arange(0, 8 * BITS * SPANS)[None, :], words)
