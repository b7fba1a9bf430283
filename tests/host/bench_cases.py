"""What the benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass

from .picture import Picture, loras, picture, unit

FLAGS: dict[str, tuple[str, ...]] = {"sdp": ("--opt-sdp-attention",), "default": ()}


@dataclass(frozen=True)
class Case:
    """One request to time: ``networks`` LoRAs and, if so, a ControlNet, at 128x128 with cfg 7."""

    checkpoint: str
    attention: str  # a key of FLAGS
    networks: int = 0
    controlled: bool = False
    steps: int = 9
    pairs: int = 16

    @property
    def name(self) -> str:
        """Name in the table."""
        control = ", ControlNet" if self.controlled else ""
        return f"{self.checkpoint} {self.attention}, {self.networks} LoRA{control}"

    def picture(self, *, accel: bool | None) -> Picture:
        """The request, with the extension on or off, or not named at all."""
        names = [f"{self.checkpoint}_lora_{letter}:0.5" for letter in "abcd"[: self.networks]]
        units = (unit(f"{self.checkpoint}_cn_a"),) if self.controlled else ()
        fields = {"prompt": loras(*names), "steps": self.steps, "units": units, "accel": accel}
        return picture(self.name, **fields)


TINY = [
    Case("tiny", attention, networks, controlled)
    for attention in FLAGS
    for networks, controlled in ((0, False), (1, False), (4, False), (0, True))
]
FULL = [
    Case("full", attention, networks, controlled, steps=3, pairs=5)
    for attention, kinds in (
        ("sdp", ((0, False), (1, False), (4, False), (0, True))),
        ("default", ((0, False), (4, False))),
    )
    for networks, controlled in kinds
]
CASES = (*TINY, *FULL)
