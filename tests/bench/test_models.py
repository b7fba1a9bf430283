"""The benchmark's models: the same bits each time, and nothing in them that adds exactly nothing."""

from __future__ import annotations

import pytest
import torch

from lib_accel.bench.lora import fingerprint
from lib_accel.bench.models import FORMS, pipeline, twin
from lib_accel.bench.suites import SUITES


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_the_same_bits_each_time(form: str) -> None:
    task = "inpaint" if form == "inpainting" else "text"
    first, second = (fingerprint(pipeline(form, task=task).unet) for _ in range(2))
    assert first == second


def test_every_form_is_part_of_a_suite() -> None:
    assert {case.form for cases in SUITES.values() for case in cases} == set(FORMS)


def test_building_leaves_torchs_random_state() -> None:
    before = torch.random.get_rng_state()
    pipeline("sd1")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_twin_has_the_same_bits() -> None:
    pipe = pipeline("sd1")
    assert fingerprint(twin(pipe).unet) == fingerprint(pipe.unet)


def test_a_twin_shares_no_weight() -> None:
    pipe = pipeline("sd1", controls=1)
    own, others = ({id(p) for p in each.parameters()} for each in (pipe.unet, twin(pipe).unet))
    assert not own & others


def test_two_control_nets_differ() -> None:
    first, second = pipeline("sd1", controls=2).controlnet.nets
    assert fingerprint(first) != fingerprint(second)


def test_a_control_net_adds_something_at_every_level() -> None:
    net = pipeline("sd1", controls=1).controlnet
    added = (*net.controlnet_down_blocks, net.controlnet_mid_block)
    assert all(convolution.weight.abs().max() > 0.01 for convolution in added)
