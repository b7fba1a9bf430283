"""Text encoders: what prompts and settings make of them, LoRA in them, and what others hang on them."""

from __future__ import annotations

from typing import NamedTuple

from ..conditioning import Condition
from ..outcome import CLEAN, Speed, part
from ..picture import AGAIN, BASE, loras, picture
from ..row import Row, row
from ..steps import Code, Options
from .networks import around, merged
from .server_code import (
    FORGET_FAILURES,
    FORWARDS_OUT,
    HOOK_OUT,
    OUR_TEXT_FAILURE,
    TEXT_ATTENTION_IN,
    TEXT_HOOK_IN,
    TEXT_LAYER_IN,
)
from .shapes import LONG, VERY_LONG


class Family(NamedTuple):
    """What the rows need to know of a checkpoint."""

    stem: str
    lora: str
    runs: tuple[str, ...]  # its kinds of text encoder


TINY = Family("tiny", "tiny_lora_b", ("clip",))
V2 = Family("tiny_v2", "tiny_v2_lora_a", ("open_clip",))
XL = Family("tiny_xl", "tiny_xl_lora_a", ("clip", "open_clip"))

EMPHASIS = "a (photo:1.3) of a [cat] on a ((red)) mat"
WORDS = "a photo of a cat on a red mat"
PROMPTS: dict[str, tuple[str, ...]] = {
    "plain": (WORDS,),
    "empty": ("",),
    "emphasis": (EMPHASIS,),
    "escaped": (r"a \(photo\) of a \[cat\]",),
    "BREAK": ("a photo BREAK of a cat BREAK on a red mat",),
    "over 75 tokens": (LONG,),
    "over 150 tokens": (VERY_LONG,),
    "two at once": (WORDS, LONG),
}
EMPHASES = ("None", "Ignore", "No norm")
FAILED = part("failed")
PATCHED = part(r"forward|instance|replaced")


def rows(family: Family) -> tuple[Row, ...]:
    """The rows for a checkpoint."""
    return (
        row("prompts", *(Condition(name, prompts, family.runs) for name, prompts in PROMPTS.items())),
        *_picture_rows(family),
        *_option_rows(family),
        _lora_row(family),
        _embedding_row(family),
    )


def _picture_rows(family: Family) -> tuple[Row, ...]:
    return tuple(
        row(f"picture, {name}", BASE, picture(name, prompt=prompt, moves="base", runs=family.runs))
        for name, prompt in {
            "emphasis": EMPHASIS,
            "BREAK": PROMPTS["BREAK"][0],
            "AND": "a cat AND a red car :0.7",
            "over 150 tokens": VERY_LONG,
        }.items()
    )


def _option_rows(family: Family) -> tuple[Row, ...]:
    def condition(label: str, moves: str = "", same: str = "") -> Condition:
        return Condition(label, (EMPHASIS,), family.runs, moves=moves, same=same)

    emphases = [
        row(
            f"emphasis {name}",
            condition("Original"),
            Options({"emphasis": name}),
            condition(name, moves="Original"),
            picture(f"picture, {name}", prompt=EMPHASIS, runs=family.runs),
            Options({"emphasis": "Original"}),
            condition("Original again", same="Original"),
        )
        for name in EMPHASES
    ]
    skip = row(
        "clip skip 2",
        condition("without"),
        Options({"CLIP_stop_at_last_layers": 2, "sdxl_clip_l_skip": True}),
        condition("with it", moves="without" if family is TINY else ""),  # XL skips as many by itself
        picture("picture", prompt=EMPHASIS, runs=family.runs),
        Options({"CLIP_stop_at_last_layers": 1}),
        condition("last layer", moves="without" if family is XL else ""),
        Options({"sdxl_clip_l_skip": False}),
        condition("without again", same="without"),
    )
    return (*emphases, skip)


def _lora_row(family: Family) -> Row:
    def condition(label: str, moves: str = "", same: str = "") -> Condition:
        return Condition(label, (WORDS,), family.runs, moves=moves, same=same)

    return around(
        "LoRA in the text encoder",
        condition("without"),
        picture("LoRA", prompt=loras(family.lora), moves="base", runs=family.runs),
        condition("with it", moves="without"),
        merged("weights with LoRA"),
        picture("text encoder only", prompt=loras(f"{family.lora}:0.9:0"), moves="LoRA", runs=family.runs),
        condition("0.9", moves="with it"),
        merged("weights with 0.9"),
        BASE,
        condition("without again", same="without"),
    )


def _embedding_row(family: Family) -> Row:
    name = f"{family.stem}_embedding"
    return row(
        "embedding",
        Condition("without", (WORDS,), family.runs),
        Condition("with it", (f"a photo of {name} on a red mat",), family.runs, moves="without"),
        Condition("emphasised", (f"a photo of ({name}:1.3) on a red mat",), family.runs, moves="with it"),
        BASE,
        picture("picture", prompt=f"a photo of {name}", moves="base", runs=family.runs),
    )


def patch_rows() -> tuple[Row, ...]:
    """Foreign patches of the text encoder of SD1, and a failure of ours in it."""
    return (
        row(
            "a failure of ours",
            BASE,
            Condition("before", (WORDS,), TINY.runs),
            Code("set our failure up", OUR_TEXT_FAILURE, only_ours=True),
            picture("with our failure", prompt=EMPHASIS, speed=FAILED, moves="base"),
            Condition("after it", (WORDS,), TINY.runs),
            Code("forget failures", FORGET_FAILURES, only_ours=True),
            Condition("as before", (WORDS,), TINY.runs, same="before"),
            AGAIN,
            tracebacks=True,
        ),
        _foreign("attention of a layer replaced", TEXT_ATTENTION_IN, FORWARDS_OUT, PATCHED),
        _foreign("a layer's forward replaced", TEXT_LAYER_IN, FORWARDS_OUT, CLEAN),  # it calls ours
        _foreign("forward hook in a layer", TEXT_HOOK_IN, HOOK_OUT, part("hook")),
    )


def _foreign(name: str, put_in: str, take_out: str, speed: Speed) -> Row:
    return row(
        name,
        BASE,
        Code("put in", put_in),
        Condition("patched", (WORDS,), ()),
        picture("picture", prompt=EMPHASIS, speed=speed, moves="base"),
        Code("take out", take_out),
        Condition("as before", (WORDS,), TINY.runs, moves="patched"),
        AGAIN,
    )
