"""The latest pictures, and how fast their steps were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lib_accel.pictures import Picture, Pictures, StepClock, compared

PICTURE = Picture(
    width=512,
    height=512,
    batch_size=1,
    steps=20,
    networks=1,
    control_models=0,
    fast=900,
    total=900,
    fuse_s=0.03,
    seconds=2.0,
    step_ms=100.0,
    is_accelerated=True,
    ended="12:00:00",
)


def _clock(monkeypatch: pytest.MonkeyPatch, noted: Sequence[tuple[float, int]]) -> StepClock:
    clock = StepClock()
    for now, step in noted:
        monkeypatch.setattr("lib_accel.pictures.time.perf_counter", lambda now=now: now)
        clock.note(step)
    return clock


def test_the_latest_picture_comes_first_and_old_ones_go() -> None:
    pictures = Pictures()
    for steps in range(30):
        pictures.add(replace(PICTURE, steps=steps))
    assert [picture.steps for picture in pictures.latest()] == list(range(29, 9, -1))


def test_speed_is_told_in_steps_a_second() -> None:
    assert PICTURE.as_dict()["its_per_s"] == 10.0
    assert replace(PICTURE, step_ms=None).its_per_s is None


def test_a_comparison_counts_for_later_pictures_of_the_same_work() -> None:
    pictures = Pictures()
    pictures.add(compared(PICTURE, 1.6, 1))
    pictures.add(replace(PICTURE, steps=50))
    assert pictures.ratio() == 1.6


@pytest.mark.parametrize(
    "latest",
    [replace(PICTURE, width=768), replace(PICTURE, networks=2), replace(PICTURE, is_accelerated=False)],
)
def test_a_comparison_does_not_count_for_other_work(latest: Picture) -> None:
    pictures = Pictures()
    pictures.add(compared(PICTURE, 1.6, 1))
    pictures.add(latest)
    assert pictures.ratio() is None


def test_no_picture_has_no_ratio() -> None:
    assert Pictures().ratio() is None


def test_the_first_step_is_left_out_of_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _clock(monkeypatch, [(0.0, 0), (5.0, 1), (5.1, 2), (5.2, 3)])
    assert clock.step_ms() == pytest.approx(100.0)


def test_too_few_steps_have_no_median(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _clock(monkeypatch, [(0.0, 0), (5.0, 1), (5.1, 2)]).step_ms() is None


def test_what_lies_between_two_passes_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _clock(monkeypatch, [(0.0, 0), (0.1, 1), (0.2, 2), (9.0, 0), (9.1, 1), (9.2, 2), (9.3, 3)])
    assert clock.step_ms() == pytest.approx(100.0)


def test_steps_that_the_host_counts_by_twos_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _clock(monkeypatch, [(0.0, 0), (0.1, 2), (0.2, 4), (0.3, 6)])
    assert clock.step_ms() == pytest.approx(50.0)


def test_a_sampler_that_asks_twice_for_a_step_takes_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [(0.1 * number, step) for number, step in enumerate((0, 0, 0, 1, 1, 2, 2, 3, 3))]
    assert _clock(monkeypatch, calls).step_ms() == pytest.approx(200.0)


def test_the_first_pass_counts_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [(0.1 * step, step) for step in range(5)]
    second = [(9 + 0.4 * step, step) for step in range(5)]
    assert _clock(monkeypatch, [*first, *second]).step_ms() == pytest.approx(100.0)


def test_a_reset_clock_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _clock(monkeypatch, [(0.0, 0), (0.1, 1), (0.2, 2), (0.3, 3)])
    clock.reset()
    assert clock.step_ms() is None
