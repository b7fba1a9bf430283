"""What the user asked for, as one frozen value; settings page, API and flags are generated from it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from lib_accel.errors import OptionError

LAUNCHES = ("auto", "graph", "eager")
ATTENTIONS = ("auto", "sage")
CODES = ("auto", "direct", "measured", "compiled", "host")


def _option(
    default: Any,
    label: str,
    help_text: str,
    choices: tuple[str, ...] = (),
    slider: tuple[int, int] | None = None,
) -> Any:
    """`slider`: largest value and step of a number's slider, which begins at 0."""
    told = {"label": label, "help": help_text, "choices": choices, "slider": slider}
    return field(default=default, metadata=told)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for. Equal options give equal choices.

    Raises OptionError if a value has the wrong type, is none of the choices, or a number is below 0.
    """

    enabled: bool = _option(
        True,
        "Accelerate",
        "run the blocks of UNet and ControlNet from the extension's own code; the pictures stay the same",
    )
    code: str = _option(
        "auto",
        "Code of the blocks",
        "auto: the extension's own, on a GPU by the kernels that are fastest there; direct: the same in "
        "plain torch; measured: by torch.compile besides where that is right and faster on this machine, "
        "after minutes of compiling; compiled: wherever it is right, be it faster or not; host: without "
        "the extension, to compare with",
        CODES,
    )
    launch: str = _option(
        "auto",
        "Launch of the blocks",
        "auto: on an NVIDIA GPU what was drawn before in a size is replayed as a CUDA graph, where that is "
        "right and not slower; graph: wherever it is right; eager: kernel by kernel, as in the webui itself",
        LAUNCHES,
    )
    graph_memory_mib: int = _option(
        2048,
        "Memory for CUDA graphs, MiB",
        "of the GPU's, and never more than an eighth of it; what needs more is launched kernel by kernel",
        slider=(32768, 256),
    )
    attention: str = _option(
        "auto",
        "Attention",
        "auto: by what is fastest on this machine, the same but for rounding; sage: by SageAttention where "
        "that is installed and takes the heads, which computes in 8 bits and changes the picture",
        ATTENTIONS,
    )
    exact_loras: bool = _option(
        False,
        "Merge LoRAs with the webui's own arithmetic",
        "weights to the last bit as without the extension; changing LoRAs takes several times as long",
    )
    lora_cache_mib: int = _option(
        512,
        "Keep LoRA files in memory, MiB",
        "a LoRA that was used before is not read again, as long as all of them fit into this; 0 keeps none",
        slider=(8192, 64),
    )
    infotext: bool = _option(
        False,
        "Name the extension in the pictures' parameters",
        "adds Accel, its version and code to the text below and in each picture; pasting it changes nothing",
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            expected = type(option.default)
            if type(value) is not expected:
                kind = type(value).__name__
                raise OptionError(f"{option.name}: got {value!r} ({kind}), expected {expected.__name__}")
            if type(value) is int and value < 0:
                raise OptionError(f"{option.name}: got {value}, expected 0 or more")
            choices = option.metadata["choices"]
            if choices and value not in choices:
                raise OptionError(f"{option.name}: got {value!r}, expected one of {', '.join(choices)}")
