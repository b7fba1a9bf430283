"""How many graphs the real models need, and that control models and depths add none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from lib_accel.graphs.structure import Structure
from tests.graphs.real_models import (
    INPAINTING,
    REFINER,
    SD1,
    SD2,
    SDXL,
    diffusers_controlnet,
    diffusers_unet,
    ldm_unet,
    sgm_controlnet,
    sgm_unet,
    structures,
)

MOST = 24  # of a UNet with a control model

# By model, how many structures its UNet and its control model have.
COUNTS: dict[str, tuple[Callable[[Any], nn.Module], Callable[[Any], nn.Module], Any, int, int]] = {
    "SD1": (ldm_unet, sgm_controlnet, SD1, 17, 8),
    "SD2": (ldm_unet, sgm_controlnet, SD2, 17, 8),
    "inpainting": (ldm_unet, sgm_controlnet, INPAINTING, 17, 8),
    "SDXL": (sgm_unet, sgm_controlnet, SDXL, 16, 7),
    "SDXL refiner": (sgm_unet, sgm_controlnet, REFINER, 16, 7),
    "SD1 of diffusers": (diffusers_unet, diffusers_controlnet, "SD1", 17, 8),
    "SDXL of diffusers": (diffusers_unet, diffusers_controlnet, "SDXL", 16, 7),
}


def found(name: str) -> tuple[frozenset[Structure], frozenset[Structure]]:
    """The structures of a UNet, and of its control model."""
    unet, controlnet, which, _, _ = COUNTS[name]
    return structures(unet(which)), structures(controlnet(which))


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_has_so_many_structures(name: str) -> None:
    unet, controlnet = found(name)
    assert (len(unet), len(controlnet)) == COUNTS[name][3:]
    assert len(unet | controlnet) <= MOST


@pytest.mark.parametrize("name", COUNTS)
def test_a_control_model_adds_no_structure(name: str) -> None:
    unet, controlnet = found(name)
    assert controlnet <= unet


def test_each_kind_of_block_is_met() -> None:
    kinds = {structure.kind for structure in structures(ldm_unet(SD1))}
    assert kinds == {"residual", "transformer block", "upsample"}


def test_inpainting_has_the_structures_of_any_sd1() -> None:
    assert structures(ldm_unet(INPAINTING)) == structures(ldm_unet(SD1))


@pytest.mark.parametrize(
    ("config", "shallow"),
    [(SDXL, SDXL._replace(depths=(0, 1, 1))), (REFINER, REFINER._replace(depths=(0, 1, 1, 0)))],
    ids=["SDXL", "SDXL refiner"],
)
def test_deep_transformers_have_the_structures_of_shallow_ones(config: Any, shallow: Any) -> None:
    assert structures(sgm_unet(config)) == structures(sgm_unet(shallow))


def test_both_packages_of_the_compvis_line_have_the_same_structures() -> None:
    assert structures(sgm_unet(SD1)) == structures(ldm_unet(SD1))


def test_transformer_blocks_of_diffusers_have_the_structures_of_ldms() -> None:
    ours, theirs = structures(diffusers_unet("SD1")), structures(ldm_unet(SD1))
    assert {each.kind for each in ours & theirs} == {"transformer block", "upsample"}
    assert {each.kind for each in ours ^ theirs} == {"residual"}  # whose norms do not compute in float32
