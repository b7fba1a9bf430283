"""What is loaded from a file computes what the original's own classes compute."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_accel.demo.errors import DemoError
from lib_accel.demo.loading import check_fit, load_controlnet, load_pipeline
from tests.demo import originals
from tests.demo.conftest import Loaded
from tests.fakes.models import difference

Load = Callable[[str], Loaded]
FAMILIES = ("SD1", "SD2", "SDXL")


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(pipe: Any, tokenizer: str = "tokenizer") -> Tensor:
    found = getattr(pipe, tokenizer)(["a red house", ""], padding="max_length", return_tensors="pt")
    return found.input_ids


def generate(pipe: Any, **settings: Any) -> Any:
    settings = {"width": 32, "height": 32, "num_inference_steps": 2, **settings}
    return pipe("a red house", generator=torch.Generator().manual_seed(1), **settings).images[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_unet_of_a_file_answers_as_the_original(loaded: Load, family: str) -> None:
    it = loaded(family)
    x, steps = drawn(2, 4, 8, 8), torch.tensor([30.0, 900.0])
    context = drawn(2, 77, it.pipe.unet.config.cross_attention_dim, seed=2)
    vector, added = (), {}
    if family == "SDXL":
        pooled, sizes = drawn(2, originals.XL_WIDTH, seed=3), torch.tensor([[64.0, 32, 0, 8, 64, 64]] * 2)
        vector = (torch.cat([pooled, it.pipe.unet.add_time_proj(sizes.flatten()).reshape(2, -1)], 1),)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    answer = it.pipe.unet(x, steps, context, **added).sample
    assert difference(answer, it.original.unet(x, steps, context, *vector)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_vae_of_a_file_encodes_and_decodes_as_the_original(loaded: Load, family: str) -> None:
    it = loaded(family)
    latents, image = drawn(1, 4, 4, 4), drawn(1, 3, 32, 32)
    vae = it.original.vae
    decoded = it.pipe.vae.decode(latents).sample
    assert difference(decoded, vae.decoder(vae.post_quant_conv(latents))) < 1e-5
    moments = it.pipe.vae.encode(image).latent_dist.parameters
    assert difference(moments, vae.quant_conv(vae.encoder(image))) < 1e-5


def test_clip_of_an_sd1_file_answers_as_the_original(loaded: Load) -> None:
    it = loaded("SD1")
    tokens = ids(it.pipe)
    expected = it.original.text()(tokens).last_hidden_state
    assert difference(it.pipe.text_encoder(tokens).last_hidden_state, expected) < 1e-5


def test_open_clip_of_an_sd2_file_ends_before_the_last_layer(loaded: Load) -> None:
    it = loaded("SD2")
    tokens, text = ids(it.pipe), it.original.text()
    expected = text.ln_final(text.states(tokens)[0])
    assert difference(it.pipe.text_encoder(tokens).last_hidden_state, expected) < 1e-5


def test_both_encoders_of_an_sdxl_file_answer_as_the_originals(loaded: Load) -> None:
    it = loaded("SDXL")
    context, _, pooled, _ = it.pipe.encode_prompt("a red house", do_classifier_free_guidance=False)
    first, second = ids(it.pipe)[:1], ids(it.pipe, "tokenizer_2")[:1]
    clip = it.original.text(0)(first, output_hidden_states=True).hidden_states[-2]
    open_clip = it.original.text(1)
    assert difference(context, torch.cat([clip, open_clip.states(second)[0]], -1)) < 1e-5
    assert difference(pooled, open_clip.pooled(second)) < 1e-5


@pytest.mark.parametrize(
    ("family", "tokenizer", "pad"),
    [
        ("SD1", "tokenizer", 49407),
        ("SD2", "tokenizer", 0),
        ("SDXL", "tokenizer", 49407),
        ("SDXL", "tokenizer_2", 0),
    ],
)
def test_prompts_are_filled_up_as_the_family_does(
    loaded: Load, family: str, tokenizer: str, pad: int
) -> None:
    assert ids(loaded(family).pipe, tokenizer)[1].tolist() == [49406, 49407, *[pad] * 75]


@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_of_a_file_makes_a_picture(loaded: Load, family: str) -> None:
    low, high = generate(loaded(family).pipe).convert("L").getextrema()
    assert high - low > 20


def test_safety_checker_of_a_folder_is_left_out(loaded: Load, tmp_path: Path) -> None:
    loaded("SD1").pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index.write_text(json.dumps(json.loads(index.read_text()) | {"safety_checker": checker}))
    assert load_pipeline(tmp_path).safety_checker is None


def test_no_watermark_is_put_into_pictures(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers adds one to SDXL's where it finds the package for it."""
    module = importlib.import_module(diffusers.StableDiffusionXLPipeline.__module__)
    monkeypatch.setattr(module, "is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(module, "StableDiffusionXLWatermarker", object, raising=False)
    assert load_pipeline(loaded("SDXL").path).watermark is None


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_loading_and_generating_print_nothing(
    loaded: Load,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    it = loaded("SD1")
    it.pipe.save_pretrained(tmp_path)  # which does print
    capsys.readouterr()
    load_pipeline(it.path if kind == "file" else tmp_path, "cpu", torch.float16)
    generate(load_pipeline(it.path if kind == "file" else tmp_path, "cpu", torch.bfloat16))
    assert (*capsys.readouterr(), caplog.text) == ("", "", "")


@pytest.mark.parametrize("library", [diffusers, transformers])
def test_bars_and_warnings_of_the_libraries_are_as_before(loaded: Load, library: Any) -> None:
    logs = library.utils.logging
    before = logs.is_progress_bar_enabled(), logs.get_verbosity()
    load_pipeline(loaded("SD1").path)
    assert before == (True, logs.WARNING)
    assert (logs.is_progress_bar_enabled(), logs.get_verbosity()) == before


def test_pipeline_has_the_asked_dtype(loaded: Load) -> None:
    pipe = load_pipeline(loaded("SD1").path, "cpu", torch.float16)
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert {value.dtype for part in parts for value in part.parameters()} == {torch.float16}


def test_nine_channels_give_an_inpainting_pipeline(tmp_path: Path) -> None:
    original = originals.sd1(in_channels=9)
    save_file(original.state(), tmp_path / "inpaint.safetensors")
    pipe = load_pipeline(tmp_path / "inpaint.safetensors")
    x, step, context = drawn(1, 9, 8, 8), torch.tensor([500.0]), drawn(1, 77, originals.WIDTH)
    assert isinstance(pipe, diffusers.StableDiffusionInpaintPipeline)
    assert difference(pipe.unet(x, step, context).sample, original.unet(x, step, context)) < 1e-5


@pytest.mark.parametrize(
    ("bias", "metadata", "mark", "expected"),
    [
        (0.0, {}, (), "epsilon"),
        (-9.0, {}, (), "v_prediction"),
        (0.0, {"modelspec.prediction_type": "v"}, (), "v_prediction"),
        (-9.0, {"modelspec.prediction_type": "epsilon"}, (), "epsilon"),
        (0.0, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, (), "v_prediction"),
        (0.0, {}, ("v_pred",), "v_prediction"),
    ],
)
def test_sd2_predicts_what_its_file_says_or_its_answer_shows(
    tmp_path: Path, bias: float, metadata: dict[str, str], mark: tuple[str, ...], expected: str
) -> None:
    state = originals.sd2().state() | {name: torch.zeros(0) for name in mark}
    state["model.diffusion_model.out.2.bias"] += bias - state["model.diffusion_model.out.2.bias"].mean()
    save_file(state, tmp_path / "sd2.safetensors", metadata)
    pipe = load_pipeline(tmp_path / "sd2.safetensors")
    assert pipe.scheduler.config.prediction_type == expected


def test_sd1_predicts_noise(loaded: Load) -> None:
    assert loaded("SD1").pipe.scheduler.config.prediction_type == "epsilon"


def test_sdxl_has_the_scale_of_its_latents(loaded: Load) -> None:
    assert loaded("SDXL").pipe.vae.config.scaling_factor == 0.13025


def test_zero_snr_of_a_file_reaches_the_scheduler(loaded: Load, tmp_path: Path) -> None:
    state = load_file(loaded("SD1").path) | {"ztsnr": torch.zeros(0), "v_pred": torch.zeros(0)}
    save_file(state, tmp_path / "model.safetensors")
    assert load_pipeline(tmp_path / "model.safetensors").scheduler.config.rescale_betas_zero_snr


def test_ckpt_gives_the_same_picture_as_safetensors(loaded: Load, tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(loaded("SD1").path), "epoch": 3}, tmp_path / "model.ckpt")
    assert generate(load_pipeline(tmp_path / "model.ckpt")) == generate(loaded("SD1").pipe)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_folder_gives_the_same_picture_as_the_file(loaded: Load, tmp_path: Path, variant: str | None) -> None:
    pipe = loaded("SD1").pipe
    pipe.save_pretrained(tmp_path, variant=variant)
    assert generate(load_pipeline(tmp_path)) == generate(pipe)


def test_controlnet_of_a_file_answers_as_the_original(tmp_path: Path) -> None:
    original = originals.controlnet()
    save_file({f"control_model.{k}": v for k, v in original.state_dict().items()}, tmp_path / "c.safetensors")
    model = load_controlnet(tmp_path / "c.safetensors")
    x, hint = drawn(1, 4, 8, 8), drawn(1, 3, 64, 64)
    step, context = torch.tensor([500.0]), drawn(1, 77, originals.WIDTH)
    down, middle = model(x, step, context, controlnet_cond=hint, return_dict=False)
    expected = original(x, hint, step, context)
    assert max(map(difference, [*down, middle], expected)) < 1e-5


@pytest.fixture(scope="module")
def tiny_controlnet(loaded: Load) -> Any:
    return diffusers.ControlNetModel.from_unet(loaded("SDXL").pipe.unet)


def same_weights(ours: Any, others: Any) -> bool:
    theirs = others.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


def test_controlnet_of_diffusers_loads_from_one_file(tiny_controlnet: Any, tmp_path: Path) -> None:
    save_file(tiny_controlnet.state_dict(), tmp_path / "c.safetensors")
    model = load_controlnet(tmp_path / "c.safetensors")
    assert same_weights(model, tiny_controlnet)
    for name in ("attention_head_dim", "transformer_layers_per_block", "addition_embed_type"):
        assert model.config[name] == tiny_controlnet.config[name]


def test_controlnet_loads_from_a_folder(tiny_controlnet: Any, tmp_path: Path) -> None:
    tiny_controlnet.save_pretrained(tmp_path)
    assert same_weights(load_controlnet(tmp_path), tiny_controlnet)


def test_controlnet_of_another_family_is_refused(tiny_controlnet: Any, loaded: Load) -> None:
    check_fit(tiny_controlnet, loaded("SDXL").pipe)
    with pytest.raises(DemoError, match="got one for context of width 192, expected 64 as the model has"):
        check_fit(tiny_controlnet, loaded("SD1").pipe)


@pytest.mark.slow
def test_file_of_full_size_loads_and_runs_a_step(tmp_path: Path) -> None:
    save_file(originals.full_size_sd1(), tmp_path / "full.safetensors")
    pipe = load_pipeline(tmp_path / "full.safetensors")
    low, high = generate(pipe, width=128, height=128, num_inference_steps=1).convert("L").getextrema()
    parameters = sum(value.numel() for value in pipe.unet.parameters())
    assert (parameters, high - low > 20) == (859_520_964, True)
