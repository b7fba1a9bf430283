"""Fused weights make the picture that diffusers makes with peft's adapters, for the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_accel.lora.formats import read_network
from lib_accel.lora.fusion import Fuser, Wanted
from tests.lora import models as make
from tests.lora import networks as spell

TOLERANCE = 1e-5
OLD_LAYERS = r".*(attn\d\.(to_q|to_k|to_v|to_out\.0)|self_attn\.\w+_proj)"  # all that the old form has
UNETS = [make.sd1_unet, make.sd2_unet, make.inpaint_unet]
SPELLINGS = [
    (spell.kohya, spell.LINEAR),
    (spell.kohya, spell.CONVOLUTIONS),
    (spell.diffusers, spell.LINEAR),
    (spell.diffusers, spell.CONVOLUTIONS),
    (spell.old_diffusers, OLD_LAYERS),
    (spell.peft, spell.LINEAR),
    (spell.peft, spell.CONVOLUTIONS),
]


def sd_parts(unet: Callable[[], Any] = make.sd1_unet) -> dict[str, nn.Module]:
    return {"unet": unet(), "text_encoder": make.text_encoder()}


def sdxl_parts() -> dict[str, nn.Module]:
    second = make.second_text_encoder()
    return {"unet": make.sdxl_unet(), "text_encoder": make.text_encoder(), "text_encoder_2": second}


def pipeline(parts: dict[str, nn.Module]) -> Any:
    """diffusers' own pipeline of these parts, as far as loading a LoRA needs one."""
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    absent: dict[str, Any] = {"vae": None, "tokenizer": None, "scheduler": scheduler}
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(**parts, **absent, tokenizer_2=None)
    absent |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, **absent)


def outcome(parts: dict[str, nn.Module]) -> list[Tensor]:
    """What each part gives for its fixed input."""
    return [make.picture(part) if name == "unet" else make.text_states(part) for name, part in parts.items()]


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest relative difference of any part."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


def by_peft(new: Callable[[], dict[str, nn.Module]], source: dict[str, Tensor] | Path) -> list[Tensor]:
    parts = new()
    pipe = pipeline(parts)
    pipe.load_lora_weights(dict(source) if isinstance(source, dict) else str(source))
    return outcome(parts)


def by_us(new: Callable[[], dict[str, nn.Module]], source: dict[str, Tensor] | Path) -> list[Tensor]:
    parts = new()
    Fuser(parts).fuse([Wanted(read_network(source), 1.0, 1.0)])
    return outcome(parts)


@pytest.mark.parametrize("unet", UNETS)
@pytest.mark.parametrize(("names", "pattern"), SPELLINGS)
def test_picture_is_that_of_peft(unet: Callable[[], Any], names: spell.Names, pattern: str) -> None:
    def new() -> dict[str, nn.Module]:
        return sd_parts(unet)

    tensors = spell.network(new(), names, pattern=pattern)
    adapted = by_peft(new, tensors)
    assert distance(by_us(new, tensors), adapted) < TOLERANCE
    assert distance(outcome(new()), adapted) > 0.1


@pytest.mark.parametrize("names", [spell.kohya_xl, spell.original_xl, spell.diffusers, spell.peft])
def test_picture_of_sdxl_is_that_of_peft(names: spell.Names) -> None:
    tensors = spell.network(sdxl_parts(), names)
    adapted = by_peft(sdxl_parts, tensors)
    assert distance(by_us(sdxl_parts, tensors), adapted) < TOLERANCE
    assert distance(outcome(sdxl_parts()), adapted) > 0.1


def test_alphas_weaken_as_in_peft() -> None:
    tensors = spell.network(sd_parts(), spell.kohya, alpha=0.5)
    assert distance(by_us(sd_parts, tensors), by_peft(sd_parts, tensors)) < TOLERANCE


def test_layers_may_differ_in_rank_and_alpha_as_in_peft() -> None:
    # Not for attention: diffusers 0.42 loses the alphas of its layers where a file has several.
    unet = {"unet": make.sd1_unet()}
    tensors = spell.network(unet, spell.kohya, pattern=r".*net\.2", rank=2, alpha=1.0)
    tensors |= spell.network(unet, spell.kohya, pattern=r".*proj_in", rank=5, alpha=3.0)
    assert distance(by_us(sd_parts, tensors), by_peft(sd_parts, tensors)) < TOLERANCE


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 6},
        {"lora_alpha": 1, "alpha_pattern": {"attn1.to_q": 9, "down_blocks.0.attentions.1.proj_in": 4}},
        {"lora_alpha": 2, "use_rslora": True},
    ],
)
def test_alphas_in_the_header_count_as_in_peft(tmp_path: Path, settings: dict[str, Any]) -> None:
    tensors = spell.network({"unet": make.sd1_unet()}, spell.peft)
    layers = {name.removeprefix("unet."): tensor for name, tensor in tensors.items()}
    targets = [name.removesuffix(".lora_A.weight") for name in layers if name.endswith("lora_A.weight")]
    settings = {"r": 3, "target_modules": targets, **settings}
    StableDiffusionPipeline.save_lora_weights(tmp_path, layers, unet_lora_adapter_metadata=settings)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    assert distance(by_us(sd_parts, file), by_peft(sd_parts, file)) < TOLERANCE
    assert distance(by_us(sd_parts, tensors), by_peft(sd_parts, file)) > 0.01


@pytest.mark.parametrize("names", [spell.bare_peft, spell.named_adapter])
def test_names_of_peft_itself_mean_the_same(names: spell.Names) -> None:
    unet = {"unet": make.sd1_unet()}
    assert (
        distance(
            by_us(sd_parts, spell.network(unet, names)), by_us(sd_parts, spell.network(unet, spell.peft))
        )
        == 0
    )


def test_half_precision_file_is_read_as_peft_reads_it(tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in spell.network(sd_parts()).items()}
    file = tmp_path / "style.safetensors"
    save_file(tensors, file)
    assert distance(by_us(sd_parts, file), by_peft(sd_parts, file)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_networks_with_scales_are_those_of_peft() -> None:
    parts, scales = sd_parts(), (0.75, -0.5)
    both = [spell.network(parts, spell.kohya, rank=rank, seed=rank) for rank in (2, 4)]
    pipe = pipeline(parts)
    for name, tensors in zip("ab", both, strict=True):
        pipe.load_lora_weights(dict(tensors), adapter_name=name)
    pipe.set_adapters(["a", "b"], list(scales))
    ours = sd_parts()
    wanted = zip(both, scales, strict=True)
    Fuser(ours).fuse([Wanted(read_network(tensors), scale, scale) for tensors, scale in wanted])
    assert distance(outcome(ours), outcome(parts)) < TOLERANCE


def test_global_random_numbers_are_not_drawn() -> None:
    parts = sd_parts()
    network = read_network(spell.network(parts))
    before = torch.get_rng_state()
    Fuser(parts).fuse([Wanted(network, 1.0, 1.0)])
    assert torch.equal(torch.get_rng_state(), before)
