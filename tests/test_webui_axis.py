"""The axis of the webui's X/Y/Z plot."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from lib_accel.hosts.webui_axis import add_axis
from lib_accel.options import CODES
from tests.fakes.webui_processing import FakeRequest

SETTING = "accel_{}"


class AxisOption:
    """xyz_grid.AxisOption."""

    def __init__(self, label: str, type: Any, apply: Any, *, confirm: Any, cost: float, choices: Any) -> None:
        self.label, self.apply, self.confirm, self.choices = label, apply, confirm, choices


@pytest.fixture
def plot() -> SimpleNamespace:
    return SimpleNamespace(AxisOption=AxisOption, axis_options=[])


def _scripts(plot: SimpleNamespace) -> list[Any]:
    script_class = type("Script", (), {"__module__": "xyz_grid.py"})
    other = type("Script", (), {"__module__": "other.py"})
    return [SimpleNamespace(script_class=other), SimpleNamespace(script_class=script_class, module=plot)]


def test_the_axis_is_added_once(plot: SimpleNamespace) -> None:
    assert add_axis(_scripts(plot), CODES, SETTING)
    assert add_axis(_scripts(plot), CODES, SETTING)
    (axis,) = plot.axis_options
    assert (axis.label, axis.choices()) == ("Accel", ["off", "auto", "direct", "measured", "compiled"])


def test_no_plot_is_no_error() -> None:
    assert not add_axis([], CODES, SETTING)


@pytest.mark.parametrize(
    ("value", "settings"),
    [
        ("off", {"accel_enabled": False}),
        ("direct", {"accel_enabled": True, "accel_code": "direct"}),
    ],
)
def test_a_value_counts_for_its_picture_only(
    plot: SimpleNamespace, value: str, settings: dict[str, Any]
) -> None:
    add_axis(_scripts(plot), CODES, SETTING)
    request = FakeRequest(override_settings={"CLIP_stop_at_last_layers": 2})
    cell = copy.copy(request)  # as the plot makes one for each cell
    plot.axis_options[0].apply(cell, value, [])
    assert cell.override_settings == {"CLIP_stop_at_last_layers": 2, **settings}
    assert request.override_settings == {"CLIP_stop_at_last_layers": 2}


def test_an_unknown_value_is_refused_before_anything_is_drawn(plot: SimpleNamespace) -> None:
    add_axis(_scripts(plot), CODES, SETTING)
    plot.axis_options[0].confirm(FakeRequest(), ["off", "auto"])
    with pytest.raises(RuntimeError, match="got fastest, expected some of off, auto"):
        plot.axis_options[0].confirm(FakeRequest(), ["off", "fastest"])
