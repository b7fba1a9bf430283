"""What the user asked the demo for, read from the command line; needs no torch."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from lib_accel.bench.arguments import Parser, at_least, writable
from lib_accel.demo.errors import refused

PROMPT = "a lighthouse on a cliff at sunset, oil painting"
# Of the words that the embedded model knows, and of one that only a LoRA of its knows.
EMBEDDED_PROMPTS = ("a big blue triangle on a white background", "a blue zorb on a gray background")
STEPS = 20
OUT = "accel-demo"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's file and its scale for UNet and text encoders."""

    path: Path
    scale: float


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to show. Without a model the embedded one is shown, with LoRAs and a ControlNet of its own."""

    model: Path | None
    loras: tuple[LoraFile, ...]
    controlnet: Path | None
    hint: Path | None
    prompts: tuple[str, ...]  # the first is what is timed
    size: tuple[int, int] | None  # width and height in pixels; None for what the model was made for
    steps: int
    device: str | None  # None for the GPU if there is one
    out: Path
    json: Path

    @property
    def grid(self) -> Path:
        """File for the pictures."""
        return self.out / "grid.png"

    @property
    def plot(self) -> Path:
        """File for the plot."""
        return self.out / "plot.png"

    def __post_init__(self) -> None:
        if self.model is None and (self.loras or self.controlnet):
            flag = "--lora" if self.loras else "--controlnet"
            raise refused(flag, got="one for no model", expected="one for yours", do="add --model PATH")
        if (self.controlnet is None) != (self.hint is None):
            given, other = ("--hint", "--controlnet") if self.hint else ("--controlnet", "--hint")
            raise refused(given, got=f"no {other} with it", expected="both or none", do=f"add {other}")
        for lora in self.loras:
            if not lora.path.is_file():
                got = f"{lora.path}, which is no file"
                raise refused("--lora", got=got, expected="FILE or FILE:SCALE", do="give its path")


def request_of(argv: list[str]) -> Request:
    """The request that the words make.

    Raises ArgumentsError or DemoError, before anything slow begins, if they make none or if no file can be
    written where they say.
    """
    words = _parser().parse_args(argv)
    at_least(2, steps=words.steps)
    out = Path(words.out)
    request = Request(
        model=words.model,
        loras=tuple(lora_of(text) for text in words.lora),
        controlnet=words.controlnet,
        hint=words.hint,
        prompts=tuple(words.prompt) or (EMBEDDED_PROMPTS if words.model is None else (PROMPT,)),
        size=words.size and size_of(words.size),
        steps=words.steps,
        device=words.device,
        out=out,
        json=words.json or out / "demo.json",
    )
    for file in (request.grid, request.plot):
        writable(file, "--out")
    writable(request.json, "--json")
    return request


def lora_of(text: str) -> LoraFile:
    """FILE or FILE:SCALE; colons before the last one belong to the file, as does a drive letter's.

    Raises DemoError for a scale that is no number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).is_file():
        return LoraFile(Path(text), 1.0)
    try:
        scale = float(tail)
    except ValueError:
        return LoraFile(Path(text), 1.0)
    if not math.isfinite(scale):
        raise refused("--lora", got=f"scale {tail!r}", expected="a number", do="give one such as 0.8")
    return LoraFile(Path(head), scale)


def size_of(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels. Raises DemoError if that is not what it says."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise refused("--size", got=repr(text), expected="WIDTHxHEIGHT", do="give pixels, as in 512x512")
    return int(width), int(height)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m lib_accel demo",
        description="Makes the same pictures with stock diffusers and with ours, and compares them. "
        "Without --model: with a small model that comes along, two LoRAs and a ControlNet.",
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="FILE_OR_FOLDER", help="checkpoint, or folder of diffusers")
    add("--lora", action="append", default=[], metavar="FILE[:SCALE]", help="may be given several times")
    add("--controlnet", type=Path, metavar="PATH", help="ControlNet for the model; needs --hint")
    add("--hint", type=Path, metavar="IMAGE", help="the picture that the ControlNet follows")
    add("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    add("--size", metavar="WxH", help="pixels, for example 512x768 (default: the model's own)")
    add("--steps", type=int, default=STEPS, metavar="N", help=f"sampling steps, 2 or more (default: {STEPS})")
    add("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: the GPU if there is one)")
    add("--out", default=OUT, metavar="DIR", help=f"folder for the results (default: {OUT})")
    add("--json", type=Path, metavar="FILE", help="file for all figures (default: DIR/demo.json)")
    return parser
