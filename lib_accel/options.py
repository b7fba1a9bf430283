"""What the user asked for, as one frozen value; settings, API and command line are generated from it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from lib_accel.errors import OptionError


def _option(default: Any, label: str, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"label": label, "help": help_text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for. Equal options give equal choices.

    Raises OptionError if a value has the wrong type or is not among its choices.
    """

    enabled: bool = _option(True, "Accelerate", "run the blocks of UNet and ControlNet from our own code")
    code: str = _option(
        "auto",
        "Code of the blocks",
        "auto: the fastest code that is proved equal; direct: our functions in plain torch; "
        "host: the webui's own modules, as if switched off, with the report still running",
        ("auto", "direct", "host"),
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            expected = type(option.default)
            if type(value) is not expected:
                kind = type(value).__name__
                raise OptionError(f"{option.name}: got {value!r} ({kind}), expected {expected.__name__}")
            choices = option.metadata["choices"]
            if choices and value not in choices:
                raise OptionError(f"{option.name}: got {value!r}, expected one of {', '.join(choices)}")

    @property
    def wants_direct(self) -> bool:
        """Whether blocks may leave the host's modules at all."""
        return self.enabled and self.code != "host"
