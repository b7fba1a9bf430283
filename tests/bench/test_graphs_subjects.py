"""The models under test of the suite of graphs: what a picture changes, and that stock is stock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lib_accel.bench.comparison import relative_l2
from lib_accel.bench.graphs_mix import mix
from lib_accel.bench.graphs_models import PACKAGES, WIDTHS, place
from lib_accel.bench.graphs_subjects import Picture, Subject, subject
from lib_accel.choice import Choice
from lib_accel.graphs.activity import Activity
from lib_accel.graphs.compiler import Compiler
from lib_accel.graphs.verdicts import Verdicts
from lib_accel.graphs.workshop import Workshop
from tests.bench.graphs import WIDTH
from tests.fakes.models import sgm_openaimodel

PLAIN = Picture("plain", 8, 8)


@pytest.fixture(scope="module", params=PACKAGES)
def given(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """A model of each package, run direct."""
    sgm_openaimodel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WIDTHS, "toy", WIDTH)
        choice = Choice(Verdicts(None), Workshop(Compiler(), Activity(), helper=None))
        made = subject(request.param, "toy", place("toy"), choice, code="direct")
    yield made
    made.close()


@pytest.mark.parametrize(
    "changes", [{"network": 1.0}, {"network": 0.5}, {"control": True}, {"checkpoint": 1}, {"tokens": 231}]
)
def test_what_a_picture_changes_changes_the_result_until_it_is_back(
    given: Subject, changes: dict[str, Any]
) -> None:
    before, changed = given.call(PLAIN), given.call(PLAIN._replace(**changes))
    assert relative_l2(changed, before) > 1e-3
    assert torch.equal(given.call(PLAIN), before)


def test_all_pictures_of_the_mix_can_be_made(given: Subject) -> None:
    for picture in mix(8, given.odd):
        assert given.call(picture).shape == (picture.batch, 4, picture.height, picture.width)


def test_nothing_of_ours_runs_as_stock_and_it_does_again_afterwards(given: Subject) -> None:
    given.begin_generation()
    with given.as_stock():
        given.call(PLAIN)
    assert given.report().generation.total == 0
    given.call(PLAIN)
    assert given.report().generation.direct > 0
