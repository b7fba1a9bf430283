"""Build checkpoints and ControlNets with random weights from the webui's own code and configs.

Default initialisation gives no useful image: layers that training starts at zero hide everything behind
them, and plain LayerNorms in CLIP make the webui divide zero by zero. ``enliven`` fixes both. Nor can img2img
be repeated, which ``settle_encoder`` fixes.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from omegaconf import DictConfig
from torch import nn

REPOSITORIES = ("stable-diffusion-stability-ai", "generative-models")
CONTROLNET_SOURCE = "extensions/sd-webui-controlnet/scripts/cldm.py"


def use_webui(webui: Path) -> None:
    """Make the model code that the webui uses importable."""
    sys.modules["xformers"] = None  # never used here, and its import is slow
    sys.path[:0] = [str(webui / "repositories" / name) for name in REPOSITORIES]


def enliven(module: nn.Module, seed: int, gain: float = 0.6) -> None:
    """Give every zero-initialised layer random weights and every norm a random affine part.

    With weight 1 and bias 0 the mean of CLIP's final LayerNorm is 0, the webui's emphasis divides by that
    mean, and generation ends in NansException.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and not layer.weight.any():
                scale = 1.2 if name.endswith("out.2") else gain  # out.2 of the UNet sets the contrast
                layer.weight.copy_(randn(layer.weight) * scale / math.sqrt(layer.weight[0].numel()))
                if layer.bias is not None:
                    layer.bias.copy_(randn(layer.bias) * 0.05)
        for layer in module.modules():
            if isinstance(layer, nn.GroupNorm | nn.LayerNorm) and layer.weight is not None:
                layer.weight.copy_(1 + 0.1 * randn(layer.weight))
                layer.bias.copy_(0.05 + 0.1 * randn(layer.bias))


def settle_encoder(vae: nn.Module) -> None:
    """Give the latents of an image almost no variance, as in a trained VAE.

    The webui draws them from their distribution before it sets the seed: img2img could not be repeated.
    """
    variance = vae.quant_conv.out_channels // 2  # the first half of the channels is the mean
    with torch.no_grad():
        vae.quant_conv.weight[variance:] = 0
        vae.quant_conv.bias[variance:] = -30  # log of the variance; lower ones are cut off


def build_checkpoint(config: DictConfig, seed: int) -> dict[str, torch.Tensor]:
    """Half precision state dict of a random model of this config."""
    from ldm.util import instantiate_from_config
    from transformers import CLIPTextConfig, CLIPTextModel

    def random_text_model(version: str) -> CLIPTextModel:
        return CLIPTextModel(CLIPTextConfig.from_pretrained(version))

    torch.manual_seed(seed)
    with mock.patch.object(CLIPTextModel, "from_pretrained", random_text_model):
        model = instantiate_from_config(config.model)
    enliven(model.model.diffusion_model, seed)
    enliven(model.first_stage_model, seed + 1)
    settle_encoder(model.first_stage_model)
    enliven(model.conditioner if hasattr(model, "conditioner") else model.cond_stage_model, seed + 2)
    return halved(model)


def build_vae(config: DictConfig, seed: int) -> dict[str, torch.Tensor]:
    """Half precision state dict of a random VAE for checkpoints of this config; its attention can be seen."""
    from ldm.util import instantiate_from_config

    torch.manual_seed(seed)
    vae = instantiate_from_config(config.model.params.first_stage_config)
    enliven(vae, seed)
    settle_encoder(vae)
    with torch.no_grad():
        for part in (vae.encoder, vae.decoder):
            for layer in (part.mid.attn_1.q, part.mid.attn_1.proj_out):
                layer.weight.mul_(8)
    return halved(vae)


