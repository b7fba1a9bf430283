"""A half times the GELU of the other half, over the last dimension."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gated(x, out, rows, inner, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program a tile of the result (rows, inner); x is (rows, 2 * inner), values first, gates after."""
    steps = tl.cdiv(inner, COLUMNS)
    program = tl.program_id(0)
    row = ((program // steps).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (program % steps * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    mask = (row < rows) & (column < inner)
    here = x + row * (2 * inner) + column
    value = tl.load(here, mask=mask, other=0.0)
    gate = tl.load(here + inner, mask=mask, other=0.0).to(tl.float32)
    gate = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))  # torch's order; 1 / sqrt(2)
    # torch rounds the GELU to the dtype before it multiplies.
    gate = gate.to(value.dtype).to(tl.float32)
    tl.store(out + row * inner + column, value.to(tl.float32) * gate, mask=mask)
