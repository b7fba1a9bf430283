"""LoRA and its relatives: pictures, and the bits of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..outcome import host
from ..picture import AGAIN, BASE, Picture, loras, picture
from ..row import Row, row
from ..steps import Code, Options, OurOptions, Step
from .server_code import AS_THE_HOST_MERGES, COMPARE_WEIGHTS, KEEP_WEIGHTS, WEIGHTS
from .shapes import HIRES, LONG

FOUR = ("tiny_lora_a", "tiny_lora_b:0.5", "tiny_lora_c:0.6", "tiny_lora_d:0.4")
MIXED = ("tiny_lora_b:0.4", "tiny_lokr:0.3", "tiny_dora:0.3", "tiny_oft:0.2", "tiny_norm:0.3")
KINDS = ("lora_a", "lora_b", "loha", "lokr", "full", "ia3", "dora", "glora", "oft", "norm")
SETS = {
    "the same twice": ("tiny_lora_a:0.3", "tiny_lora_a:0.6"),
    "negative weight": ("tiny_lora_a:-0.7",),
    "separate weights of text encoder and UNet": ("tiny_lora_a:0.9:0.3",),
    "only the text encoder": ("tiny_lora_a:0.9:0",),
    "a smaller rank": ("tiny_lora_b:1:1:2",),
    "four": FOUR,
    "five kinds": MIXED,
}
BROKEN = ("tiny_misshapen", "tiny_cut")
FUNCTIONAL = r"functional"
FIRST_PASS = HIRES | {"moves": "", "hr_prompt": "a cat"}


def bits(label: str = "weights") -> Code:
    """The bits of the UNet, to be the same on both servers."""
    return Code(label, WEIGHTS)


def merged(label: str = "merged weights") -> Code:
    """Whether the layers carry what the host would have merged, but for rounding."""
    return Code(label, AS_THE_HOST_MERGES, prints="True")


def with_networks(*names: str, label: str = "", **fields: Any) -> Picture:
    """A picture with these networks, which must differ from the one without."""
    given = {"moves": "base"} | fields
    return picture(label or " + ".join(names), prompt=loras(*names), **given)


def around(name: str, *middle: Step | Picture) -> Row:
    """A row that ends as it began: the same picture and the same bits in the weights."""
    keep, compare = (
        Code("weights before", KEEP_WEIGHTS),
        Code("weights as before", COMPARE_WEIGHTS, prints="True"),
    )
    return row(name, BASE, keep, *middle, AGAIN, bits("weights without"), compare)


def exact_rows() -> tuple[Row, ...]:
    """The same with the setting that asks for the host's own arithmetic: then all bits are the same."""
    exactly = OurOptions({"accel_exact_loras": True})
    return tuple(replace(row, steps=(exactly, *row.steps)) for row in rows(bits))


def rows(check: Callable[[str], Code] = merged) -> Iterator[Row]:
    """All rows of this file; `check` looks at merged weights."""
    for kind in KINDS:
        yield around(f"kind {kind}", with_networks(f"tiny_{kind}"), check("weights"))
    for name, networks in SETS.items():
        yield around(name, with_networks(*networks, label=name), check("weights"))
    for name in BROKEN:
        yield around(f"{name} beside a good one", with_networks("tiny_lora_a", name), check("weights"))
    yield around("zero weight", with_networks("tiny_lora_a:0", moves="", same="base"), check("weights"))
    yield around("unknown name", with_networks("no_such_lora", moves=""), bits())
    yield around(
        "none to one to four to others",
        with_networks("tiny_lora_a"),
        check("weights"),
        with_networks(*FOUR, label="four"),
        check("weights, four"),
        with_networks("tiny_lora_a:0.4", label="less", moves="tiny_lora_a"),
        check("weights, less"),
        with_networks("tiny_lora_a:0.4", label="less again", moves="", same="less"),
        with_networks("tiny_lora_b", label="in the first pass only", **FIRST_PASS),
        picture("another one in hires", prompt=loras("tiny_lora_a"), hr_prompt=loras("tiny_loha"), **HIRES),
        check("weights after hires"),
    )
    yield around(
        "networks kept in memory",
        Options({"lora_in_memory_limit": 3}),
        with_networks("tiny_lora_a"),
        with_networks("tiny_lora_b", moves="tiny_lora_a"),
        with_networks("tiny_lora_a", label="a again", moves="", same="tiny_lora_a"),
        check("weights"),
    )
    yield around(
        "network of the settings",
        Options({"sd_lora": "tiny_lora_a"}),
        picture("by settings", moves="base"),
        with_networks("tiny_lora_b", moves="by settings"),
        Options({"sd_lora": "None"}),
    )
    yield around("other shapes", *(with_networks("tiny_lora_b", label=k, **f) for k, f in SHAPES.items()))
    yield around(
        "lora_functional on and off",
        with_networks("tiny_lora_b"),
        Options({"lora_functional": True}),
        with_networks("tiny_lora_b", label="functional", speed=host(FUNCTIONAL)),
        check("weights, functional"),  # those of the text encoder still carry it: it did not run
        Options({"lora_functional": False}),
        with_networks("tiny_lora_b", label="merged", moves="", same="tiny_lora_b"),
        check("weights, merged"),
    )


SHAPES: dict[str, dict[str, Any]] = {
    "batch 2": {"batch_size": 2},
    "odd size": {"width": 200, "height": 136, "moves": ""},
    "img2img": {"image": True, "moves": ""},
    "cfg 1": {"cfg_scale": 1},
    "long negative prompt": {"negative_prompt": LONG},
}
