"""Each reason has one sentence of advice."""

from __future__ import annotations

import pytest

from lib_accel.advice import advice


@pytest.mark.parametrize(
    ("reason", "part"),
    [
        ("weights are stored in fp8", "FP8 weight"),
        ("--upcast-sampling changes the dtypes of norms", "--upcast-sampling"),
        ("HyperTile is on", "Hypertile"),
        ("found tomesd.patch.make_tome_block.<locals>.ToMeBlock where a block is expected", "Token merging"),
        ("a hypernetwork is active", "hypernetwork"),
        ("Conv2d has a forward hook", "disable that extension"),
        ("attn2: CrossAttention has a forward of its own: f of an_extension", "disable the extension"),
        ("BasicTransformerBlock has a _forward of its own: UnetHook.hook of scripts.hook", "ControlNet unit"),
        ("AttnBlock.forward was replaced by doubled of an_extension", "disable the extension"),
        ("UNetModel.forward had been replaced before us", "restart the webui"),
        ("failed: RuntimeError: something", "a fault of this extension"),
        ("failed: OutOfMemoryError: CUDA out of memory", "smaller"),
        ("the option code asks for the host's own blocks", "auto"),
        ("the extension was updated (from 0.1.0): restart the webui", "restart the webui"),
        ("something that nobody thought of", "nothing to do"),
    ],
)
def test_a_reason_has_the_advice_that_helps(reason: str, part: str) -> None:
    assert part in advice(reason)
