"""Which parts of a checkpoint our functions have computed, as code in our server counts them."""

from __future__ import annotations

import json
from collections.abc import Sequence

# What a picture may demand to have run, and the class of the modules that we stand in for.
PARTS = {
    "unet": "TimestepEmbedSequential",
    "decoder": "Decoder",
    "encoder": "Encoder",
    "clip": "CLIPEncoderLayer",
    "open_clip": "ResidualAttentionBlock",
}

# The engine's two ways to run a unit, alone and within a model that is run as a whole, are replaced once, and
# from then on count what they gave a result for.
COUNT = """
import collections
from lib_accel import extension
engine = extension._engine
if 'ran' not in store:
    def counting(unit, module, inputs, inner=engine._run_unit):
        result = inner(unit, module, inputs)
        store['ran'][type(module).__name__] += result is not None
        return result
    engine._run_unit = counting
    launching = engine._launching
    def counting_whole(model, *args, inner=launching.whole, **kwargs):
        outcome = inner(model, *args, **kwargs)
        if outcome.is_done:
            units = engine._bindings._frames[model].units
            store['ran'].update(type(module).__name__ for module in units)
        return outcome
    launching.whole = counting_whole
store['ran'] = collections.Counter()
"""
TELL = "import json; print(json.dumps(store['ran']))"


def problems(wanted: Sequence[str], told: str) -> list[str]:
    """Parts that should have run directly and did not; ``told`` is what TELL printed."""
    ran = json.loads(told)
    return [f"no {part} ran directly" for part in wanted if not ran.get(PARTS[part])]
