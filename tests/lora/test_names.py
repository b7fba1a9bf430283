"""Which layer of a live model each name in a file means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.convert_from_ckpt import convert_ldm_unet_checkpoint
from torch import nn

from lib_accel.lora.formats import Key, LoraError, read_network
from lib_accel.lora.spelling import find_place, flatten
from lib_accel.lora.targets import LiveModels, locate
from tests.fakes import models as original
from tests.lora import models as make
from tests.lora import networks as spell

TO_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT_Q = "encoder_layers_0_self_attn_q_proj"
SPELLED = {
    f"lora_unet_{TO_Q}": ("unet", TO_Q),
    f"unet.{TO_Q.replace('_', '.')}": ("unet", TO_Q),
    "unet.down_blocks.0.attn1.processor.to_q": ("unet", "down_blocks_0_attn1_to_q"),
    "unet.down_blocks.0.attn1.processor.to_out": ("unet", "down_blocks_0_attn1_to_out_0"),
    "down_blocks.0.attn1.to_out.0": ("unet", "down_blocks_0_attn1_to_out_0"),
    "base_model.model.mid_block.attn1.to_q": ("unet", "mid_block_attn1_to_q"),
    "base_model.model.unet.mid_block.attn1.to_q": ("unet", "mid_block_attn1_to_q"),
    "unet.base_model.model.mid_block.attn1.to_q": ("unet", "mid_block_attn1_to_q"),
    f"lora_te_text_model_{TEXT_Q}": ("text_encoder", TEXT_Q),
    f"lora_te1_text_model_{TEXT_Q}": ("text_encoder", TEXT_Q),
    f"lora_te2_text_model_{TEXT_Q}": ("text_encoder_2", TEXT_Q),
    "lora_te2_text_projection": ("text_encoder_2", "text_projection"),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": ("text_encoder", TEXT_Q),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_q": ("text_encoder", TEXT_Q),
    "text_encoder.mlp.to_k": ("text_encoder", "mlp_k_proj"),
    "text_encoder.mlp.to_v": ("text_encoder", "mlp_v_proj"),
    "text_encoder.mlp.to_out": ("text_encoder", "mlp_out_proj"),
    "text_encoder_2.text_model.encoder.layers.0.self_attn.to_q": ("text_encoder_2", TEXT_Q),
    "base_model.model.text_model.encoder.layers.0.self_attn.q_proj": ("text_encoder", TEXT_Q),
    "base_model.model.encoder.layers.0.self_attn.q_proj": ("text_encoder", TEXT_Q),
    f"lycoris_{TO_Q}": ("unet", TO_Q),
    f"lycoris_text_model_{TEXT_Q}": ("text_encoder", TEXT_Q),
    "unet.input_blocks.4.1.proj_in": ("unet", "input_blocks_4_1_proj_in"),
    "clip_l.text_model.encoder.layers.0.self_attn.q_proj": ("text_encoder", TEXT_Q),
    "clip_g.text_model.encoder.layers.0.self_attn.q_proj": ("text_encoder_2", TEXT_Q),
}


@pytest.mark.parametrize("stem", SPELLED)
def test_spellings_of_a_layer_mean_the_same(stem: str) -> None:
    component, path = find_place(stem)
    assert (component, flatten(path)) == SPELLED[stem]


@pytest.mark.parametrize(
    ("component", "new"),
    [
        ("unet", make.sd1_unet),
        ("unet", make.sd2_unet),
        ("unet", make.sdxl_unet),
        ("unet", make.inpaint_unet),
        ("text_encoder", make.text_encoder),
        ("text_encoder_2", make.second_text_encoder),
    ],
)
def test_every_layer_is_found_by_its_kohya_name(component: str, new: Callable[[], Any]) -> None:
    model = new()
    live = LiveModels({component: model})
    for path, weight in spell.layers(model, ".*"):
        where, flat = find_place(spell.kohya(component, path)["alpha"].removesuffix(".alpha"))
        place = live.find(Key(where, flatten(flat), ""))
        assert place == (component, path, "weight")
        assert live.weight(place) is weight


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_layers_are_found_whether_or_not_the_model_says_text_model(prefix: str) -> None:
    model = nn.Module()
    model.add_module("text_model" if prefix else "encoder", nn.Module())
    parent = model.text_model if prefix else model
    parent.encoder = nn.ModuleDict({"q_proj": nn.Linear(2, 2)})
    place = LiveModels({"text_encoder": model}).find(Key("text_encoder", "encoder_q_proj", ""))
    assert place == ("text_encoder", f"{prefix}encoder.q_proj", "weight")


def diffusers_twin(unet: nn.Module, **changes: Any) -> UNet2DConditionModel:
    """The diffusers UNet that diffusers itself makes of an original one's weights."""
    settings: dict[str, Any] = {
        "block_out_channels": (original.CHANNELS, 2 * original.CHANNELS),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "cross_attention_dim": original.CONTEXT_WIDTH,
        "attention_head_dim": 2,
        **changes,
    }
    twin = UNet2DConditionModel(**settings)
    checkpoint = {f"model.diffusion_model.{name}": value for name, value in unet.state_dict().items()}
    twin.load_state_dict(convert_ldm_unet_checkpoint(checkpoint, twin.config))
    return twin


