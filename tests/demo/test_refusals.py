"""What cannot be used is refused in one line that says what came, what was expected and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lib_accel.demo.errors import DemoError
from lib_accel.demo.limits import check_device, check_size
from lib_accel.demo.loading import load_controlnet, load_hint, load_pipeline
from tests.demo.conftest import Loaded

Load = Callable[[str], Loaded]


def refusal(call: Callable[[], object]) -> str:
    """The one line that the call is refused with."""
    with pytest.raises(DemoError) as refused:
        call()
    message = str(refused.value)
    assert "\n" not in message
    return message


def written(path: Path, *names: str) -> Path:
    save_file({name: torch.zeros(1, 1) for name in names}, path)
    return path


@pytest.mark.parametrize("load", [load_pipeline, load_controlnet])
def test_missing_path_is_refused(load: Callable[[Path], object], tmp_path: Path) -> None:
    assert "none.safetensors: got nothing of that name" in refusal(
        lambda: load(tmp_path / "none.safetensors")
    )


def test_path_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "got no leave to read it" in refusal(lambda: load_pipeline(tmp_path))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["lora_unet_mid_block.lora_up.weight"], "got a LoRA or LyCORIS network"),
        (["unet.mid_block.to_q.lora_A.weight"], "got a LoRA or LyCORIS network"),
        (["lora_unet_mid_block.hada_w1_a"], "got a LoRA or LyCORIS network"),
        (["control_model.time_embed.0.weight"], "got a ControlNet,"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"], "got a ControlNet,"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "got a VAE alone"),
        (["first_stage_model.decoder.conv_in.weight"], "got a VAE alone"),
        (["input_blocks.0.0.weight"], "got a UNet alone"),
        (["model.diffusion_model.double_blocks.0.x"], "got a Flux model"),
        (["model.diffusion_model.joint_blocks.0.x"], "got an SD3 model"),
        (["text_model.encoder.layers.0.x"], "got a text encoder alone"),
        (["emb_params"], "got a textual inversion"),
        (["something", "other"], "got 2 tensors of no known kind (other, something ...)"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, names: list[str], what: str) -> None:
    message = refusal(lambda: load_pipeline(written(tmp_path / "it.safetensors", *names)))
    assert f"it.safetensors: {what}" in message
    assert "expected an SD1, SD2 or SDXL checkpoint; give" in message


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight"], "got a whole checkpoint"),
        (["a.lora_up.weight"], "got a LoRA or LyCORIS network"),
        (["controlnet_cond_embedding.conv_in.weight", "control_add_embedding.x"], "of the union kind"),
        (["control_model.time_embed.0.weight"], "got a ControlNet without"),
    ],
)
def test_what_is_no_controlnet_is_named(tmp_path: Path, names: list[str], what: str) -> None:
    message = refusal(lambda: load_controlnet(written(tmp_path / "it.safetensors", *names)))
    assert what in message


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("first_stage_model.", "got a UNet without VAE"),
        ("cond_stage_model.", "got a UNet without a known text encoder"),
        (
            "model.diffusion_model.middle_block.1.proj_in.weight",
            "got SD1 without 'middle_block.1.proj_in.weight'",
        ),
        (
            "model.diffusion_model.input_blocks.1.0.in_layers.2.bias",
            "cannot load (weights are missing)",
        ),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            "text_encoder without 1 of its weights, such as",
        ),
    ],
)
def test_checkpoint_without_a_part_is_refused(
    loaded: Load, tmp_path: Path, lacking: str, message: str
) -> None:
    state = {k: v for k, v in load_file(loaded("SD1").path).items() if not k.startswith(lacking)}
    save_file(state, tmp_path / "it.safetensors")
    assert message in refusal(lambda: load_pipeline(tmp_path / "it.safetensors"))


@pytest.mark.parametrize(
    ("channels", "message"),
    [(8, "got a model of 8 input channels"), (5, "expected 4 channels, or 9 for inpainting")],
)
def test_other_numbers_of_channels_are_refused(
    loaded: Load, tmp_path: Path, channels: int, message: str
) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    save_file(
        load_file(loaded("SD1").path) | {name: torch.zeros(64, channels, 3, 3)}, tmp_path / "it.safetensors"
    )
    assert message in refusal(lambda: load_pipeline(tmp_path / "it.safetensors"))


def test_refiner_is_named(loaded: Load, tmp_path: Path) -> None:
    state = {
        name.replace("embedders.1.", "embedders.0."): value
        for name, value in load_file(loaded("SDXL").path).items()
        if not name.startswith("conditioner.embedders.0.")
    }
    save_file(state, tmp_path / "it.safetensors")
    assert "got the SDXL refiner" in refusal(lambda: load_pipeline(tmp_path / "it.safetensors"))


def test_text_encoder_of_another_width_is_refused(loaded: Load, tmp_path: Path) -> None:
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    save_file(load_file(loaded("SD1").path) | {name: torch.zeros(100, 96)}, tmp_path / "it.safetensors")
    message = refusal(lambda: load_pipeline(tmp_path / "it.safetensors"))
    assert "got a text encoder of width 96 with a UNet for 64" in message


def test_weight_of_a_wrong_shape_is_refused_in_one_line(loaded: Load, tmp_path: Path) -> None:
    name = "model.diffusion_model.out.0.bias"
    save_file(load_file(loaded("SD1").path) | {name: torch.zeros(3)}, tmp_path / "it.safetensors")
    assert "cannot load (" in refusal(lambda: load_pipeline(tmp_path / "it.safetensors"))


@pytest.mark.parametrize("share", [0.5, 0.0005])
def test_file_cut_short_is_told_with_both_sizes(loaded: Load, tmp_path: Path, share: float) -> None:
    whole = loaded("SD1").path.read_bytes()
    (tmp_path / "it.safetensors").write_bytes(whole[: int(share * len(whole))])
    message = refusal(lambda: load_pipeline(tmp_path / "it.safetensors"))
    assert f"got {int(share * len(whole)):,} bytes of it, expected" in message
    assert "cut short" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("it.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "got a Git LFS pointer"),
        ("it.safetensors", b"<!DOCTYPE html><html></html>", "got a web page"),
        ("it.safetensors", b"", "got 0 bytes that are no .safetensors file"),
        ("it.safetensors", bytes(range(200)), "got 200 bytes that are no"),
        (
            "it.safetensors",
            (20).to_bytes(8, "little") + b"{" + b" " * 40,
            "got a file that safetensors cannot read",
        ),
        ("it.ckpt", b"not a pickle", "got 12 bytes that are no .ckpt file"),
        ("it.ckpt", b"PK not a zip", "got 12 bytes that are no .ckpt file"),
        ("it.ckpt", b"", "got 0 bytes that are no"),
        ("it.ckpt", b"<html></html>", "got a web page"),
        ("it.gguf", b"GGUF", "got a .gguf file, expected .safetensors or .ckpt"),
        ("it", b"", "got a file without ending"),
    ],
)
def test_file_that_is_something_else_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refusal(lambda: load_pipeline(tmp_path / name))


class _Trap:
    """Pickles as a call."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, ("raise SystemExit('run')",)


