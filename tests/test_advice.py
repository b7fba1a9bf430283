"""Each reason has one sentence of advice."""

from __future__ import annotations

import pytest

from lib_accel.advice import advice, known_advice


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
        ("no process to hold contests in: [Errno 12] Cannot allocate memory", "Restart the webui"),
        ("no contest can be held: the process ended with 1 before it began", "Restart the webui"),
        ("its weights are on cpu and cuda:0", "--medvram"),
        ("undecided: its residual blocks were not called yet", "Warm up"),
        ("undecided: 3 of 22 calls of residual blocks are measured", "Warm up"),
        ("there is no memory to lay its weights anew", "fewer pictures"),
        ("the host has laid its weights channels last itself", "--opt-channelslast"),
        ("undecided: its attention parts were not called yet", "Warm up"),
        ("undecided: 3 of 32 calls of attention parts are measured", "Warm up"),
        ("somebody else has packed its weights", "nothing to do"),
        ("its weights are torch.float8_e4m3fn", "stay as they are"),
        ("its weights share their memory", "stay as they are"),
        ("sageattention is not installed", "install"),
        ("sage failed: RuntimeError: no kernel image", "Attention to auto"),
        ("77 keys, needs a multiple of 64", "exact"),
        ("something that nobody thought of", "nothing to do"),
    ],
)
def test_a_reason_has_the_advice_that_helps(reason: str, part: str) -> None:
    assert part in advice(reason)


def test_of_what_nobody_thought_of_nothing_is_known() -> None:
    assert known_advice("its residual blocks take 9.00 ms channels first, 7.00 ms channels last") is None
