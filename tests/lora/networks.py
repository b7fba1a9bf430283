"""Random LoRAs for live models, spelled as the tools in use spell them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

Names = Callable[[str, str], dict[str, str]]  # (component, path) -> role -> name of the tensor

LINEAR = r".*(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2|proj_in|proj_out|[qkv]_proj|out_proj|fc1|fc2)"
CONVOLUTIONS = r".*(resnets.*conv\d|conv_shortcut|samplers\.0\.conv|conv_in|conv_out)"
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
_ORIGINAL_XL = {
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.1.attentions.1": "input_blocks.5.1",
    "down_blocks.2.attentions.0": "input_blocks.7.1",
    "down_blocks.2.attentions.1": "input_blocks.8.1",
    "mid_block.attentions.0": "middle_block.1",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.attentions.2": "output_blocks.2.1",
    "up_blocks.1.attentions.0": "output_blocks.3.1",
    "up_blocks.1.attentions.1": "output_blocks.4.1",
    "up_blocks.1.attentions.2": "output_blocks.5.1",
}
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def kohya(component: str, path: str) -> dict[str, str]:
    """sd-scripts, for SD1 and SD2."""
    stem = _KOHYA[component] + _full(component, path).replace(".", "_")
    roles = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "alpha": "alpha"}
    return {role: f"{stem}.{name}" for role, name in roles.items()}


def kohya_xl(component: str, path: str) -> dict[str, str]:
    """sd-scripts, for SDXL: the first text encoder has a number too."""
    return {role: name.replace("lora_te_", "lora_te1_") for role, name in kohya(component, path).items()}


def original_xl(component: str, path: str) -> dict[str, str]:
    """sd-scripts, for SDXL, whose UNet it trains in the original layout."""
    if component != "unet":
        return kohya_xl(component, path)
    block = next(block for block in _ORIGINAL_XL if path.startswith(f"{block}."))
    return kohya(component, _ORIGINAL_XL[block] + path.removeprefix(block))


def diffusers(component: str, path: str) -> dict[str, str]:
    """diffusers before it used peft."""
    middle = "lora" if component == "unet" else "lora_linear_layer"
    stem = f"{component}.{_full(component, path)}.{middle}"
    return {"down": f"{stem}.down.weight", "up": f"{stem}.up.weight"}


def old_diffusers(component: str, path: str) -> dict[str, str]:
    """diffusers with attention processors, until 2023."""
    parent, _, name = _full(component, path).removesuffix(".0").rpartition(".")
    parent = f"{parent}.processor" if component == "unet" else parent
    stem = f"{component}.{parent}.{_OLD_TEXT.get(name, name)}_lora"
    return {"down": f"{stem}.down.weight", "up": f"{stem}.up.weight"}


def peft(component: str, path: str) -> dict[str, str]:
    """diffusers of today."""
    stem = f"{component}.{_full(component, path)}"
    return {"down": f"{stem}.lora_A.weight", "up": f"{stem}.lora_B.weight"}


def bare_peft(component: str, path: str) -> dict[str, str]:
    """peft's own files, one a model."""
    stem = f"base_model.model.{_full(component, path)}"
    return {"down": f"{stem}.lora_A.weight", "up": f"{stem}.lora_B.weight"}


def named_adapter(component: str, path: str) -> dict[str, str]:
    """peft's live names, with the adapter's name in them."""
    stem = f"base_model.model.{component}.{_full(component, path)}"
    return {"down": f"{stem}.lora_A.style.weight", "up": f"{stem}.lora_B.style.weight"}


def layers(model: nn.Module, pattern: str) -> Iterator[tuple[str, Tensor]]:
    """Paths and weights of the linear and convolution layers whose whole path the pattern matches."""
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and re.fullmatch(pattern, path):
            yield path, module.weight


def network(
    models: Mapping[str, nn.Module],
    names: Names = kohya,
    *,
    pattern: str = LINEAR,
    rank: int = 3,
    seed: int = 0,
    alpha: float | None = None,
) -> dict[str, Tensor]:
    """A LoRA for every layer that the pattern takes, each change being a third of its weight in size."""
    numbers = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for component, model in models.items():
        for path, weight in layers(model, pattern):
            spelled = names(component, path)
            tensors[spelled["down"]], tensors[spelled["up"]] = factors(weight, rank, numbers)
            if alpha is not None and "alpha" in spelled:
                tensors[spelled["alpha"]] = torch.tensor(alpha)
    return tensors


def factors(weight: Tensor, rank: int, numbers: torch.Generator) -> tuple[Tensor, Tensor]:
    """Down and up for a weight; up of a convolution is one too, with a 1x1 kernel."""
    down = torch.randn(rank, *weight.shape[1:], generator=numbers)
    up = torch.randn(weight.shape[0], rank, *(1 for _ in weight.shape[2:]), generator=numbers)
    change = up.flatten(1) @ down.flatten(1)
    return down, up * (weight.float().norm() / change.norm() / 3)


def _full(component: str, path: str) -> str:
    """Files say `text_model` whether or not the live model does, and not for the projection."""
    if component == "unet" or path.startswith(("text_model.", "text_projection")):
        return path
    return f"text_model.{path}"
