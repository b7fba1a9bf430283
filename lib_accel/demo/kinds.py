"""What a weight file that is no checkpoint holds, told from the names in it."""

from __future__ import annotations

from typing import NamedTuple

from lib_accel.demo.weight_file import WeightFile


class Kind(NamedTuple):
    """What a file is, how names in it begin or end (one of them is enough), and what to do with it."""

    what: str
    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    advice: str = "give a file that has UNet, VAE and text encoder"


_NETWORK_ENDS = (
    *(".lora_up.weight", ".lora_down.weight", ".lora_A.weight", ".lora_B.weight", ".lora.up.weight"),
    *(".lora.down.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".oft_blocks", ".on_input", ".dora_scale"),
)

CONTROLNET = Kind(
    "a ControlNet",
    ("control_model.", "input_hint_block.", "controlnet_cond_embedding."),
    advice="give it as the ControlNet, and a checkpoint as the model",
)

# The first that fits: some begin like others.
_KINDS = (
    Kind("a LoRA or LyCORIS network", (), _NETWORK_ENDS, "give it as a LoRA, and a checkpoint as the model"),
    Kind("a ControlNet of the union kind", ("control_add_embedding.", "task_embedding")),
    CONTROLNET,
    Kind("a T2I adapter", ("adapter.", "body.")),
    Kind("a Flux model", ("double_blocks.", "model.diffusion_model.double_blocks.")),
    Kind("an SD3 model", ("joint_blocks.", "model.diffusion_model.joint_blocks.")),
    Kind("a whole checkpoint", ("model.diffusion_model.input_blocks.",), (), "give it as the model"),
    Kind("a UNet alone", ("input_blocks.", "down_blocks.", "model.diffusion_model.")),
    Kind("a VAE alone", ("first_stage_model.", "encoder.conv_in.", "decoder.conv_in.")),
    Kind("a text encoder alone", ("text_model.", "cond_stage_model.", "conditioner.", "text_projection")),
    Kind("a textual inversion", ("emb_params", "string_to_param", "clip_l", "clip_g")),
)


def kind_of(file: WeightFile) -> Kind:
    """What the file holds, in words for a message."""
    for kind in _KINDS:
        if any(name.startswith(kind.starts) or name.endswith(kind.ends) for name in file.shapes):
            return kind
    some = ", ".join(sorted(file.shapes)[:2])
    return Kind(f"{len(file.shapes)} tensors of no known kind{f' ({some} ...)' if some else ''}")
