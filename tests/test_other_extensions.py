"""Beside other extensions of the webui the picture is what they make of the host's, and the rest is fast."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lib_accel.engine import Engine
from lib_accel.report import Generation
from tests.fakes.extensions import PICTURE, STYLES, Studio
from tests.fakes.host import attached
from tests.fakes.models import difference
from tests.fakes.webui_processing import FakeRequest
from tests.test_equality import LIMIT

# What comes first: their patch or our engine, and which of both goes first.
ORDERS = (
    "patch attach undo detach",
    "patch attach detach undo",
    "attach patch undo detach",
    "attach patch detach undo",
    "patch undo attach detach",
    "attach detach patch undo",
)


class Stock(NamedTuple):
    """What the host draws without us."""

    plain: Tensor
    patched: Tensor


class Seen(NamedTuple):
    """What was drawn with us: with the patch, twice, and when it was gone."""

    patched: list[Tensor]
    generation: Generation
    after: Tensor
    generation_after: Generation


@functools.cache
def stock(name: str) -> Stock:
    with Studio.opened() as studio:
        plain = studio.picture()
        undo = STYLES[name].apply(studio)
        patched = studio.picture()
        undo()
        assert torch.equal(studio.picture(), plain)
        return Stock(plain, patched)


@functools.cache
def seen(name: str) -> Seen:
    with Studio.opened() as studio, attached(studio.host) as engine:
        studio.picture()
        undo = STYLES[name].apply(studio)
        patched = [drawn(studio, engine) for _ in range(2)]
        generation = engine.generation
        undo()
        return Seen(patched, generation, drawn(studio, engine), engine.generation)


def drawn(studio: Studio, engine: Engine) -> Tensor:
    engine.begin_generation()
    return studio.picture()


@pytest.mark.parametrize("name", STYLES)
def test_a_picture_with_another_extension_is_the_hosts_own(name: str) -> None:
    assert difference(stock(name).patched, stock(name).plain) > 1e-2
    assert max(difference(ours, stock(name).patched) for ours in seen(name).patched) <= LIMIT


@pytest.mark.parametrize("name", STYLES)
def test_only_what_another_extension_touched_is_the_hosts_and_the_report_says_why(name: str) -> None:
    style, generation = STYLES[name], seen(name).generation
    assert (generation.direct, generation.host) == (style.direct, style.host), generation.reasons
    assert [reason for reason in generation.reasons if not re.search(style.reason, reason)] == []


@pytest.mark.parametrize("name", STYLES)
def test_all_is_fast_again_and_as_before_when_another_extension_is_gone(name: str) -> None:
    assert difference(seen(name).after, stock(name).plain) <= LIMIT
    assert (seen(name).generation_after.direct, seen(name).generation_after.host) == (PICTURE, 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", STYLES)
def test_patches_and_our_engine_come_and_go_in_any_order(name: str, order: str) -> None:
    undo, wanted = None, stock(name).plain
    with Studio.opened() as studio, attached(studio.host) as engine:
        engine.detach()
        for action in order.split():
            if action == "patch":
                undo, wanted = STYLES[name].apply(studio), stock(name).patched
            elif action == "undo":
                undo, wanted = undo(), stock(name).plain
            else:
                getattr(engine, action)()
            assert difference(studio.picture(), wanted) <= LIMIT


@pytest.mark.parametrize("enabled", [True, False])
def test_adetailers_generations_are_as_the_one_around_them(extension: Any, enabled: bool) -> None:
    script, p = extension.AccelScript(), FakeRequest()
    script.before_process(p)
    script.process(p, enabled)
    script.postprocess(copy.copy(p), None)  # between the pictures of a batch it ends a copy,
    assert extension._host.options().enabled is enabled  # generates without our script,
    again = copy.copy(p)
    script.before_process(again)  # and begins another
    script.process(again, enabled)
    del again
    assert extension._host.options().enabled is enabled
    script.postprocess(p, None)
    assert extension._host.options().enabled is True