def test_ckpt_with_code_stays_closed(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": _Trap()}, tmp_path / "it.ckpt")
    assert "got a file that could run code" in refusal(lambda: load_pipeline(tmp_path / "it.ckpt"))


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, "got a folder without model_index.json"),
        ({"config.json": {"_class_name": "AutoencoderKL"}}, "got AutoencoderKL"),
        ({"model_index.json": {"_class_name": "FluxPipeline"}}, "got FluxPipeline"),
        ({"model_index.json": ["odd"]}, "got a folder without model_index.json"),
    ],
)
def test_folder_of_something_else_is_refused(tmp_path: Path, files: dict[str, object], what: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    message = refusal(lambda: load_pipeline(tmp_path))
    assert f"{what}, expected a pipeline's folder (StableDiffusionPipeline" in message


def test_folder_that_lacks_weights_is_refused_in_one_line(loaded: Load, tmp_path: Path) -> None:
    loaded("SD1").pipe.save_pretrained(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "cannot load (" in refusal(lambda: load_pipeline(tmp_path))


def test_pipeline_is_refused_as_a_controlnet(loaded: Load, tmp_path: Path) -> None:
    loaded("SD1").pipe.save_pretrained(tmp_path)
    message = refusal(lambda: load_controlnet(tmp_path))
    assert "got StableDiffusionPipeline, expected a ControlNet's folder" in message


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((0, 512), "8x512"),
        ((-64, 512), "8x512"),
        ((500, 333), "504x336"),
        ((515, 517), "512x520"),
        ((100_000, 512), "2048x512"),
    ],
)
def test_impossible_size_is_refused_with_the_nearest(size: tuple[int, int], nearest: str) -> None:
    assert refusal(lambda: check_size(*size)).endswith(f"the nearest is {nearest}")


@pytest.mark.parametrize("size", [(8, 8), (512, 768), (2048, 2048)])
def test_possible_size_is_taken(size: tuple[int, int]) -> None:
    check_size(*size)


@pytest.mark.parametrize("device", ["meta", "vulkan", "cuda:99"])
def test_device_that_is_not_here_is_refused(device: str) -> None:
    assert f"device: got '{device}', but torch" in refusal(lambda: check_device(device))


def test_cuda_without_a_cuda_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    message = refusal(lambda: check_device("cuda"))
    assert "finds 0 CUDA devices, expected one that is usable here; cpu always works" in message


def test_device_of_no_known_name_is_refused() -> None:
    assert "got 'gpu', which torch does not know" in refusal(lambda: check_device("gpu"))


def test_device_is_judged_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "it.safetensors").write_bytes(b"")
    assert "device: got 'gpu'" in refusal(lambda: load_pipeline(tmp_path / "it.safetensors", "gpu"))


def test_hint_is_stretched_to_the_size(tmp_path: Path) -> None:
    Image.new("L", (30, 20), 255).save(tmp_path / "hint.png")
    hint = load_hint(tmp_path / "hint.png", (64, 32))
    assert (hint.mode, hint.size, hint.getpixel((5, 5))) == ("RGB", (64, 32), (255, 255, 255))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n cut"])
def test_hint_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hint.png").write_bytes(content)
    message = refusal(lambda: load_hint(tmp_path / "hint.png", (64, 64)))
    assert "got no image that Pillow can read" in message


def test_folder_as_a_hint_is_refused(tmp_path: Path) -> None:
    assert "got no image that Pillow can read" in refusal(lambda: load_hint(tmp_path, (64, 64)))


def test_missing_hint_is_refused(tmp_path: Path) -> None:
    assert "got nothing of that name" in refusal(lambda: load_hint(tmp_path / "hint.png", (64, 64)))
