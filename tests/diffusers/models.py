"""Tiny diffusers pipelines of every form, with random weights scaled as training leaves them."""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers.pipelines.deprecated import alt_diffusion
from torch import Tensor, nn

from lib_accel.demo.tokenizer import load_tokenizer

SIDE_PX = 64
LATENTS = (8, 8)
TOKENS = 77
CONTEXT_WIDTH = 32

_NOISE: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_ATTENTION, _PLAIN = "CrossAttn{}Block2D", "{}Block2D"
_UNET: dict[str, Any] = {
    "sample_size": LATENTS[0],
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": (_ATTENTION.format("Down"), _PLAIN.format("Down")),
    "up_block_types": (_PLAIN.format("Up"), _ATTENTION.format("Up")),
    "cross_attention_dim": CONTEXT_WIDTH,
    "attention_head_dim": 4,  # heads, in spite of the name
    "norm_num_groups": 8,
}
_SD2: dict[str, Any] = {
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "upcast_attention": True,
}
_SDXL: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": (_PLAIN.format("Down"), _ATTENTION.format("Down"), _ATTENTION.format("Down")),
    "up_block_types": (_ATTENTION.format("Up"), _ATTENTION.format("Up"), _PLAIN.format("Up")),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 2 * CONTEXT_WIDTH,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": CONTEXT_WIDTH + 6 * 4,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "inpainting": {"in_channels": 9},
    "sd2": _SD2,
    "sdxl": _SDXL,
}


@functools.cache
def unet(kind: str) -> Any:
    """A UNet whose predictions have the size of the noise that it predicts."""
    model = _with_weights(diffusers.UNet2DConditionModel(**{**_UNET, **UNETS[kind]}), seed=1)
    with torch.no_grad():
        model.conv_out.bias.zero_()
        model.conv_out.weight /= torch.cat([call(model, step) for step in (50, 500, 950)]).std()
    return model


@functools.cache
def controlnet(kind: str, seed: int = 2) -> Any:
    """A ControlNet for that UNet; what it adds is small beside what it is added to, but not nothing."""
    model = diffusers.ControlNetModel.from_unet(
        unet(kind), conditioning_embedding_out_channels=(8, 8, 16, 16), load_weights_from_unet=False
    )
    _with_weights(model, seed)
    with torch.no_grad():
        for convolution in (*model.controlnet_down_blocks, model.controlnet_mid_block):
            convolution.weight *= 0.3
    return model


@functools.cache
def _vae() -> Any:
    model = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )
    return _with_weights(model, seed=3)


@functools.cache
def _text_encoder(kind: Any, seed: int) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=CONTEXT_WIDTH,
        intermediate_size=2 * CONTEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=CONTEXT_WIDTH,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return _with_weights(kind(config), seed)


@functools.cache
def _roberta() -> Any:
    config = alt_diffusion.modeling_roberta_series.RobertaSeriesConfig(
        hidden_size=CONTEXT_WIDTH,
        project_dim=CONTEXT_WIDTH,
        intermediate_size=2 * CONTEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=49408,
    )
    return _with_weights(alt_diffusion.RobertaSeriesModelWithTransformation(config), seed=6)


_tokenizer = functools.cache(load_tokenizer)


def _with_weights(model: Any, seed: int) -> Any:
    """The model with each parameter drawn anew, so that every residual branch counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                # Averaging over tokens makes values smaller; a block adds to what has grown long since.
                gain = 3.0 if "to_v" in name else 1.5 if "conv2" in name else 1.0
                parameter.copy_(drawn * gain / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * drawn + (1 if name.endswith("weight") else 0))
    return model.eval().requires_grad_(False)


def call(model: Any, step: int = 500, *, seed: int = 7, **given: Any) -> Tensor:
    """The output of a UNet for one fixed input of batch 2."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, model.config.in_channels, *LATENTS, generator=generator)
    context = torch.randn(2, TOKENS, model.config.cross_attention_dim, generator=generator)
    added = {"text_embeds": context[:, 0, :CONTEXT_WIDTH], "time_ids": torch.full((2, 6), 64.0)}
    given = {"encoder_hidden_states": context, "added_cond_kwargs": added} | given
    return model(x, step, **given).sample


class Form(NamedTuple):
    """What is done with which models, by which pipeline."""

    kind: str
    pipeline: Any
    given: tuple[str, ...] = ()  # of _GIVEN, beside the prompt
    controls: int = 0


_IMAGE = ("image", "strength")
_MASKED = ("image", "mask_image", "strength")

