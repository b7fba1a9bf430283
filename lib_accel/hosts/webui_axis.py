"""The axis "Accel" of the webui's X/Y/Z plot: a grid over codes, and over off."""

from __future__ import annotations

from typing import Any

from lib_accel.graphs.proof import HOST

LABEL = "Accel"
_OFF = "off"
_COST = 0.5  # of changing it, 0 to 1: weights are merged anew


def add_axis(scripts_data: Any, codes: tuple[str, ...], setting: str) -> bool:
    """Adds it where it is not there yet; whether there is such a plot.

    scripts_data: of modules.scripts. setting: pattern of our settings' names.
    """
    plot = next((each.module for each in scripts_data if each.script_class.__module__ == "xyz_grid.py"), None)
    if plot is None:
        return False
    choices = [_OFF, *(code for code in codes if code != HOST)]

    def apply(request: Any, value: str, _values: Any) -> None:
        chosen: dict[str, Any] = {setting.format("enabled"): value != _OFF}
        if value != _OFF:
            chosen[setting.format("code")] = value
        # A dictionary of its own: the requests of a plot are copies that share one (scripts/xyz_grid.py).
        request.override_settings = {**request.override_settings, **chosen}

    def confirm(_request: Any, values: Any) -> None:
        unknown = [value for value in values if value not in choices]
        if unknown:
            raise RuntimeError(f"{LABEL}: got {', '.join(unknown)}, expected some of {', '.join(choices)}")

    if all(option.label != LABEL for option in plot.axis_options):
        plot.axis_options.append(
            plot.AxisOption(LABEL, str, apply, confirm=confirm, cost=_COST, choices=lambda: choices)
        )
    return True
