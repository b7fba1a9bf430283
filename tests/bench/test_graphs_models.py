"""The models of the suite of graphs: their forms, their weights, and what is done to them."""

from __future__ import annotations

import sys

import pytest
import torch

from lib_accel.bench.graphs_models import (
    PACKAGES,
    WIDTHS,
    another_checkpoint,
    compvis_unet,
    diffusers_unet,
    home_of,
    place,
    sharing,
)
from lib_accel.bench.models import pipeline
from tests.fakes.models import sgm_openaimodel


def test_the_small_width_is_that_of_the_other_suites() -> None:
    config, size = pipeline("sd1").unet.config, WIDTHS["tiny"]
    assert config.block_out_channels == size.channels
    assert (config.cross_attention_dim, config.layers_per_block) == (size.context, size.layers)


def test_a_unet_of_diffusers_has_the_types_of_its_levels_from_sd1() -> None:
    theirs, ours = pipeline("sd1").unet, diffusers_unet("tiny", place("tiny"))
    shapes = [{name: each.shape for name, each in unet.state_dict().items()} for unet in (theirs, ours)]
    assert shapes[0] == shapes[1]


def test_a_unet_of_ldm_has_as_many_weights_as_that_of_diffusers() -> None:
    unets = compvis_unet("ldm", "toy", place("toy")), diffusers_unet("toy", place("toy"))
    counts = [sum(each.numel() for each in unet.parameters()) for unet in unets]
    assert counts[0] == counts[1]


def test_no_weight_is_zero_and_results_are_as_large_as_inputs() -> None:
    unet = diffusers_unet("toy", place("toy"))
    assert all(parameter.abs().max() > 0 for parameter in unet.parameters())
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    result = unet(x, 500, encoder_hidden_states=context).sample
    assert 0.1 < result.std() < 10


def test_another_checkpoint_has_other_weights_of_the_same_shapes() -> None:
    unet = diffusers_unet("toy", place("toy"))
    first, second = unet.state_dict(), another_checkpoint(unet, 1).state_dict()
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_models_may_share_weights_and_no_module() -> None:
    unet = diffusers_unet("toy", place("toy"))
    other = sharing(unet)
    assert not {*map(id, unet.modules())} & {*map(id, other.modules())}
    assert [*map(id, unet.parameters())] == [*map(id, other.parameters())]


def test_a_package_that_is_missing_is_told_by_its_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sgm.modules.diffusionmodules.openaimodel", None)
    with pytest.raises(ImportError):
        home_of("sgm")


def test_a_unet_of_sgm_is_built_of_what_its_class_takes() -> None:
    sgm_openaimodel()
    assert compvis_unet("sgm", "toy", place("toy")).num_classes == "sequential"
    assert "sgm" in PACKAGES