def sd1_pair() -> tuple[nn.Module, nn.Module]:
    unet = original.tiny_unet()
    return unet, diffusers_twin(unet)


def sd2_pair() -> tuple[nn.Module, nn.Module]:
    unet = original.tiny_sd2_unet()
    return unet, diffusers_twin(unet, use_linear_projection=True)


def sdxl_pair() -> tuple[nn.Module, nn.Module]:
    """A vector too, two transformer blocks, and none in the first level."""
    unet = original.tiny_sgm_unet()
    return unet, diffusers_twin(
        unet,
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=original.VECTOR_WIDTH,
    )


def uneven_pair() -> tuple[nn.Module, nn.Module]:
    """Three levels with two residual blocks each, the first and the last without attention."""
    unet = original.tiny_unet(channel_mult=(1, 2, 2), num_res_blocks=2, attention_resolutions=(2,))
    channels = original.CHANNELS
    return unet, diffusers_twin(
        unet,
        block_out_channels=(channels, 2 * channels, 2 * channels),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


@pytest.mark.parametrize("pair", [sd1_pair, sd2_pair, sdxl_pair, uneven_pair])
def test_original_name_of_a_layer_finds_the_same_weight(pair: Callable[[], Any]) -> None:
    unet, twin = pair()
    live = LiveModels({"unet": twin})
    for path, weight in spell.layers(unet, ".*"):
        place = live.find(Key("unet", flatten(path), ""))
        assert place is not None, path
        assert torch.equal(live.weight(place), weight), path


def fuse_plan(tensors: dict[str, Any], *components: str, **models: nn.Module) -> Any:
    """Where the network goes in these models, for these components or for all that there are."""
    return locate(
        read_network(tensors, name="style"),
        LiveModels(models),
        components or ("unet", "text_encoder", "text_encoder_2"),
    )


def test_names_of_no_layer_are_listed_as_the_file_spells_them() -> None:
    unet = make.sd1_unet()
    tensors = spell.network({"unet": unet})
    strange = {name.replace("blocks_0", "blocks_7"): tensor for name, tensor in tensors.items()}
    located = fuse_plan(tensors | strange, unet=unet)
    assert set(located.unknown) == {name.split(".")[0] for name in strange} - {
        name.split(".")[0] for name in tensors
    }
    assert len(located.layers) == len(tensors) // 2


def test_tensors_that_are_no_part_of_a_layer_are_listed_too() -> None:
    unet = make.sd1_unet()
    tensors = spell.network({"unet": unet}) | {"bundle_emb.cat": torch.ones(1)}
    assert fuse_plan(tensors, unet=unet).unknown == ("bundle_emb.cat",)


def test_names_of_an_absent_model_are_listed_if_another_fits() -> None:
    unet, encoder = make.sd1_unet(), make.text_encoder()
    located = fuse_plan(spell.network({"unet": unet, "text_encoder": encoder}), unet=unet)
    assert {place.component for place in located.layers} == {"unet"}
    assert all(name.startswith("lora_te_") for name in located.unknown)
    assert len(located.unknown) == 12


def test_components_that_are_not_asked_for_are_left_out() -> None:
    unet, encoder = make.sd1_unet(), make.text_encoder()
    tensors = spell.network({"unet": unet, "text_encoder": encoder})
    located = fuse_plan(tensors, "text_encoder", unet=unet, text_encoder=encoder)
    assert {place.component for place in located.layers} == {"text_encoder"}
    assert located.unknown == ()


def test_linear_factors_fit_a_1x1_convolution_and_the_reverse() -> None:
    convolution, linear = make.sd1_unet(), make.sd2_unet()
    pattern = r".*proj_in"
    of_convolution = spell.network({"unet": convolution}, pattern=pattern)
    of_linear = spell.network({"unet": linear}, pattern=pattern)
    assert len(fuse_plan(of_linear, unet=convolution).layers) == 6
    assert len(fuse_plan(of_convolution, unet=linear).layers) == 6


def test_latent_factors_fit_an_inpainting_unet() -> None:
    tensors = spell.network({"unet": make.sd1_unet()}, pattern="conv_in")
    assert fuse_plan(tensors, unet=make.inpaint_unet()).layers


def test_context_of_another_width_is_another_architecture() -> None:
    tensors = spell.network({"unet": make.sdxl_unet()})
    told = r"'style' was made for another architecture.*context width 40.*the model has context width 24"
    with pytest.raises(LoraError, match=told):
        fuse_plan(tensors, unet=make.sd1_unet())


def test_context_tells_even_where_its_layers_have_no_place() -> None:
    tensors = spell.network({"unet": make.sdxl_unet()}, pattern=r"down_blocks\.2.*attn2\.to_k")
    unet = make.sd1_unet()
    fitting = spell.network({"unet": unet}, pattern=".*attn1.to_q")
    with pytest.raises(LoraError, match="'style' was made for another architecture"):
        fuse_plan(tensors | fitting, unet=unet)


@pytest.mark.parametrize(("width", "family"), [(768, "SD1"), (1024, "SD2"), (2048, "SDXL")])
def test_architecture_is_named_by_its_context(width: int, family: str) -> None:
    tensors = spell.network({"unet": make.sd1_unet(cross_attention_dim=width)}, pattern=".*attn2.to_v")
    with pytest.raises(LoraError, match=rf"looks like {family} \(context width {width}\)"):
        fuse_plan(tensors, unet=make.sd1_unet())
    assert fuse_plan(tensors, unet=make.sd1_unet(cross_attention_dim=width)).layers


def test_factors_of_another_shape_are_refused_with_both_shapes() -> None:
    tensors = spell.network({"unet": make.sd1_unet(block_out_channels=(8, 32))}, pattern=".*conv1")
    told = r"'lora_unet_down_blocks_0_resnets_0_conv1' is for a weight \(8, 8, 3, 3\), which here is \(16, 16"
    with pytest.raises(LoraError, match=told):
        fuse_plan(tensors, unet=make.sd1_unet())


def test_kernel_of_another_size_is_refused() -> None:
    tensors = spell.network({"unet": make.sd1_unet()}, pattern="conv_out")
    down = "lora_unet_conv_out.lora_down.weight"
    with pytest.raises(LoraError, match=r"\(4, 16, 1, 1\), which here is \(4, 16, 3, 3\)"):
        fuse_plan(tensors | {down: tensors[down][..., :1, :1]}, unet=make.sd1_unet())


@pytest.mark.parametrize(
    ("stem", "looks"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj", "none of SD1, SD2, SDXL"),
        ("transformer.transformer_blocks.0.attn.to_q", "none of SD1, SD2, SDXL"),
        ("lora_te2_no_such_layer", r"SDXL \(it has a second text encoder\)"),
        ("lora_te_no_such_self_attn_q_proj", r"SD2 \(text encoder width 1024\)"),
    ],
)
def test_network_that_fits_nowhere_is_another_architecture(stem: str, looks: str) -> None:
    down, up = torch.ones(2, 1024), torch.ones(1024, 2)
    with pytest.raises(LoraError, match=rf"looks like {looks}.*with layers such as '{stem}'"):
        fuse_plan({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, unet=make.sd1_unet())


def test_network_that_fits_only_a_text_encoder_by_chance_is_refused() -> None:
    encoder = make.text_encoder()
    tensors = spell.network({"text_encoder": encoder})
    tensors |= {f"lora_unet_double_blocks_0.{name}.weight": torch.ones(2, 2) for name in ("lora_A", "lora_B")}
    with pytest.raises(LoraError, match="the model has none of its layers for unet"):
        fuse_plan(tensors, unet=make.sd1_unet(), text_encoder=encoder)


def test_layer_under_two_names_is_refused() -> None:
    unet = {"unet": make.sd1_unet()}
    tensors = spell.network(unet, spell.kohya) | spell.network(unet, spell.peft)
    with pytest.raises(LoraError, match="under a second name"):
        fuse_plan(tensors, **unet)