FORMS = {
    "sd1": Form("sd1", diffusers.StableDiffusionPipeline),
    "sd1 img2img": Form("sd1", diffusers.StableDiffusionImg2ImgPipeline, _IMAGE),
    "sd1 inpaint": Form("sd1", diffusers.StableDiffusionInpaintPipeline, _MASKED),
    "inpainting": Form("inpainting", diffusers.StableDiffusionInpaintPipeline, _MASKED),
    "controlnet": Form("sd1", diffusers.StableDiffusionControlNetPipeline, ("image",), 1),
    "two controlnets": Form("sd1", diffusers.StableDiffusionControlNetPipeline, ("image",), 2),
    "controlnet img2img": Form(
        "sd1", diffusers.StableDiffusionControlNetImg2ImgPipeline, (*_IMAGE, "control_image"), 1
    ),
    "controlnet inpaint": Form(
        "sd1", diffusers.StableDiffusionControlNetInpaintPipeline, (*_MASKED, "control_image"), 1
    ),
    "sd2": Form("sd2", diffusers.StableDiffusionPipeline),
    "sdxl": Form("sdxl", diffusers.StableDiffusionXLPipeline),
    "sdxl img2img": Form("sdxl", diffusers.StableDiffusionXLImg2ImgPipeline, _IMAGE),
    "sdxl inpaint": Form("sdxl", diffusers.StableDiffusionXLInpaintPipeline, _MASKED),
    "sdxl controlnet": Form("sdxl", diffusers.StableDiffusionXLControlNetPipeline, ("image",), 1),
    "altdiffusion": Form("sd1", alt_diffusion.AltDiffusionPipeline),
}


def pipeline(name: str = "sd1") -> Any:
    """A new pipeline of that form around models that all such pipelines share: leave them as they are."""
    return _assembled(name, _parts(name))


def own_pipeline(name: str = "sd1") -> Any:
    """A pipeline with models of its own, for a test that changes them."""
    is_model = (nn.Module, list)
    parts = _parts(name).items()
    return _assembled(
        name, {key: copy.deepcopy(part) if isinstance(part, is_model) else part for key, part in parts}
    )


def _assembled(name: str, parts: dict[str, Any]) -> Any:
    pipe = FORMS[name].pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _parts(name: str) -> dict[str, Any]:
    form = FORMS[name]
    prediction = "v_prediction" if form.kind == "sd2" else "epsilon"
    first = _roberta() if name == "altdiffusion" else _text_encoder(transformers.CLIPTextModel, 4)
    parts: dict[str, Any] = {
        "unet": unet(form.kind),
        "vae": _vae(),
        "text_encoder": first,
        "tokenizer": _tokenizer(),
        "scheduler": diffusers.DDIMScheduler(**_NOISE, prediction_type=prediction),
    }
    if form.controls:
        nets = [controlnet(form.kind, seed) for seed in range(2, 2 + form.controls)]
        parts["controlnet"] = nets if form.controls > 1 else nets[0]
    if form.kind == "sdxl":
        second = _text_encoder(transformers.CLIPTextModelWithProjection, 5)
        return parts | {"text_encoder_2": second, "tokenizer_2": _tokenizer()}
    return parts | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def picture(pipe: Any, name: str = "sd1", *, steps: int = 20, seed: int = 0, **given: Any) -> Tensor:
    """The latents that a pipeline of that form ends with, after so many steps."""
    form = FORMS[name]
    generator = torch.Generator().manual_seed(8)
    image = torch.rand(1, 3, SIDE_PX, SIDE_PX, generator=generator)
    mask = torch.zeros(1, 1, SIDE_PX, SIDE_PX)
    mask[..., SIDE_PX // 4 :] = 1
    known = {"image": image, "mask_image": mask, "control_image": image.flip(-1), "strength": 0.8}
    beside = {argument: known[argument] for argument in form.given}
    for hint in {"image", "control_image"} & set(beside):
        if form.controls > 1:
            beside[hint] = [image] * form.controls
    if "strength" in beside:
        steps = round(steps / beside["strength"])
    else:
        beside |= {"width": SIDE_PX, "height": SIDE_PX}
    draw = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": steps, "generator": draw, "output_type": "latent"}
    return pipe(**{"prompt": "a cat on a mat", **beside, **options, **given}).images


def difference(ours: Tensor, stock: Tensor) -> float:
    """Relative L2 distance."""
    return float((ours.double() - stock.double()).norm() / stock.double().norm())


def parts_of(model: nn.Module, name: str) -> list[Any]:
    """All modules of a class of this name."""
    return [module for module in model.modules() if type(module).__name__ == name]
