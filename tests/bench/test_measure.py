"""A case is measured on two pipelines that share nothing, and leaves no trace."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from lib_accel.bench.jobs import JOBS
from lib_accel.bench.measure import Stand, measure, standing
from lib_accel.bench.models import pipeline
from lib_accel.bench.suites import SUITES, Case, Effort
from lib_accel.bench.timing import ACCELERATED, STOCK, Clock
from lib_accel.patching import is_ours

BRIEF = Effort(pairs=1, steps=2, compared_steps=2, switches=1, counts=(0, 1))
CPU = torch.device("cpu")
ALL = [case for cases in SUITES.values() for case in cases]
PLAIN = {(case.form, case.task, case.controls): case for case in ALL if not case.networks}


def _is_patched() -> bool:
    return is_ours(diffusers.UNet2DConditionModel.forward)


def _latents(case: Case) -> torch.Tensor:
    return Stand(case).run(STOCK, 2)[1]


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """Those of a case with a network."""
    return measure(Case("some", networks=1), BRIEF)


@pytest.mark.parametrize("case", PLAIN.values(), ids=lambda case: case.name)
def test_a_case_runs_on_stock_diffusers(case: Case) -> None:
    task = case.task if case.is_sampled else "text"
    clock = Clock(CPU)
    JOBS[case.task](pipeline(case.form, task=task, controls=case.controls), case, 2, clock)
    assert clock.steps == 2


@pytest.mark.parametrize("change", [{"networks": 1}, {"controls": 1}])
def test_networks_and_control_nets_move_the_latents(change: dict[str, int]) -> None:
    without = _latents(Case("plain"))
    assert (_latents(Case("moved", **change)) - without).norm() > 0.01 * without.norm()


def test_a_case_has_exactly_the_keys_of_the_file(figures: dict[str, Any]) -> None:
    times = ["stock_ms", "accelerated_ms", "ratio", "ratio_low95"]
    assert list(figures) == ["name", "code", "launch", *times, "blocks", "difference"]


def test_a_case_says_what_ran(figures: dict[str, Any]) -> None:
    assert figures["blocks"]["by_speed"]["direct"] > 0
    assert figures["blocks"] == {"by_speed": {"direct": 90, "compiled": 0, "host": 0}, "reasons": {}}


def test_a_merged_network_gives_the_latents_of_stocks_adapter(figures: dict[str, Any]) -> None:
    assert 0 < figures["difference"]["rel_l2"] < 1e-5


def test_pictures_are_compared_too(figures: dict[str, Any]) -> None:
    assert figures["difference"]["picture_max"] <= 1


def test_a_text_encoder_has_no_picture() -> None:
    assert list(measure(Case("some", task="text encoder"), BRIEF)["difference"]) == ["rel_l2"]


def test_nothing_of_ours_is_in_place_on_stocks_turn() -> None:
    stand = Stand(Case("plain"))
    stand.turn(ACCELERATED)
    assert _is_patched()
    stand.turn(STOCK)
    assert not _is_patched()


def test_nothing_of_ours_is_left_after_a_case() -> None:
    with standing(Case("plain")) as stand:
        stand.turn(ACCELERATED)
    assert stand.pipes
    assert not _is_patched()


def test_the_sides_share_no_module() -> None:
    stock, ours = (set(map(id, pipe.unet.modules())) for pipe in Stand(Case("plain")).pipes.values())
    assert not stock & ours
