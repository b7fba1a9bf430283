"""LoRAs as stock diffusers has them: peft adapters beside each layer, or merged by `fuse_lora`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lib_accel.bench.quiet import quiet

# A file's path or a state dict, and its scale.
Network = tuple[str | Mapping[str, torch.Tensor], float]


def load(pipe: Any, networks: Sequence[Network]) -> None:
    """Loads the networks as adapters and activates them all; none of ours may be merged meanwhile."""
    with quiet():
        # peft looks for a name anywhere in a key, and would find "n1" in "attn1" and "style1" in "style10".
        names = [f"style{number:03}" for number in range(len(networks))]
        for name, (source, _) in zip(names, networks, strict=True):
            loaded = dict(source) if isinstance(source, Mapping) else source
            pipe.load_lora_weights(loaded, adapter_name=name)
        if names:
            pipe.set_adapters(names, [scale for _, scale in networks])


def fuse(pipe: Any) -> None:
    """Merges the active adapters into the weights and drops them, which is as fast as stock gets."""
    with quiet():
        pipe.fuse_lora()
        pipe.unload_lora_weights()


def unload(pipe: Any) -> None:
    """Takes all adapters off: the layers are the plain ones again, with the bits that they had."""
    with quiet():
        pipe.unload_lora_weights()
