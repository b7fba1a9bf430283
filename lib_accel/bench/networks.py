"""Seeded LoRAs for whatever UNet is at hand, in kohya's form."""

from __future__ import annotations

import torch
from torch import nn

RANK = 8
SHARE = 0.1  # size of a LoRA's weight change against the weight's own


def random_network(unet: nn.Module, *, seed: int) -> dict[str, torch.Tensor]:
    """State dict of a LoRA on every linear layer and 1x1 convolution of the UNet's transformers.

    It is float32 on the CPU. Each weight changes by about a tenth of its own size. Equal seeds, equal bits.
    """
    source = torch.Generator().manual_seed(seed)
    network: dict[str, torch.Tensor] = {}
    for name, module in unet.named_modules():
        if "attentions" in name and isinstance(module, (nn.Linear, nn.Conv2d)):
            layer = "lora_unet_" + name.replace(".", "_")
            network |= {f"{layer}.{part}": value for part, value in _pair(module.weight, source).items()}
    return network


def _pair(weight: torch.Tensor, source: torch.Generator) -> dict[str, torch.Tensor]:
    (outputs, inputs), tail = weight.shape[:2], weight.shape[2:]
    size = SHARE * weight.detach().float().std().item() / RANK**0.5
    return {
        "lora_down.weight": torch.randn(RANK, inputs, *tail, generator=source),
        "lora_up.weight": torch.randn(outputs, RANK, *[1] * len(tail), generator=source) * size,
        "alpha": torch.tensor(float(RANK)),
    }
