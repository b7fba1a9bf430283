"""Interrupts, failures, several clients, turning off and on: what must leave no trace in the next picture."""

from __future__ import annotations

from typing import Any

from ..outcome import ANY, OFF, host, part
from ..picture import AGAIN, BASE, Picture, loras, picture, unit
from ..row import Row, row
from ..steps import Code, Interrupt, Options, ReloadUi, Switch, Together, Watched
from .networks import bits, merged
from .server_code import (
    FORGET_FAILURES,
    FORWARDS_OUT,
    OTHER_FILES,
    OUR_FAILURE_CODE,
    SAME_FILES,
    THEIR_FAILURE_CODE,
    THEIR_UNET_FAILURE_CODE,
)
from .shapes import HIRES

LORA = {"prompt": loras("tiny_lora_b")}
OTHER = {"prompt": loras("tiny_lora_a")}
IN_LORA = picture("LoRA", moves="base", **LORA)
LORA_AGAIN = picture("LoRA again", same="LoRA", **LORA)
CONTROL = picture("ControlNet", moves="base", units=(unit(),))
FAILED = part(r"failed")
AFTER = (AGAIN, LORA_AGAIN, merged("weights with LoRA"), AGAIN, bits("weights without"))


def client(number: int) -> tuple[Picture, ...]:
    """What one of several clients asks for."""
    return (
        picture(f"client {number}, plain", speed=ANY, seed=number),
        picture(
            f"client {number}, LoRA", speed=ANY, prompt=loras("tiny_lora_a" if number % 2 else "tiny_lora_b")
        ),
        picture(f"client {number}, ControlNet", speed=ANY, units=(unit(turned=bool(number % 2)),)),
        picture(f"client {number}, batch", speed=ANY, batch_size=2, seed=number + 5),
    )


def failure_row(name: str, code: str, *take_out: Code, **fields: Any) -> Row:
    """A row in which code in the server makes the next picture fail."""
    failing = picture("failing", fails=True, **fields)
    return row(name, BASE, IN_LORA, AGAIN, Code("set the failure up", code), failing, *take_out, *AFTER)


def off_rows() -> tuple[Row, ...]:
    """Turning the extension off and on."""
    return (
        row(
            "off for one picture",
            BASE,
            picture("off", accel=False, speed=OFF),
            AGAIN,
            IN_LORA,
            picture("LoRA, off", accel=False, speed=OFF, **LORA),
            merged("weights with LoRA"),
            picture("other LoRA, off", accel=False, speed=OFF, **OTHER),
            merged("weights with other LoRA"),
            LORA_AGAIN,
            merged("weights with LoRA again"),
            picture("ControlNet, off", accel=False, speed=OFF, units=(unit(),)),
            picture("ControlNet", accel=True, units=(unit(),)),
            AGAIN,
            bits("weights without"),
        ),
        row(
            "off and on by API",
            BASE,
            IN_LORA,
            Switch(on=False),
            picture("off", speed=OFF),
            picture("LoRA, off", speed=OFF, **LORA),
            merged("weights with LoRA"),
            picture("ControlNet, off", speed=OFF, units=(unit(),)),
            Switch(on=True),
            LORA_AGAIN,
            merged("weights with LoRA again"),
            CONTROL,
            AGAIN,
            bits("weights without"),
        ),
    )


_OUR_FAILURE = row(
    "a failure of ours",
    BASE,
    IN_LORA,
    Code("set our failure up", OUR_FAILURE_CODE, only_ours=True),
    picture("with our failure", speed=FAILED, **LORA),
    picture("base after it", speed=FAILED),
    Code("set our failure up again", OUR_FAILURE_CODE, only_ours=True),
    picture("with our failure and ControlNet", speed=FAILED, units=(unit(),)),
    Code("forget failures", FORGET_FAILURES, only_ours=True),
    *AFTER,
    tracebacks=True,
)


def rows() -> tuple[Row, ...]:
    """All rows of this file."""
    return (
        *off_rows(),
        row("interrupt", BASE, IN_LORA, Interrupt(picture("long", speed=ANY, **LORA)), *AFTER),
        row("interrupt with ControlNet", BASE, CONTROL, Interrupt(CONTROL), AGAIN, CONTROL),
        row("interrupt in hires", BASE, IN_LORA, Interrupt(picture("long", **HIRES | OTHER)), *AFTER),
        failure_row("a failure in sampling", THEIR_FAILURE_CODE),
        failure_row("a failure in sampling with LoRA", THEIR_FAILURE_CODE, **OTHER),
        failure_row(
            "a failure in the UNet", THEIR_UNET_FAILURE_CODE, Code("take out", FORWARDS_OUT), **OTHER
        ),
        _OUR_FAILURE,
        row(
            "live previews",
            BASE,
            Options({"show_progress_type": "Full", "show_progress_every_n_steps": 1}),
            Watched(picture("watched", same="base")),
            Watched(picture("watched, LoRA", moves="base", **LORA)),
            Watched(picture("watched, ControlNet", moves="base", units=(unit(),))),
        ),
        row("two clients at once", BASE, Together((client(1), client(2))), AGAIN, bits("weights without")),
        row("four clients at once", BASE, Together(tuple(map(client, range(1, 5)))), AGAIN),
    )


def reload_rows() -> tuple[Row, ...]:
    """Rows for a server with the web page."""
    reloads = [step for _ in range(3) for step in (ReloadUi(), AGAIN, LORA_AGAIN)]
    return (
        row("Reload UI three times", BASE, IN_LORA, CONTROL, *reloads, CONTROL, merged("weights with LoRA")),
        row(
            "Reload UI while off",
            BASE,
            Switch(on=False),
            ReloadUi(),
            picture("off", speed=OFF),
            Switch(on=True),
            AGAIN,
        ),
        row(
            "Reload UI after an update",
            BASE,
            Code("other files", OTHER_FILES, only_ours=True),
            ReloadUi(),
            picture("updated", speed=host("restart the webui")),
            Code("as before", SAME_FILES, only_ours=True),
            AGAIN,
        ),
    )
