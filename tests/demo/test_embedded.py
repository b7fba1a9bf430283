"""The embedded model: nothing in it is idle, its pictures can be looked at, and its networks move them."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, UNet2DConditionModel
from PIL import Image, ImageStat
from torch import Tensor, nn

from lib_accel.demo import embedded as room
from lib_accel.demo.embedded import (
    embedded_controlnet,
    embedded_hint,
    embedded_loras,
    embedded_pipeline,
    seeded_pipeline,
)
from lib_accel.demo.errors import DemoError
from lib_accel.lora.formats import read_network
from lib_accel.lora.fusion import Fuser, Wanted
from tests.fakes.models import difference

STEPS = 4


@pytest.fixture(scope="module")
def seeded() -> Any:
    """The embedded pipeline with seeded weights, also where a trained one stands in for it."""
    return seeded_pipeline()


def latents(pipe: Any, prompt: str = "a red house", seed: int = 1, **settings: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    settings = {"width": 64, "height": 64, "num_inference_steps": STEPS, **settings}
    found: Tensor = pipe(prompt, generator=generator, output_type="latent", **settings).images
    return found


@pytest.fixture(scope="module")
def plain(embedded: Any) -> Tensor:
    """Latents without networks."""
    return latents(embedded)


def test_making_it_leaves_torchs_random_state() -> None:
    before = torch.get_rng_state()
    seeded_pipeline()
    embedded_loras(1)
    embedded_controlnet()
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_the_same_each_time(seeded: Any) -> None:
    again = seeded_pipeline()
    for name in ("unet", "vae", "text_encoder"):
        theirs = getattr(again, name).state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in getattr(seeded, name).state_dict().items())


def test_it_has_the_blocks_of_sd1(seeded: Any) -> None:
    """diffusers' defaults are SD1's settings, but for widths and size."""
    defaults = {k: v.default for k, v in inspect.signature(UNet2DConditionModel.__init__).parameters.items()}
    config = seeded.unet.config
    assert len(config.block_out_channels) == len(defaults["block_out_channels"])
    assert {name for name in defaults.keys() & config.keys() if config[name] != defaults[name]} == {
        "sample_size",
        "block_out_channels",
        "cross_attention_dim",
    }


# By class: what it adds to its input.
_BRANCHES = {
    "ResnetBlock2D": ("conv2",),
    "BasicTransformerBlock": ("attn1", "attn2", "ff"),
    "Transformer2DModel": ("proj_out",),
    "CLIPEncoderLayer": ("self_attn", "mlp"),
}


def shares(model: nn.Module, call: Callable[[], object]) -> dict[str, float]:
    """How large what each branch adds is beside what it is added to, by the branch's name."""
    found: dict[str, float] = {}
    stream: dict[nn.Module, float] = {}
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for path, owner in model.named_modules():
            for name in _BRANCHES.get(type(owner).__name__, ()):

                def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                    stream[module] = float(args[0].norm())

                def after(
                    _: object, __: object, out: Any, owner: nn.Module = owner, key: str = f"{path}.{name}"
                ) -> None:
                    found[key] = float((out[0] if isinstance(out, tuple) else out).norm()) / stream[owner]

                hooks.callback(owner.register_forward_pre_hook(before).remove)
                hooks.callback(owner.get_submodule(name).register_forward_hook(after).remove)
        call()
    return found


def _calls(pipe: Any) -> Mapping[str, tuple[int, Callable[[], object]]]:
    """By part: how many branches it has, and a call."""
    x, picture, context = torch.randn(2, 4, 16, 16), torch.randn(1, 3, 64, 64), torch.randn(2, 77, 128)
    ids = pipe.tokenizer(["a red house"], padding="max_length", return_tensors="pt").input_ids
    return {
        "unet": (22 + 16 * 4, lambda: pipe.unet(x, torch.tensor([100, 900]), context)),
        "vae": (8 + 4 + 2 * 2, lambda: pipe.vae(picture)),
        "text_encoder": (4 * 2, lambda: pipe.text_encoder(ids)),
    }


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_no_residual_branch_is_idle(seeded: Any, part: str) -> None:
    count, call = _calls(seeded)[part]
    found = shares(getattr(seeded, part), call)
    assert len(found) == count
    assert {name: share for name, share in found.items() if share < 0.1} == {}


def test_zeroed_branch_is_found(seeded: Any) -> None:
    unet = copy.deepcopy(seeded.unet)
    unet.mid_block.resnets[0].conv2.weight.zero_()
    unet.mid_block.resnets[0].conv2.bias.zero_()
    found = shares(unet, lambda: unet(torch.randn(1, 4, 16, 16), 100, torch.randn(1, 77, 128)))
    assert [name for name, share in found.items() if share < 0.1] == ["mid_block.resnets.0.conv2"]


