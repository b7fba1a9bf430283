"""Compare with stock: the same request once more without us, before its own turn comes."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from modules import processing, shared
from PIL import Image

from lib_accel.difference import AMPLIFIED, difference
from lib_accel.pictures import StepClock

# What a request collects while it is drawn; its copy must not add to it.
_COLLECTIONS = ("comments", "extra_generation_params", "override_settings")
_CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")  # of encoded prompts: each side its own


class Stock(NamedTuple):
    """What stock made of a request."""

    pictures: Sequence[Image.Image]
    step_ms: float | None


def draw_stock(request: Any, clock: StepClock, setting: str) -> Stock | None:
    """Draws a copy of the request with the setting off; None if its user interrupted that.

    request: a processing object, before anything was done with it; its seeds are fixed by this, so that both
    draw the same. All random states are afterwards as they were.
    """
    processing.fix_seed(request)
    twin = copy.copy(request)
    for name in _COLLECTIONS:
        setattr(twin, name, dict(getattr(request, name)))
    for name in _CACHES:
        if hasattr(twin, name):
            setattr(twin, name, [None, None])
    twin.override_settings[setting] = False
    twin.do_not_save_samples = twin.do_not_save_grid = True
    clock.reset()
    with _same_lot(), contextlib.closing(twin):
        shared.state.textinfo = "Accel: drawing without acceleration, to compare"
        drawn = processing.process_images(twin)
    step_ms = clock.step_ms()
    _begin_anew(clock)
    if shared.state.interrupted or shared.state.stopping_generation:
        return None
    first = drawn.index_of_first_image
    return Stock(drawn.images[first : first + len(twin.all_seeds)], step_ms)  # without what ControlNets add


def add_to(result: Any, stock: Stock, ours_step_ms: float | None) -> tuple[float | None, int | None]:
    """Puts stock's pictures and the differences behind those of the result, and the times below them.

    Returns stock's time of a step divided by ours, and the largest difference, of 255; None where there was
    too little to measure, or pictures that cannot be compared.
    """
    ours = result.images[result.index_of_first_image :][: len(stock.pictures)]
    seen: int | None = None
    for number, (one, other) in enumerate(zip(ours, stock.pictures, strict=False)):
        if one.size != other.size:
            continue
        largest, apart = difference(one, other)
        seen = max(seen or 0, largest)
        info = result.infotexts[min(result.index_of_first_image + number, len(result.infotexts) - 1)]
        result.images += [other, apart]
        result.infotexts += [f"Without acceleration. {info}", f"Difference x{AMPLIFIED}. {info}"]
    ratio = stock.step_ms / ours_step_ms if stock.step_ms and ours_step_ms else None
    result.comments += "".join(f"{line}\n" for line in _in_words(stock.step_ms, ours_step_ms, ratio, seen))
    return ratio, seen


def _in_words(
    stock_ms: float | None, ours_ms: float | None, ratio: float | None, largest: int | None
) -> Iterator[str]:
    if ratio is not None:
        yield f"Accel: {ours_ms:.1f} ms/step, without {stock_ms:.1f} ms/step: {ratio:.2f}x"
    if largest == 0:
        yield "Accel: the pictures are equal"
    elif largest is not None:
        yield f"Accel: no pixel differs by more than {largest} of 255"


def _begin_anew(clock: StepClock) -> None:
    """The request's own turn counts its steps from the beginning (modules/shared_state.py)."""
    clock.reset()
    shared.state.textinfo = None
    shared.state.job_count, shared.state.job_no = -1, 0
    shared.state.processing_has_refined_job_count = False


@contextlib.contextmanager
def _same_lot() -> Iterator[None]:
    """Scripts draw prompts by lot, and img2img its latents: both turns find the same random states."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
