"""A linear layer and the gated activation behind it, of which only the result is written."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product_gated(
    x,
    weight,
    bias,
    out,
    rows,
    inner,
    channels,
    IS_EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
):
    """One program a tile of the result (rows, inner); x is (rows, channels), weight (2 * inner, channels).

    The weight's first half makes the values, the second the gates. IS_EVEN: channels divide by DEPTH.
    """
    # BAND tiles of rows lie side by side in the order of programs: those that run at one time read few
    # different rows and columns, which stay in the L2 cache.
    down = tl.cdiv(rows, ROWS)
    across = tl.cdiv(inner, COLUMNS)
    program = tl.program_id(0)
    first = program // (BAND * across) * BAND
    high = tl.minimum(down - first, BAND)
    place = program % (BAND * across)
    row = (first + place % high) * ROWS + tl.arange(0, ROWS)
    column = place // high * COLUMNS + tl.arange(0, COLUMNS)

    depth = tl.arange(0, DEPTH)
    # Rows and columns beyond the end are read from the beginning, which needs no mask, and are not written.
    left_at = x + (row % rows).to(tl.int64)[:, None] * channels + depth[None, :]
    value_at = weight + (column % inner).to(tl.int64)[None, :] * channels + depth[:, None]
    gate_at = value_at + inner * channels
    value = tl.zeros((ROWS, COLUMNS), tl.float32)
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, channels, DEPTH):
        if IS_EVEN:
            left = tl.load(left_at)
            value_part = tl.load(value_at)
            gate_part = tl.load(gate_at)
        else:
            rest = channels - start
            left = tl.load(left_at, mask=depth[None, :] < rest, other=0.0)
            value_part = tl.load(value_at, mask=depth[:, None] < rest, other=0.0)
            gate_part = tl.load(gate_at, mask=depth[:, None] < rest, other=0.0)
        value = tl.dot(left, value_part, value)
        gate = tl.dot(left, gate_part, gate)
        left_at += DEPTH
        value_at += DEPTH
        gate_at += DEPTH

    if bias is not None:
        known = column < inner
        value += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias + inner + column, mask=known, other=0.0).to(tl.float32)[None, :]
    value *= gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))  # 1 / sqrt(2)
    mask = (row[:, None] < rows) & (column[None, :] < inner)
    tl.store(out + row.to(tl.int64)[:, None] * inner + column[None, :], value, mask=mask)
