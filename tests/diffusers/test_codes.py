"""The option `code` with diffusers: compiled blocks make stock's picture, from one picture to the next."""

from __future__ import annotations

import functools

import pytest
import torch

from lib_accel import engine
from lib_accel.choice import Choice
from lib_accel.errors import OptionError
from lib_accel.graphs.compiler import Compiler
from lib_accel.hosts.diffusers import Handle
from tests.diffusers import models
from tests.diffusers.test_equality import LIMIT, Accelerate, Stock
from tests.diffusers.test_fallbacks import STEPS
from tests.diffusers.test_loras import lora_for

COMPILER = Compiler(lambda condition: lambda module, example: module.forward)  # runs what was traced


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "compiler_of_this_process", lambda: COMPILER)
    monkeypatch.setattr(engine, "Choice", functools.partial(Choice, helper=None))


def compiled_in(handle: Handle) -> int:
    return handle.report().generation.compiled


@pytest.mark.parametrize("form", ["sd1", "sdxl"])
def test_compiled_blocks_make_stocks_picture(accelerate: Accelerate, stock: Stock, form: str) -> None:
    pipe = models.own_pipeline(form)
    handle = accelerate(pipe, code="compiled")
    for _ in range(2):
        models.picture(pipe, form, steps=STEPS)
        assert handle.warm_up(timeout_s=240)
    handle.begin_generation()
    made = models.picture(pipe, form, steps=STEPS)
    assert compiled_in(handle) > 0
    assert models.difference(made, stock(form, steps=STEPS)) <= LIMIT


def test_codes_change_after_the_decoder_without_being_told(accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    handle = accelerate(pipe, code="compiled")
    done = []
    for _ in range(3):
        models.picture(pipe, steps=STEPS)
        with torch.no_grad():
            pipe.vae.decode(torch.zeros(1, 4, 8, 8))
        handle.warm_up(timeout_s=240)
        done.append(compiled_in(handle) > 0)
    assert done == [False, False, True]


def test_loras_are_seen_by_compiled_blocks(accelerate: Accelerate) -> None:
    pipe, other = models.own_pipeline(), models.own_pipeline()
    handle, direct = accelerate(pipe, code="compiled"), accelerate(other, code="direct")
    for _ in range(2):
        models.picture(pipe, steps=STEPS)
        handle.warm_up(timeout_s=240)
    before = handle.report().graphs.graphs
    loras = [(lora_for(pipe), 1.0, 0.8)]
    for each in (handle, direct):
        each.set_loras(loras)
    handle.begin_generation()
    made = models.picture(pipe, steps=STEPS)
    assert models.difference(made, models.picture(other, steps=STEPS)) <= LIMIT
    assert (handle.report().graphs.graphs, compiled_in(handle) > 0) == (before, True)


def test_host_leaves_the_picture_to_diffusers(accelerate: Accelerate, stock: Stock) -> None:
    pipe = models.own_pipeline()
    handle = accelerate(pipe, code="host")
    assert models.difference(models.picture(pipe, steps=STEPS), stock(steps=STEPS)) == 0
    assert handle.report().generation.fast == 0


def test_an_unknown_code_is_refused(accelerate: Accelerate) -> None:
    with pytest.raises(
        OptionError, match="code: got 'fastest', expected one of auto, direct, compiled, host"
    ):
        accelerate(models.own_pipeline(), code="fastest")
