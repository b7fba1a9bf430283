"""What users ask of the extension itself, on our server alone."""

from __future__ import annotations

from ..outcome import OFF, host
from ..picture import AGAIN, BASE, Picture, loras, picture, unit
from ..product_steps import (
    SIZE,
    Cancelled,
    CancelledInQueue,
    Compared,
    Grid,
    Infotext,
    LeftAlone,
    Lines,
    StockInterrupted,
    post,
)
from ..row import Row, row
from ..steps import Code, OurOptions
from .server_code import COMPARE_WEIGHTS, KEEP_WEIGHTS
from .shapes import HIRES

LORA = picture("LoRA", prompt=loras("tiny_lora_b"), steps=8)
EIGHT = Picture("eight steps", fields={"steps": 8})
STRANGERS = "a photo of a cat\nSteps: 4, Sampler: Euler, Seed: 1, Size: 128x128, Accel: 9.9 host"
MATRIX = {
    "prompt": "a photo of a cat|red",
    "script_name": "Prompt matrix",
    "script_args": [False, False, "positive", "comma", 0],
}
KEEP = Code("weights before", KEEP_WEIGHTS)
AS_BEFORE = Code("weights as before", COMPARE_WEIGHTS, prints="True")
NOTHING_LEFT = (LORA, AGAIN, AS_BEFORE)


def rows() -> tuple[Row, ...]:
    """All rows of this file."""
    return (
        row(
            "compare with stock",
            BASE,
            KEEP,
            EIGHT,
            Compared(EIGHT, same="eight steps"),
            LORA,
            Compared(LORA),  # weights that the webui has merged stay until the networks change
            Compared(picture("batch", batch_size=2, n_iter=2, steps=8), count=4),
            Compared(picture("hires", **HIRES | {"steps": 8})),
            Compared(picture("ControlNet", units=(unit(),), steps=8)),
            Compared(picture("img2img", image=True, steps=12)),
            Compared(picture("odd size", width=200, height=136, steps=8)),
            AGAIN,
            AS_BEFORE,
        ),
        row("compare, interrupted", BASE, StockInterrupted(), AGAIN),
        row("benchmark in the queue", BASE, CancelledInQueue(), AGAIN),
        row("compare, with a script", BASE, LeftAlone("prompt matrix", MATRIX), AGAIN),
        row(
            "warm-up",
            BASE,
            post("warmup", SIZE, has=("pictures", "seconds")),
            post("warmup", SIZE | {"batch_size": 2}, has=("pictures",)),
            post("warmup", {"width": 100}, status=422),
            AGAIN,
            OurOptions({"accel_enabled": False}),
            post("warmup", SIZE, status=409),
            picture("off", speed=OFF),
        ),
        row(
            "benchmark",
            BASE,
            KEEP,
            post("benchmark", SIZE | {"steps": 6}, has=("rows", "device")),
            *NOTHING_LEFT,
        ),
        row("benchmark cancelled", BASE, KEEP, Cancelled("/accel/v1/cancel"), *NOTHING_LEFT),
        row("benchmark interrupted", BASE, KEEP, Cancelled("/sdapi/v1/interrupt"), *NOTHING_LEFT),
        row("X/Y/Z plot", BASE, Grid(("auto", "off", "direct", "off")), AGAIN),
        row(
            "for one request",
            BASE,
            picture("off", speed=OFF, override_settings={"accel_enabled": False}),
            picture("host", speed=host("option code"), override_settings={"accel_code": "host"}),
            AGAIN,
        ),
        row(
            "parameters of pictures",
            Infotext(is_named=False),
            OurOptions({"accel_infotext": True}),
            Infotext(is_named=True),
            picture("a stranger's parameters", infotext=STRANGERS),
        ),
        row("one line a picture", Lines(), BASE, AGAIN, Compared(EIGHT), Lines(3)),
    )
