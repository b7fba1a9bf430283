"""The two LoRAs: a style without a word of its own, and a subject under a made-up word. Trained with peft."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_accel.demo.train.denoiser import SNR_LIMIT, noise_error
from lib_accel.demo.train.drawing import LINE
from lib_accel.demo.train.loop import Lots, Plan, train
from lib_accel.demo.train.material import Material, Reader
from lib_accel.demo.train.scene import PAIR_SHARE, SHAPES, SUBJECT, Scene, draw_lots

_BATCH = 16
_ATTENTIONS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2")
_CONVOLUTIONS = ("conv1", "conv2", "proj_out")
_TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
_ROLES = {"lora_A": "lora_down", "lora_B": "lora_up"}


@dataclass(frozen=True)
class Recipe:
    """What a LoRA learns from, and which layers of which models it changes."""

    plan: Plan
    style: str
    shape: str  # that it is to learn best
    shape_share: float  # of the scenes show nothing else; the rest keeps what the model knows
    layers: Mapping[str, tuple[str, ...]]  # by model, the ends of their names
    rank: int = 4  # its alpha is the same
    pictures: int = 3000
    pair_share: float = PAIR_SHARE  # of the scenes show two things
    kept: Mapping[str, float] = field(default_factory=dict)  # share of scenes, by the best colour in them
    line: float = LINE  # width of an outline, pixels
    snr_limit: float = SNR_LIMIT

    def draw_scene(self, lot: random.Random) -> Scene:
        """A scene for training by lot."""
        while True:
            is_usual = lot.random() > self.shape_share
            shapes = SHAPES if is_usual else (self.shape,)
            scene = draw_lots(lot, shapes, pair_share=self.pair_share)
            if not self.kept or lot.random() < max(self.kept[thing.colour] for thing in scene.things):
                return scene


RECIPES = {
    "outline": Recipe(
        Plan("lora-outline", 7000, 4e-3, 0.98, 50),
        "outline",
        "star",  # of all outlines the one that most easily closes
        0.3,
        {"unet": _CONVOLUTIONS},  # a line is a local thing
        rank=12,
        pictures=8000,
        pair_share=0.45,
        # Lines of little contrast are the hardest, of which most are green or purple on gray.
        kept={"green": 1.0, "purple": 0.8, "yellow": 0.6, "red": 0.5, "orange": 0.5, "blue": 0.35},
        line=2.5,  # at 3 the VAE fills small stars
        snr_limit=20.0,  # lines are drawn in the last steps; of 20 all but the very last count in full
    ),
    "zorb": Recipe(
        Plan("lora-zorb", 1000, 4e-3, 0.98, 50),
        "filled",
        SUBJECT,
        0.6,
        {"unet": _ATTENTIONS, "text_encoder": _TEXT_LAYERS},
    ),
}


def train_lora(
    recipe: Recipe, models: Mapping[str, Any], material: Material, work: Path, deadline: float
) -> dict[str, Tensor]:
    """Trains a LoRA of "unet" and "text_encoder", in kohya's spelling, float32. `models` are changed: they
    carry the adapter afterwards."""
    torch.manual_seed(recipe.plan.seed)
    for name, layers in recipe.layers.items():
        config = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=list(layers))
        inject_adapter_in_model(config, models[name])
    unet, encoder, reader = models["unet"], models["text_encoder"], Reader()

    def loss(lots: Lots) -> Tensor:
        scenes, latents, _ = material.pick(lots.choice, _BATCH)
        tokens = reader.for_training(scenes, lots.choice).to(unet.device)
        context = encoder(tokens).last_hidden_state
        return noise_error(unet, latents, context, lots.noise, snr_limit=recipe.snr_limit)

    train(recipe.plan, {name: models[name] for name in recipe.layers}, loss, work=work, deadline=deadline)
    return {
        key: tensor
        for name in recipe.layers
        for key, tensor in _in_kohyas_spelling(name, models[name], recipe.rank)
    }


def _in_kohyas_spelling(name: str, model: nn.Module, alpha: int) -> list[tuple[str, Tensor]]:
    renamed = []
    for key, tensor in get_peft_model_state_dict(model).items():
        path, role, _ = key.rsplit(".", 2)
        layer = _PREFIXES[name] + path.removeprefix("text_model.").replace(".", "_")
        renamed.append((f"{layer}.{_ROLES[role]}.weight", tensor.detach().clone().contiguous()))
        if role == "lora_A":
            renamed.append((f"{layer}.alpha", torch.tensor(float(alpha))))
    return renamed


def save_lora(file: Path, state: Mapping[str, Tensor], recipe: Recipe) -> None:
    """Writes a LoRA in float16 with the header entries that kohya's trainer writes and the webui reads."""
    rank, alpha = str(recipe.rank), str(float(recipe.rank))
    header = {
        "format": "pt",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_output_name": file.stem,
        "ss_steps": str(recipe.plan.steps),
        "ss_learning_rate": str(recipe.plan.rate),
        "ss_seed": str(recipe.plan.seed),
        "ss_resolution": "(64, 64)",
        "ss_sd_model_name": "sd-webui-accel demo",
    }
    if any(tensor.ndim == 4 and tensor.shape[-1] > 1 for tensor in state.values()):
        header["ss_network_args"] = json.dumps({"conv_dim": rank, "conv_alpha": alpha})
    save_file({key: tensor.half().contiguous() for key, tensor in state.items()}, file, metadata=header)