@pytest.mark.parametrize("prompt", ["a red house", "a cat in the sea", ""])
def test_pictures_have_contrast_and_colour_and_are_not_burnt_out(embedded: Any, prompt: str) -> None:
    generator = torch.Generator().manual_seed(1)
    picture = embedded(prompt, width=128, height=128, num_inference_steps=8, generator=generator).images[0]
    grey = picture.convert("L")
    burnt = sum(count for value, count in enumerate(grey.histogram()) if value in (0, 255))
    assert ImageStat.Stat(grey).stddev[0] > 15
    assert ImageStat.Stat(picture.convert("HSV")).mean[1] > 40
    assert burnt < 0.1 * grey.width * grey.height


def test_prompt_and_seed_change_the_picture(embedded: Any, plain: Tensor) -> None:
    assert difference(latents(embedded, prompt="a cat in the sea"), plain) > 0.05
    assert difference(latents(embedded, seed=2), plain) > 0.05


@pytest.mark.parametrize("size", [(8, 8), (72, 40)])
def test_it_makes_pictures_of_odd_sizes(embedded: Any, size: tuple[int, int]) -> None:
    width, height = size
    assert latents(embedded, width=width, height=height).shape == (1, 4, height // 8, width // 8)


def test_pipeline_has_the_asked_dtype() -> None:
    pipe = embedded_pipeline("cpu", torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}


def test_pipeline_on_a_missing_device_is_refused() -> None:
    with pytest.raises(DemoError, match="device: got 'gpu'"):
        embedded_pipeline("gpu")


@pytest.mark.parametrize("number", range(3))
def test_each_lora_moves_the_picture_alone(embedded: Any, plain: Tensor, number: int) -> None:
    network = read_network(embedded_loras(3)[number])
    fuser = Fuser({"unet": embedded.unet, "text_encoder": embedded.text_encoder})
    for scales in ((1.0, 0.0), (0.0, 1.0)):
        fused = fuser.fuse([Wanted(network, *scales)])
        moved = difference(latents(embedded), plain)
        fuser.restore()
        assert (moved > 0.05, dict(fused.unknown)) == (True, {})


def test_loras_differ_in_rank_and_values() -> None:
    states = embedded_loras(4)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    assert [len(state[name]) for state in states] == [4, 6, 8, 4]
    assert not torch.equal(states[0][name], states[3][name])


def test_text_encoders_names_are_kohyas() -> None:
    names = {name.split(".")[0] for name in embedded_loras(1)[0] if name.startswith("lora_te")}
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in names
    assert len(names) == 4 * 6


@pytest.fixture(scope="module")
def controlled(embedded: Any) -> Callable[[Image.Image, float], Tensor]:
    """Latents with the embedded ControlNet, given a hint and a scale."""
    pipe = StableDiffusionControlNetPipeline(
        **embedded.components, controlnet=embedded_controlnet(), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return lambda hint, scale: latents(pipe, image=hint, controlnet_conditioning_scale=scale)


def test_controlnet_and_its_hint_move_the_picture(controlled: Any, plain: Tensor) -> None:
    hint = embedded_hint(64, 64)
    with_hint = controlled(hint, 1.0)
    assert difference(with_hint, plain) > 0.01
    assert difference(controlled(Image.new("RGB", hint.size), 1.0), with_hint) > 0.01
    assert difference(controlled(hint, 0.5), with_hint) > 0.01


@pytest.mark.parametrize("size", [(128, 128), (512, 256), (8, 8)])
def test_hint_is_white_lines_on_black(size: tuple[int, int]) -> None:
    hint = embedded_hint(*size)
    white = hint.convert("L").histogram()[255] / (size[0] * size[1])
    assert (hint.mode, hint.size) == ("RGB", size)
    assert 0.02 < white < 0.8


def test_hint_of_an_impossible_size_is_refused() -> None:
    with pytest.raises(DemoError, match="the nearest is 128x72"):
        embedded_hint(127, 70)


def test_trained_model_is_taken_where_there_is_one(
    seeded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = copy.deepcopy(seeded.unet)
    trained.conv_out.bias.fill_(0.5)
    pipe = seeded.__class__(**{**seeded.components, "unet": trained}, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path)
    monkeypatch.setattr(room, "MODEL", tmp_path)
    assert torch.equal(embedded_pipeline().unet.conv_out.bias, trained.conv_out.bias)


def test_networks_fit_the_trained_model(seeded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = UNet2DConditionModel.from_config(seeded.unet.config, block_out_channels=(64, 64, 96, 96))
    pipe = seeded.__class__(**{**seeded.components, "unet": other}, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path)
    monkeypatch.setattr(room, "MODEL", tmp_path)
    name = "lora_unet_up_blocks_1_attentions_0_proj_in.lora_down.weight"
    assert embedded_loras(1)[0][name].shape[1] == 96
    assert tuple(embedded_controlnet().config.block_out_channels) == (64, 64, 96, 96)
