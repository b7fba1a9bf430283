"""Changes of the checkpoint: in place, to a new object, back to a kept one, in the middle of a picture."""

from __future__ import annotations

from ..outcome import host, part
from ..picture import AGAIN, BASE, loras, picture, unit
from ..row import Row, row
from ..steps import Code, Options, Post
from .networks import bits, merged
from .server_code import ATTENTION_IN, CONTROLNETS_ALIVE, IS_FREED, WATCH
from .shapes import HIRES

FP8 = host("fp8")
LORA = {"prompt": loras("tiny_lora_b")}
REFINED = {"refiner_checkpoint": "tiny2", "refiner_switch_at": 0.5}
OTHER_HIRES = HIRES | {"hr_checkpoint_name": "tiny2.safetensors"}


def use(checkpoint: str) -> Options:
    """Change the checkpoint."""
    return Options({"sd_model_checkpoint": checkpoint})


def rows() -> tuple[Row, ...]:
    """All rows of this file; the first must come before a ControlNet has seen the model."""
    return (
        row(
            "a dropped model is freed",
            BASE,
            Code("watch", WATCH),
            use("tiny2.safetensors"),
            picture("tiny2", moves="base"),
            Code("is it freed", IS_FREED, prints="True"),
            use("tiny.safetensors"),
            AGAIN,
        ),
        row(
            "a dropped model is freed, with LoRA",
            BASE,
            picture("LoRA", moves="base", **LORA),
            Code("watch", WATCH),
            use("tiny2.safetensors"),
            picture("tiny2", moves="base"),
            Code("is it freed", IS_FREED, prints="True"),
        ),
        row(
            "a dropped model is freed, with a foreign patch",
            BASE,
            Code("watch", WATCH),
            Code("put in", ATTENTION_IN + "del store['undo']"),
            picture("patched", moves="base", speed=part("forward")),
            use("tiny2.safetensors"),
            picture("tiny2", moves="base"),
            Code("is it freed", IS_FREED, prints="True"),
        ),
        row(
            "an evicted ControlNet is freed",
            Options({"control_net_model_cache_size": 1}),
            BASE,
            picture("a", units=(unit(),), moves="base"),
            picture("b", units=(unit("tiny_cn_b"),), moves="a"),
            BASE,
            Code("how many are left", CONTROLNETS_ALIVE),
        ),
        row(
            "in place and back",
            BASE,
            bits("weights of tiny.safetensors"),
            use("tiny.ckpt"),
            picture("tiny.ckpt", moves="base"),
            bits("weights of tiny.ckpt"),
            picture("tiny.ckpt with LoRA", moves="tiny.ckpt", **LORA),
            merged("weights with LoRA"),
            use("tiny.safetensors"),
            picture("with LoRA", moves="tiny.ckpt with LoRA", **LORA),
            merged("weights of tiny.safetensors with LoRA"),
            AGAIN,
            bits("weights of tiny.safetensors again"),
        ),
        row(
            "new object and back",
            BASE,
            picture("ControlNet", units=(unit(),), moves="base"),
            use("tiny2.safetensors"),
            picture("tiny2", moves="base"),
            picture("tiny2 with ControlNet", units=(unit(),), moves="tiny2"),
            picture("tiny2 with LoRA", moves="tiny2", **LORA),
            use("tiny.safetensors"),
            AGAIN,
            picture("ControlNet again", units=(unit(),), same="ControlNet"),
        ),
        row(
            "back to a kept object",
            Options({"sd_checkpoints_limit": 2}),
            BASE,
            picture("LoRA", moves="base", **LORA),
            use("tiny2.safetensors"),
            picture("tiny2", moves="base"),
            picture("tiny2 with LoRA", moves="tiny2", **LORA),
            merged("weights of tiny2 with LoRA"),
            use("tiny.safetensors"),
            picture("LoRA again", same="LoRA", **LORA),
            AGAIN,
            bits("weights of tiny"),
            use("tiny2.safetensors"),
            picture("tiny2 again", same="tiny2"),
        ),
        row(
            "unloaded and loaded again",
            BASE,
            picture("LoRA", moves="base", **LORA),
            Post("/sdapi/v1/unload-checkpoint"),
            Post("/sdapi/v1/reload-checkpoint"),
            AGAIN,
            picture("LoRA again", same="LoRA", **LORA),
        ),
        row(
            "fp8 storage and back",
            BASE,
            Options({"fp8_storage": "Enable"}),
            picture("fp8", speed=FP8, moves="base"),
            picture("fp8, LoRA", speed=FP8, moves="fp8", **LORA),
            Options({"fp8_storage": "Disable"}),
            AGAIN,
            picture("LoRA", moves="base", **LORA),
        ),
        row(
            "refiner",
            BASE,
            picture("refined", moves="base", **REFINED),
            picture("refined, LoRA", moves="refined", **REFINED | LORA),
            picture("refined, ControlNet", moves="refined", **REFINED | {"units": (unit(),)}),
            picture("refined, hires", **REFINED | HIRES),
            picture("refined again", same="refined", **REFINED),
            use("tiny.safetensors"),
            AGAIN,
        ),
        row(
            "hires with another checkpoint",
            picture("hires", **HIRES),
            picture("other", moves="hires", **OTHER_HIRES),
            picture("other, LoRA", moves="other", **OTHER_HIRES | LORA),
            picture("other, ControlNet", moves="other", **OTHER_HIRES | {"units": (unit(),)}),
            picture("hires again", same="hires", **HIRES),
        ),
        row(
            "another family and back",
            BASE,
            use("tiny_xl.safetensors"),
            picture("xl"),
            picture("xl with LoRA", prompt=loras("tiny_xl_lora_a"), moves="xl"),
            use("tiny_v2.safetensors"),
            picture("v2"),
            use("tiny.safetensors"),
            AGAIN,
            picture("LoRA", moves="base", **LORA),
        ),
        row(
            "a family's other members",
            picture("tiny override", override_settings={"sd_model_checkpoint": "tiny2.safetensors"}),
            picture(
                "back", override_settings={"sd_model_checkpoint": "tiny.safetensors"}, moves="tiny override"
            ),
        ),
    )
