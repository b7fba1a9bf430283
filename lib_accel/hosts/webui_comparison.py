"""Compare with stock: the same request once more without us, before its own turn comes."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from modules import devices, processing, shared
from PIL import Image

from lib_accel.difference import AMPLIFIED, difference
from lib_accel.pictures import StepClock

# What a request collects while it is drawn; its copy must not add to it.
_COLLECTIONS = ("comments", "extra_generation_params", "override_settings")
_CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")  # of encoded prompts: each side its own
# What tells how far the webui is, in modules/shared_state.py.
_PROGRESS = ("job_count", "job_no", "sampling_step", "textinfo", "processing_has_refined_job_count")


class Stock(NamedTuple):
    """What stock made of a request; `is_whole` if its user let it."""

    pictures: Sequence[Image.Image]
    infotexts: Sequence[str]
    step_ms: float | None
    is_whole: bool


def why_not(request: Any) -> str | None:
    """Why a request cannot be compared: scripts of the list "Script" take the pictures for their own."""
    arguments = getattr(request, "script_args", None) or (0,)
    return "a script is chosen that uses the pictures itself" if arguments[0] else None


def draw_stock(
    request: Any, clock: StepClock, stocks_turn: Callable[[], AbstractContextManager[None]]
) -> Stock:
    """Draws a copy of the request while we are off.

    request: a processing object in its `before_process`; scripts that came before ours see the copy too.
    Its seeds are fixed by this, so that both draw the same. Random states and progress are afterwards as they
    were, whatever happens; an interruption stays, and ends the request too.
    """
    processing.fix_seed(request)
    twin = copy.copy(request)
    for name in _COLLECTIONS:
        setattr(twin, name, dict(getattr(request, name)))
    twin.styles = list(getattr(request, "styles", None) or ())
    for name in _CACHES:
        if hasattr(twin, name):
            setattr(twin, name, [None, None])
    twin.do_not_save_samples = twin.do_not_save_grid = True
    twin.override_settings_restore_afterwards = True
    clock.reset()
    with _same_progress(), _same_lot(), stocks_turn(), contextlib.closing(twin):
        shared.state.textinfo = "Accel: drawing without acceleration, to compare"
        drawn = processing.process_images(twin)
    numbers = _own_pictures(drawn, twin)
    stock = Stock(
        [drawn.images[number] for number in numbers],
        [_infotext(drawn, number) for number in numbers],
        clock.step_ms(),
        is_whole=not was_cut_short(),
    )
    clock.reset()
    return stock


def was_cut_short() -> bool:
    """Whether the user ended the picture before it was done."""
    state = shared.state
    return bool(state.interrupted or state.skipped or state.stopping_generation)


def show_instead(result: Any, stock: Stock) -> None:
    """Gives a result without pictures those of stock: its user interrupted before its own turn came."""
    if not result.images:
        result.images += stock.pictures
        result.infotexts[:] = stock.infotexts or result.infotexts
        result.comments += "Accel: interrupted while this was drawn without acceleration\n"


def add_to(
    result: Any, request: Any, stock: Stock, ours_step_ms: float | None
) -> tuple[float | None, int | None]:
    """Puts stock's pictures and the differences behind those of the result, and the times below them.

    Returns stock's time of a step divided by ours, and the largest difference, of 255; None where there was
    too little to measure, or pictures that cannot be compared.
    """
    numbers = _own_pictures(result, request)
    ours = [(result.images[number], _infotext(result, number)) for number in numbers]
    result.infotexts += [result.infotexts[-1]] * (len(result.images) - len(result.infotexts))  # as of masks
    seen: int | None = None
    for (one, info), other, others_info in zip(ours, stock.pictures, stock.infotexts, strict=False):
        if one.size != other.size:
            continue
        largest, apart = difference(one, other)
        seen = max(seen or 0, largest)
        result.images += [other, apart]
        result.infotexts += [
            f"{others_info}, Accel comparison: without acceleration",
            f"{info}, Accel comparison: difference x{AMPLIFIED}",
        ]
    ratio = stock.step_ms / ours_step_ms if stock.step_ms and ours_step_ms else None
    result.comments += "".join(f"{line}\n" for line in _in_words(stock.step_ms, ours_step_ms, ratio, seen))
    return ratio, seen


def _own_pictures(result: Any, request: Any) -> list[int]:
    """Where the pictures themselves are, among a grid, masks, and what ControlNets were given."""
    options = shared.opts
    has_mask = getattr(request, "mask_for_overlay", None) is not None
    masks = has_mask * sum(
        bool(getattr(options, name, False)) for name in ("return_mask", "return_mask_composite")
    )
    first, count = result.index_of_first_image, len(request.all_seeds)
    numbers = (first + number * (1 + masks) for number in range(count))
    return [number for number in numbers if number < len(result.images)]


def _infotext(result: Any, number: int) -> str:
    return str(result.infotexts[min(number, len(result.infotexts) - 1)])


def _in_words(
    stock_ms: float | None, ours_ms: float | None, ratio: float | None, largest: int | None
) -> Iterator[str]:
    if ratio is not None:
        yield f"Accel: {ours_ms:.1f} ms/step, without {stock_ms:.1f} ms/step: {ratio:.2f}x"
    if largest == 0:
        yield "Accel: the pictures are equal"
    elif largest is not None:
        yield f"Accel: no pixel differs by more than {largest} of 255"


@contextlib.contextmanager
def _same_progress() -> Iterator[None]:
    """The request's own turn counts its steps from where they were."""
    before = {name: getattr(shared.state, name) for name in _PROGRESS}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(shared.state, name, value)


@contextlib.contextmanager
def _same_lot() -> Iterator[None]:
    """Scripts draw prompts by lot, and img2img its latents: both turns find the same random states."""
    python, numpy = random.getstate(), np.random.get_state()
    gpus = [devices.device] if torch.device(devices.device).type == "cuda" else []
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
