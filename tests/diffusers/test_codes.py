"""The option `code` with diffusers: compiled blocks make stock's picture, from one picture to the next."""

from __future__ import annotations

from typing import Any

import pytest

from lib_accel import measured
from lib_accel.errors import OptionError
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.compiler import Compiler
from lib_accel.graphs.workshop import Workshop
from lib_accel.hosts.diffusers import Handle
from tests.diffusers import models
from tests.diffusers.test_equality import LIMIT, Accelerate, Stock
from tests.diffusers.test_fallbacks import STEPS
from tests.diffusers.test_loras import lora_for

COMPILER = Compiler(lambda condition: lambda module, example: module.forward)  # runs what was traced


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = Workshop(COMPILER, Activity(), helper=None)
    monkeypatch.setattr(measured, "workshop_of_this_process", lambda: workshop)


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


def test_codes_change_with_the_next_prompt_without_being_told(accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    handle = accelerate(pipe, code="compiled")
    done = []
    for _ in range(3):
        models.picture(pipe, steps=STEPS)
        handle.warm_up(timeout_s=240)
        done.append(compiled_in(handle) > 0)
    assert done == [False, False, True]


def test_a_preview_changes_no_code_within_a_picture(accelerate: Accelerate) -> None:
    pipe = models.own_pipeline()
    handle = accelerate(pipe, code="compiled")

    def preview(pipe: Any, step: int, time: Any, given: Any) -> Any:
        pipe.vae.decode(given["latents"])
        return {}

    for _ in range(2):
        models.picture(pipe, steps=STEPS, callback_on_step_end=preview)
        assert compiled_in(handle) == 0
        handle.warm_up(timeout_s=240)


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
        OptionError, match="code: got 'fastest', expected one of auto, direct, measured, compiled, host"
    ):
        accelerate(models.own_pipeline(), code="fastest")
