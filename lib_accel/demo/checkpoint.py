"""A whole model in one file of the original layout: its family, and a diffusers config for each part."""

from __future__ import annotations

from dataclasses import dataclass

from lib_accel.demo import architecture
from lib_accel.demo.architecture import Config
from lib_accel.demo.errors import refused
from lib_accel.demo.kinds import kind_of
from lib_accel.demo.weight_file import WeightFile

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_SD1_TEXT = "cond_stage_model.transformer.text_model."
_SD2_TEXT = "cond_stage_model.model."
_SDXL_TEXTS = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")
_REFINER_TEXT = "conditioner.embedders.0.model."

_PLAIN_CHANNELS, _INPAINT_CHANNELS = 4, 9
_WANTED = "an SD1, SD2 or SDXL checkpoint"
_LATENT_SIDES = {"SD1": 64, "SD2": 64, "SDXL": 128}  # what is made when no size is asked for
_SDXL_VAE = {"scaling_factor": 0.13025, "force_upcast": True}  # it overflows in float16

# What trainers leave in a file. https://github.com/Stability-AI/ModelSpec names the first two.
_PREDICTION, _FAMILY_NAME = "modelspec.prediction_type", "modelspec.architecture"
_PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}
_V_MARK, _ZERO_SNR_MARK = "v_pred", "ztsnr"
_ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@dataclass(frozen=True)
class Checkpoint:
    """What a file of the original layout holds.

    configs: by diffusers' name of the part. prediction: diffusers' name of what the UNet predicts, None if
    only the UNet itself can tell, which is so for SD2.
    """

    family: str  # SD1, SD2 or SDXL
    is_inpainting: bool
    configs: dict[str, Config]
    prediction: str | None
    noise: Config


def read_checkpoint(file: WeightFile) -> Checkpoint:
    """Raises DemoError if the file is no whole SD1, SD2 or SDXL model, and says what it is."""
    if f"{_UNET}input_blocks.0.0.weight" not in file.shapes:
        kind = kind_of(file)
        raise refused(file.path, got=kind.what, expected=_WANTED, do=kind.advice)
    family = _family(file)
    try:
        configs = _configs(file, family)
    except (KeyError, IndexError, StopIteration) as error:
        raise refused(
            file.path, got=f"{family} without {error}", expected="all of its weights", do="download it again"
        ) from None
    channels = configs["unet"]["in_channels"]
    _demand_usual_channels(file, channels)
    _demand_equal_widths(file, configs)
    return Checkpoint(
        family=family,
        is_inpainting=channels == _INPAINT_CHANNELS,
        configs=configs,
        prediction=_prediction(file, family, channels),
        noise=architecture.NOISE | (_ZERO_SNR if _ZERO_SNR_MARK in file.shapes else {}),
    )


def _family(file: WeightFile) -> str:
    if file.has(_VAE):
        if file.has(_SD1_TEXT):
            return "SD1"
        if file.has(_SD2_TEXT):
            return "SD2"
        if all(file.has(prefix) for prefix in _SDXL_TEXTS):
            return "SDXL"
    got = "a UNet without VAE" if not file.has(_VAE) else "a UNet without a known text encoder"
    if file.has(_REFINER_TEXT) and not file.has(_SDXL_TEXTS[1]):
        got = "the SDXL refiner"
    raise refused(file.path, got=got, expected=_WANTED, do="give a file that has UNet, VAE and text encoder")


def _configs(file: WeightFile, family: str) -> dict[str, Config]:
    configs = {
        "unet": architecture.unet_config(file.under(_UNET)) | {"sample_size": _LATENT_SIDES[family]},
        "vae": architecture.vae_config(file.under(_VAE)),
    }
    if family == "SD1":
        configs["text_encoder"] = architecture.clip_config(file.under(_SD1_TEXT))
    elif family == "SD2":
        configs["text_encoder"] = architecture.open_clip_config(file.under(_SD2_TEXT), skip_last=True)
        configs["unet"]["upcast_attention"] = True
    else:
        first, second = (file.under(prefix) for prefix in _SDXL_TEXTS)
        configs["text_encoder"] = architecture.clip_config(first)
        configs["text_encoder_2"] = architecture.open_clip_config(second, skip_last=False)
        configs["vae"] |= _SDXL_VAE
    return configs


def _demand_usual_channels(file: WeightFile, channels: int) -> None:
    if channels not in (_PLAIN_CHANNELS, _INPAINT_CHANNELS) or "edm_mean" in file.shapes:
        raise refused(
            file.path,
            got=f"a model of {channels} input channels for a pipeline of its own",
            expected=f"{_PLAIN_CHANNELS} channels, or {_INPAINT_CHANNELS} for inpainting",
            do="give an ordinary checkpoint",
        )


def _demand_equal_widths(file: WeightFile, configs: dict[str, Config]) -> None:
    texts = [configs[part]["hidden_size"] for part in ("text_encoder", "text_encoder_2") if part in configs]
    context = configs["unet"]["cross_attention_dim"]
    if sum(texts) != context:
        raise refused(
            file.path,
            got=f"a text encoder of width {' + '.join(map(str, texts))} with a UNet for {context}",
            expected="equal widths",
            do="the file mixes two families, give another",
        )


def _prediction(file: WeightFile, family: str, channels: int) -> str | None:
    said = _PREDICTIONS.get(file.metadata.get(_PREDICTION, ""))
    if said:
        return said
    if _V_MARK in file.shapes or file.metadata.get(_FAMILY_NAME, "").endswith("-v"):
        return "v_prediction"
    return None if (family, channels) == ("SD2", _PLAIN_CHANNELS) else "epsilon"
