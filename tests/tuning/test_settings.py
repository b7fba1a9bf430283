"""Another process computes by the switches that this one has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lib_accel.tuning.settings import Settings


@pytest.fixture(autouse=True)
def _settings_come_back() -> Iterator[None]:
    before = Settings.now()
    yield
    before.take()
    assert Settings.now() == before


NOW = Settings.now()
SWITCHES = range(len(NOW.switches))


def other(number: int) -> Settings:
    """Those of now, but for one switch."""
    switches = (value != (each == number) for each, value in enumerate(NOW.switches))
    return NOW._replace(switches=tuple(switches))


@pytest.mark.parametrize("number", SWITCHES)
def test_each_switch_is_taken(number: int) -> None:
    other(number).take()
    assert Settings.now() == other(number)


def test_reductions_are_taken() -> None:
    wanted = NOW._replace(reductions=(False, False))
    wanted.take()
    assert Settings.now() == wanted


def test_whether_cudnn_tries_its_algorithms_is_taken() -> None:
    wanted = NOW._replace(is_benchmarking=not NOW.is_benchmarking)
    wanted.take()
    assert Settings.now() == wanted


def test_settings_print_themselves_wholly() -> None:
    assert repr(NOW).startswith("Settings(switches=(False, ")
    assert repr(NOW) == repr(Settings.now())
