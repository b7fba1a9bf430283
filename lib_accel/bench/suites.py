"""What the benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much is spent on each case."""

    pairs: int  # of timed runs
    steps: int  # of a timed run; the first is left out
    compared_steps: int  # of the pictures that are compared
    switches: int  # times that one set of LoRAs is changed for another
    counts: tuple[int, ...]  # numbers of LoRAs whose cost is measured; 0 among them


FULL = Effort(pairs=15, steps=6, compared_steps=20, switches=5, counts=(0, 1, 4, 16))
QUICK = Effort(pairs=3, steps=3, compared_steps=6, switches=2, counts=(0, 1, 4))


@dataclass(frozen=True)
class Case:
    """One thing that is timed on stock diffusers and on ours."""

    name: str
    form: str = "sd1"  # a key of models.FORMS
    task: str = "text"  # a key of jobs.JOBS
    networks: int = 0  # LoRAs
    fused: bool = (
        False  # stock merges its LoRAs and drops the adapters; else peft runs them beside each layer
    )
    controls: int = 0  # ControlNets
    quick: bool = False  # also part of the short run

    @property
    def is_sampled(self) -> bool:
        """Whether a run is the steps of a picture, and what comes out its latents."""
        return self.task in ("text", "image", "inpaint")


def _with_networks(count: int) -> list[Case]:
    name = f"text to image, {count} LoRA{'s' if count > 1 else ''}"
    return [
        Case(name, networks=count, quick=count == 4),
        Case(f"{name}, stock fused", networks=count, fused=True),
    ]


SUITES: dict[str, tuple[Case, ...]] = {
    "cpu": (
        Case("text to image", quick=True),
        *_with_networks(1),
        *_with_networks(4),
        *_with_networks(16),
        Case("ControlNet", controls=1, quick=True),
        Case("two ControlNets", controls=2),
        Case("image to image", task="image"),
        Case("inpainting", form="inpainting", task="inpaint"),
        Case("SD2", form="sd2"),
        Case("SDXL", form="sdxl", quick=True),
        Case("VAE decode", task="vae decode", quick=True),
        Case("text encoder", task="text encoder"),
    )
}