def overflowing(vae: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same VAE, but what its decoder makes is NaN in every dtype of the range of float32."""
    key = "decoder.conv_in.weight"
    return vae | {key: vae[key].float().sign() * 3e38}  # infinite from here on, and NaN after the first norm


def build_embedding(widths: dict[str, int], vectors: int, seed: int) -> dict[str, torch.Tensor]:
    """A random textual inversion embedding; ``widths`` are those of its text encoders."""
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.5 * torch.randn(vectors, width, generator=generator) for key, width in widths.items()}


def build_hypernetwork(sizes: Sequence[int], seed: int) -> dict[str | int, Any]:
    """State of a random hypernetwork for contexts of these widths, as the webui saves it."""
    generator = torch.Generator().manual_seed(seed)

    def layers(size: int) -> dict[str, torch.Tensor]:
        hidden = size // 8
        return {
            "linear.0.weight": torch.randn(hidden, size, generator=generator) / math.sqrt(size),
            "linear.0.bias": torch.zeros(hidden),
            "linear.1.weight": 0.4 * torch.randn(size, hidden, generator=generator) / math.sqrt(hidden),
            "linear.1.bias": torch.zeros(size),
        }

    about = {"name": "tiny_hypernetwork", "step": 1, "layer_structure": [1, 0.125, 1]}
    rest = {"activation_func": "linear", "activate_output": False, "is_layer_norm": False}
    return about | rest | {size: (layers(size), layers(size)) for size in sizes}


SD1_CONTROLNET: dict[str, Any] = {
    "attention_resolutions": [1, 2, 4],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "num_heads": 8,
}
SDXL_CONTROLNET: dict[str, Any] = {
    "attention_resolutions": [2, 4],
    "channel_mult": [1, 2, 4],
    "use_linear_in_transformer": True,
    "num_head_channels": 64,
    "num_classes": "sequential",
}


def controlnet_config(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Arguments of a ControlNet for the SD1 or SDXL UNet whose weights have these shapes."""
    config = {
        "in_channels": 4,
        "hint_channels": 3,
        "num_res_blocks": 2,
        "model_channels": shapes["input_blocks.0.0.weight"][0],
        "context_dim": shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_fp16": False,
    }
    if "label_emb.0.0.weight" not in shapes:
        return config | SD1_CONTROLNET

    def depth(block: str) -> int:
        name = re.compile(rf"{block}\.1\.transformer_blocks\.\d+\.norm1\.weight")
        return sum(name.fullmatch(key) is not None for key in shapes)

    depths = [0, depth("input_blocks.4"), depth("input_blocks.7")]
    own = {"transformer_depth": depths, "transformer_depth_middle": depth("middle_block")}
    return config | SDXL_CONTROLNET | own | {"adm_in_channels": shapes["label_emb.0.0.weight"][1]}


def build_controlnet(webui: Path, config: Mapping[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Half precision state dict of a random ControlNet."""
    torch.manual_seed(seed)
    model = load_controlnet_class(webui)(**config)
    enliven(model, seed, gain=0.8)
    amplify_hint(model.input_hint_block, seed + 7)
    return {f"control_model.{key}": value for key, value in halved(model).items()}


def amplify_hint(block: nn.Module, seed: int) -> None:
    """Scale the hint convolutions up: by default, eight of them shrink the hint image to nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                noise = torch.randn(layer.weight.shape, generator=generator)
                layer.weight.copy_(noise * math.sqrt(2.5 / layer.weight[0].numel()))


def load_controlnet_class(webui: Path) -> type[nn.Module]:
    """Load the class of the installed sd-webui-controlnet, with stand-ins for its imports from a webui."""
    union = "scripts.controlnet_core.controlnet_union"
    host_modules = ("modules", "scripts", "scripts.controlnet_core", union)
    spec = importlib.util.spec_from_file_location("controlnet_source", webui / CONTROLNET_SOURCE)
    source = importlib.util.module_from_spec(spec)
    # What is first imported below is forgotten after it, and parts of that cannot be imported twice.
    importlib.import_module("sgm.modules.diffusionmodules.openaimodel")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in host_modules}):
        spec.loader.exec_module(source)
    return source.ControlNet


def halved(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict with floating point values in half precision."""
    return {
        key: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for key, value in model.state_dict().items()
    }
