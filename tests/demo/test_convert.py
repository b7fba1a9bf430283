"""The single file in the original layout is the same model: `ldm`'s classes give what diffusers' give."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lib_accel.demo.errors import DemoError
from lib_accel.demo.train import cli, original
from lib_accel.demo.train.convert import convert
from lib_accel.demo.train.export import write_pipeline
from lib_accel.demo.train.models import new_text_encoder, new_unet, new_vae


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder of the embedded model's sizes, with weights by lot."""
    parts = {"unet": new_unet(1), "text_encoder": new_text_encoder(2), "vae": new_vae(3)}
    folder = tmp_path_factory.mktemp("diffusers") / "model"
    write_pipeline(parts, folder)
    return folder


@pytest.fixture(scope="module")
def file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(model, tmp_path_factory.mktemp("webui"))


@pytest.fixture(scope="module")
def params(file: Path) -> Any:
    return OmegaConf.load(file.with_suffix(".yaml")).model.params


def under(file: Path, head: str) -> dict[str, Tensor]:
    state = load_file(file)
    return {key.removeprefix(head): tensor.float() for key, tensor in state.items() if key.startswith(head)}


def built(config: Any, state: dict[str, Tensor]) -> Any:
    """The class that the yaml names, with its settings and all of these weights and no others."""
    module, _, name = config.target.rpartition(".")
    model = getattr(importlib.import_module(module), name)(**config.params)
    model.load_state_dict(state)
    return model.eval()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_the_unet_gives_the_same(model: Path, file: Path, params: Any) -> None:
    theirs = built(params.unet_config, under(file, original.UNET_HEAD))
    ours = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
    noise, context, times = normal(2, 4, 8, 8), normal(2, 77, 32), torch.tensor([7, 901])
    torch.testing.assert_close(theirs(noise, times, context=context), ours(noise, times, context).sample)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_each_half_of_the_vae_gives_the_same(model: Path, file: Path, params: Any, half: str) -> None:
    module = importlib.import_module("ldm.modules.diffusionmodules.model")
    theirs = getattr(module, half.title())(**params.first_stage_config.params.ddconfig)
    theirs.load_state_dict(under(file, f"{original.VAE_HEAD}{half}."))
    ours = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32)
    given = normal(1, 3, 64, 64) if half == "encoder" else normal(1, 4, 8, 8)
    torch.testing.assert_close(theirs.eval()(given), getattr(ours, half)(given), rtol=1e-4, atol=1e-4)


def test_the_vae_has_nothing_but_halves_and_their_joints(file: Path) -> None:
    parts = {key.split(".")[0] for key in under(file, original.VAE_HEAD)}
    assert parts == {"encoder", "decoder", "quant_conv", "post_quant_conv"}


def test_the_text_encoder_gives_the_same_from_the_folder_that_the_yaml_names(
    model: Path, file: Path, params: Any
) -> None:
    config = CLIPTextConfig.from_pretrained(params.cond_stage_config.params.version)
    theirs, ours = CLIPTextModel(config).eval(), CLIPTextModel.from_pretrained(model / "text_encoder").eval()
    wanted = dict(theirs.named_parameters())
    state = under(file, original.TEXT_HEAD)
    assert {key.removeprefix("text_model.") for key in wanted} == state.keys()
    for key, parameter in wanted.items():
        parameter.copy_(state[key.removeprefix("text_model.")])
    tokens = torch.arange(320, 397)[None]
    torch.testing.assert_close(theirs(tokens)[0], ours.float()(tokens)[0])


def test_the_folder_that_the_yaml_names_has_the_tokenizer(params: Any) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(params.cond_stage_config.params.version)
    assert tokenizer("a red circle").input_ids == [49406, 320, 736, 7117, 49407]


def test_every_tensor_of_the_model_is_in_the_file_once(model: Path, file: Path) -> None:
    parts = [load_file(path) for path in model.rglob("*.safetensors")]
    assert len(load_file(file)) == sum(map(len, parts))
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}


def test_the_yaml_scales_latents_as_the_folder_does(model: Path, params: Any) -> None:
    vae = json.loads((model / "vae" / "config.json").read_text("utf-8"))
    assert params.scale_factor == vae["scaling_factor"]


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"got no model_index\.json, expected a pipeline's folder"):
        convert(tmp_path, tmp_path / "out")


def test_the_command_says_what_it_wrote(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", "--model", str(model), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split()[1:] == [
        "accel-demo.safetensors,",
        "accel-demo.yaml",
        "and",
        "accel-demo-clip",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {
        "accel-demo.safetensors",
        "accel-demo.yaml",
        "accel-demo-clip",
    }


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
