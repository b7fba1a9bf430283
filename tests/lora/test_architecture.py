"""A network for another Stable Diffusion is refused before any write, by its shapes or its header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lib_accel.lora.formats import LoraError, Network, read_network
from lib_accel.lora.fusion import Fuser, Wanted
from lib_accel.lora.header import family
from tests.lora import models as make
from tests.lora import networks as spell

WIDTHS = {"SD1": 768, "SD2": 1024, "SDXL": 2048}
HEADERS: dict[str, list[dict[str, str]]] = {
    "SD1": [
        {"ss_base_model_version": "sd_v1"},
        {"ss_base_model_version": "sd_1.5"},
        {"ss_v2": "False"},
        {"modelspec.architecture": "stable-diffusion-v1/lora"},
        {"modelspec.architecture": "stable-diffusion-v1-inpainting/lora"},
    ],
    "SD2": [
        {"ss_base_model_version": "sd_v2_v", "ss_v2": "True"},
        {"ss_v2": "True"},
        {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"},
    ],
    "SDXL": [
        {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"},
        {"ss_base_model_version": "sdxl_1.0"},
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
        {"modelspec.architecture": "stable-diffusion-xl-v1-base-inpainting/lora"},
    ],
    "flux-1-dev": [{"modelspec.architecture": "Flux-1-dev/lora"}],
    "flux1": [{"ss_base_model_version": "flux1"}],
    "the SDXL refiner": [{"modelspec.architecture": "stable-diffusion-xl-v1-refiner/lora"}],
}
KNOWN = [name for name in HEADERS if not name.startswith("flux")]
OTHERS = [(one, other) for one in KNOWN for other in WIDTHS if one != other]


def parts(name: str) -> dict[str, nn.Module]:
    """A UNet that reads a context of that width, with a text encoder."""
    return {"unet": make.sd1_unet(cross_attention_dim=WIDTHS[name]), "text_encoder": make.text_encoder()}


def with_header(tensors: dict[str, Tensor], header: dict[str, str], path: Path) -> Network:
    save_file(tensors, path / "style.safetensors", header)
    return read_network(path / "style.safetensors")


def refused(network: Network, models: dict[str, nn.Module], told: str, **scales: float) -> None:
    before = make.bits(*models.values())
    with pytest.raises(LoraError, match=f"'style' was made for another architecture.*{told}"):
        Fuser(models).fuse([Wanted(network, **{"te_scale": 1.0, "unet_scale": 1.0, **scales})])
    assert make.same_bits(before, *models.values())


@pytest.mark.parametrize(("made_for", "model"), [(a, b) for a in WIDTHS for b in WIDTHS if a != b])
def test_width_of_the_context_tells(made_for: str, model: str) -> None:
    tensors = spell.network(parts(made_for), pattern=".*attn2.to_[qk]|.*q_proj")
    told = rf"looks like {made_for} \(context width {WIDTHS[made_for]}\).*{WIDTHS[model]} \({model}\)"
    refused(read_network(tensors, name="style"), parts(model), told)


@pytest.mark.parametrize("kind", ["lora", "loha", "oft_R"])
def test_width_of_the_context_tells_for_other_kinds(kind: str) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "lora": {"lora_A.weight": (2, 768), "lora_B.weight": (16, 2)},
        "loha": {
            f"hada_w{n}_{side}": shape for n in (1, 2) for side, shape in (("a", (16, 2)), ("b", (2, 768)))
        },
        "oft_R": {"oft_R.weight": (192, 6)},
    }
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{stem}.{role}": torch.ones(shape) for role, shape in shapes[kind].items()}
    refused(read_network(tensors, name="style"), parts("SDXL"), r"looks like SD1 \(context width 768\)")


@pytest.mark.parametrize(("made_for", "model"), OTHERS)
def test_header_tells_where_shapes_do_not(made_for: str, model: str, tmp_path: Path) -> None:
    fitting = spell.network(parts(model), pattern=r".*attn1.to_q|.*q_proj")
    for header in HEADERS[made_for]:
        refused(with_header(fitting, header, tmp_path), parts(model), f"its header says {made_for}")


def test_header_tells_for_text_encoders_alone(tmp_path: Path) -> None:
    models = parts("SDXL")
    fitting = spell.network({"text_encoder": models["text_encoder"]})
    network = with_header(fitting, HEADERS["SD1"][0], tmp_path)
    refused(network, models, "its header says SD1", unet_scale=0.0)


@pytest.mark.parametrize("model", WIDTHS)
def test_header_of_the_same_architecture_is_taken(model: str, tmp_path: Path) -> None:
    models = parts(model)
    fitting = spell.network(models, pattern=r".*attn1.to_q")
    for header in HEADERS[model]:
        network = with_header(fitting, header, tmp_path)
        assert Fuser(models).fuse([Wanted(network, 1.0, 1.0)]).layers == len(network.layers)


def test_name_that_is_not_known_refuses_nothing_but_is_told(tmp_path: Path) -> None:
    models = parts("SD1")
    fitting = with_header(spell.network(models, pattern=r".*attn1.to_q"), HEADERS["flux1"][0], tmp_path)
    assert Fuser(models).fuse([Wanted(fitting, 1.0, 1.0)]).layers
    strange = {"transformer.single_blocks.0.linear1.lora_A.weight": torch.ones(2, 4)}
    strange["transformer.single_blocks.0.linear1.lora_B.weight"] = torch.ones(4, 2)
    told = r"it looks like flux1 \(by its header\)"
    refused(with_header(strange, HEADERS["flux1"][0], tmp_path), parts("SD1"), told)


def test_shapes_count_for_more_than_a_header(tmp_path: Path) -> None:
    models = parts("SD2")
    network = with_header(spell.network(models), HEADERS["SD1"][0], tmp_path)
    assert Fuser(models).fuse([Wanted(network, 1.0, 1.0)]).layers == len(network.layers)


def test_header_says_nothing_of_models_of_unusual_width(tmp_path: Path) -> None:
    models: dict[str, nn.Module] = {"unet": make.sd1_unet()}
    network = with_header(spell.network(models, pattern=".*attn1.*"), HEADERS["SDXL"][0], tmp_path)
    assert Fuser(models).fuse([Wanted(network, 1.0, 1.0)]).layers


@pytest.mark.parametrize("name", HEADERS)
def test_family_is_read_from_each_trainers_header(name: str) -> None:
    assert {family(header) for header in HEADERS[name]} == {name}


def test_header_without_a_word_on_it_has_no_family() -> None:
    assert family({"ss_output_name": "style", "modelspec.architecture": ""}) is None
