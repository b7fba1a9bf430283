"""What the name of a tensor in a network's file says: which layer it is for, and which part of it it is.

kohya      lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, .lora_up.weight, .alpha
LyCORIS    lycoris_down_blocks_0_attentions_0_proj_in.hada_w1_a, or kohya's layers
OneTrainer kohya's, or unet.input_blocks.1.1.proj_in.lora_down.weight, clip_l.text_model...., clip_g....
diffusers  unet.down_blocks.0.attentions.0.proj_in.lora.down.weight, or .lora_A.weight
old form   unet.down_blocks.0....attn1.processor.to_q_lora.down.weight
peft       base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight, or .lora_A.<adapter>.weight
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Part(NamedTuple):
    """One tensor of one layer of a network."""

    stem: str  # the layer as the file spells it
    role: str  # as in kinds.KINDS, where one role may stand for what is two there


_FACTOR = re.compile(
    r"(?P<stem>.+?)"
    r"(?:[._]lora(?:_linear_layer)?\.(?P<dotted>down|up|mid)|\.lora_(?P<joined>down|up|mid|A|B))"
    r"(?:\.(?P<adapter>[^.]+))?\.(?P<parameter>weight|bias)"
)
_PEFT_ROLES = {"A": "down", "B": "up"}

# peft's live names have the adapter's name in them, and some of its tensors are modules with a weight.
_OTHER = re.compile(
    r"(?P<stem>.+)\.(?P<role>"
    r"hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|dora_scale|lora_magnitude_vector|"
    r"oft_blocks|oft_diag|oft_R|boft_[Rs]|rescale|ia3_l|on_input|diff(?:_b)?|[wb]_norm"
    r")(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
)
_GLORA = re.compile(r"(?P<stem>.+)\.(?P<role>[ab][12]|bm)\.weight")
_PLAIN = re.compile(r"(?P<stem>.+)\.(?P<role>alpha|weight)")
_RENAMED = {"lora_magnitude_vector": "magnitude"}

_KOHYA_PREFIXES = {
    "lora_unet_": "unet",
    "oft_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_LYCORIS_PREFIX = "lycoris_"
_DOTTED_PREFIXES = {
    "unet": "unet",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
}
_PEFT_PREFIX = "base_model.model."
_TEXT_STARTS = ("text_model.", "encoder.layers.", "text_projection")
_FLAT_TEXT_STARTS = tuple(start.replace(".", "_") for start in _TEXT_STARTS)
_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def split_key(key: str) -> Part | None:
    """The layer and the role of a tensor called `key`, or None if it is no part of a network."""
    found = _FACTOR.fullmatch(key)
    if found is not None:
        role = found["dotted"] or found["joined"]
        role = _PEFT_ROLES.get(role, role)
        if found["parameter"] == "bias":
            return Part(found["stem"], "up_bias") if role == "up" else None
        return Part(found["stem"], role)
    for pattern in (_OTHER, _GLORA, _PLAIN):
        found = pattern.fullmatch(key)
        if found is not None:
            return Part(found["stem"], _RENAMED.get(found["role"], found["role"]))
    return None


def find_place(stem: str) -> tuple[str, str]:
    """The component ("unet", "text_encoder", "text_encoder_2") and the path in it that a layer's name means.

    The path has dots where the name has them; `flatten` makes the spellings of one layer equal.
    """
    for prefix, component in _KOHYA_PREFIXES.items():
        if stem.startswith(prefix):
            return component, stem.removeprefix(prefix)
    if stem.startswith(_LYCORIS_PREFIX):
        path = stem.removeprefix(_LYCORIS_PREFIX)
        return ("text_encoder" if path.startswith(_FLAT_TEXT_STARTS) else "unet"), path
    path = stem.removeprefix(_PEFT_PREFIX)
    prefix, _, rest = path.partition(".")
    if prefix in _DOTTED_PREFIXES:
        component, path = _DOTTED_PREFIXES[prefix], rest.removeprefix(_PEFT_PREFIX)
    else:
        component = "text_encoder" if path.startswith(_TEXT_STARTS) else "unet"
    return component, _of_today(component, path)


def flatten(path: str) -> str:
    """A path as kohya's names have it: underscores for dots, and no `text_model` at its head.

    transformers puts `text_model` there for some classes and versions, and not for others.
    """
    return path.replace(".", "_").removeprefix("text_model_")


def _of_today(component: str, path: str) -> str:
    """A dotted path with the names that diffusers gave attention layers until 2023 replaced by today's."""
    path = path.replace(".processor.", ".")
    parent, _, name = path.rpartition(".")
    if component == "unet":
        return f"{path}.0" if name == "to_out" else path
    return f"{parent}.{_OLD_TEXT_NAMES[name]}" if name in _OLD_TEXT_NAMES else path
