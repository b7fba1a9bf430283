"""A bias of the channels and a residual, added to an image or to tokens."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def added(
    x,
    bias,
    residual,
    out,
    rows,
    columns,
    channels,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program a tile of (rows, columns), which are channels where those come last, else pixels."""
    steps = tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    row = ((program // steps).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (program % steps * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    mask = (row < rows) & (column < columns)
    place = row * columns + column
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        if LAST:
            value += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
        else:
            # An int32, whose remainder is cheap: rows that it does not hold are masked.
            value += tl.load(bias + row.to(tl.int32) % channels, mask=row < rows, other=0.0).to(tl.float32)
    value += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, value, mask=mask)
