"""What the user asked for, as one frozen value; settings page, API and flags are generated from it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from lib_accel.errors import OptionError


def _option(default: Any, label: str, help_text: str) -> Any:
    return field(default=default, metadata={"label": label, "help": help_text})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for. Equal options give equal choices.

    Raises OptionError if a value has the wrong type.
    """

    enabled: bool = _option(
        True,
        "Accelerate",
        "run the blocks of UNet and ControlNet from the extension's own code; the pictures stay the same",
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            expected = type(option.default)
            if type(value) is not expected:
                kind = type(value).__name__
                raise OptionError(f"{option.name}: got {value!r} ({kind}), expected {expected.__name__}")
