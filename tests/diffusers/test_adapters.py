"""Adapters that diffusers and peft compute at every step stay theirs, and the report says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.diffusers import models
from tests.diffusers.test_equality import LIMIT, Accelerate
from tests.diffusers.test_fallbacks import STEPS, TRANSFORMERS, live_blocks
from tests.lora.networks import network, peft

IMAGE_WIDTH, IMAGE_TOKENS = 16, 4


def add_ip_adapter(pipe: Any) -> None:
    """An IP-Adapter with random weights, by diffusers' own loader."""
    generator = torch.Generator().manual_seed(1)

    def draw(out: int, width: int) -> Tensor:
        return torch.randn(out, width, generator=generator) / width**0.5

    width = models.CONTEXT_WIDTH
    image_proj = {
        "proj.weight": draw(IMAGE_TOKENS * width, IMAGE_WIDTH),
        "proj.bias": torch.zeros(IMAGE_TOKENS * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    crosses = [name.removesuffix(".processor") for name in pipe.unet.attn_processors if "attn2" in name]
    layers = {
        f"{2 * number + 1}.to_{which}_ip.weight": draw(pipe.unet.get_submodule(cross).inner_dim, width)
        for number, cross in enumerate(crosses)
        for which in "kv"
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": image_proj, "ip_adapter": layers}])


def picture_with_image(pipe: Any) -> Tensor:
    embeds = torch.randn(2, 1, IMAGE_WIDTH, generator=torch.Generator().manual_seed(2))
    return models.picture(pipe, steps=STEPS, ip_adapter_image_embeds=[embeds])


def lora_for(pipe: Any) -> dict[str, Tensor]:
    """A LoRA for attention in UNet and text encoder, as diffusers saves it."""
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return network(parts, peft, pattern=r".*(to_q|to_v|[qv]_proj)")


@pytest.fixture
def pipe() -> Any:
    """A pipeline with models of its own."""
    return models.own_pipeline()


def test_ip_adapter_keeps_cross_attention_live(pipe: Any, accelerate: Accelerate) -> None:
    add_ip_adapter(pipe)
    before = picture_with_image(pipe)
    handle = accelerate(pipe)
    assert models.difference(picture_with_image(pipe), before) <= LIMIT
    assert live_blocks(handle) == (TRANSFORMERS, STEPS * TRANSFORMERS)
    home = "diffusers.models.attention_processor"
    reason = f"attn2: has the attention processor {home}.IPAdapterAttnProcessor2_0"
    assert dict(handle.report().generation.reasons) == {reason: STEPS * TRANSFORMERS}


@pytest.mark.parametrize("is_first", [True, False])
def test_peft_adapter_stays_with_peft(is_first: bool, pipe: Any, accelerate: Accelerate) -> None:
    other = models.own_pipeline()
    for each in (other, pipe) if is_first else (other,):
        each.load_lora_weights(lora_for(each))
    handle = accelerate(pipe)
    if not is_first:
        models.picture(pipe, steps=1)
        pipe.load_lora_weights(lora_for(pipe))
    handle.begin_generation()
    expected = models.picture(other, steps=STEPS)
    assert models.difference(models.picture(pipe, steps=STEPS), expected) <= LIMIT
    assert live_blocks(handle)[0] == TRANSFORMERS


def test_reason_of_a_peft_adapter_names_peft_and_what_to_do(pipe: Any, accelerate: Accelerate) -> None:
    pipe.load_lora_weights(lora_for(pipe))
    reasons = [reason for model in accelerate(pipe).report().models for reason in model.blocks.reasons]
    assert len(reasons) == 3  # both attentions of the UNet, and the text encoder's
    assert all("found peft.tuners.lora.layer.Linear where" in reason for reason in reasons)
    assert all("handle.set_loras() fuses it into the weights" in reason for reason in reasons)


def test_adapter_that_diffusers_fused_and_unloaded_is_fast(pipe: Any, accelerate: Accelerate) -> None:
    pipe.load_lora_weights(lora_for(pipe))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    before = models.picture(pipe, steps=STEPS)
    handle = accelerate(pipe)
    assert models.difference(models.picture(pipe, steps=STEPS), before) <= LIMIT
    assert live_blocks(handle) == (0, 0)
