"""What the name of a tensor in a LoRA file says: which layer it is for, and which part of the network it is.

kohya      lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, .lora_up.weight, .alpha
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
    role: str  # "down", "up", "mid" or "alpha"


_FACTOR = re.compile(
    r"(?P<stem>.+?)"
    r"(?:[._]lora(?:_linear_layer)?\.(?P<dotted>down|up|mid)|\.lora_(?P<joined>down|up|mid|A|B))"
    r"(?:\.(?P<adapter>[^.]+))?\.weight"
)
_PEFT_ROLES = {"A": "down", "B": "up"}

# Of each kind that is not LoRA or LoCon, what its tensors are called and nothing else is.
_OTHER_KINDS = {
    "DoRA": re.compile(r".+\.(dora_scale|lora_magnitude_vector)(\..+)?"),
    "LoHa": re.compile(r".+\.hada_.+"),
    "LoKr": re.compile(r".+\.lokr_.+"),
    "OFT": re.compile(r".+\.(oft_.+|boft_.+)"),
    "IA3": re.compile(r".+\.(on_input|ia3_l(\..+)?)"),
    "GLoRA": re.compile(r".+\.[ab][12]\.weight"),
    "full difference": re.compile(r".+\.(diff|diff_b|w_norm|b_norm)"),
    "LoRA of a bias": re.compile(r".+[._]lora(_B|_up|\.up)(\.[^.]+)?\.bias"),
    "LoRA of an embedding": re.compile(r".+\.lora_embedding_[AB](\..+)?"),
}

_KOHYA_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
_PEFT_PREFIX = "base_model.model."
_TEXT_STARTS = ("text_model.", "encoder.layers.", "text_projection")
_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def split_key(key: str) -> Part | None:
    """The layer and the role of a tensor called `key`, or None if it is no part of a LoRA."""
    if key.endswith(".alpha"):
        return Part(key.removesuffix(".alpha"), "alpha")
    found = _FACTOR.fullmatch(key)
    if found is None:
        return None
    role = found["dotted"] or found["joined"]
    return Part(found["stem"], _PEFT_ROLES.get(role, role))


def other_kind(key: str) -> str | None:
    """The kind of network that has a tensor called `key`, if it is another than LoRA or LoCon."""
    return next((kind for kind, pattern in _OTHER_KINDS.items() if pattern.fullmatch(key)), None)


def find_place(stem: str) -> tuple[str, str]:
    """The component ("unet", "text_encoder", "text_encoder_2") and the path in it that a layer's name means.

    The path has dots where the name has them; `flatten` makes the spellings of one layer equal.
    """
    for prefix, component in _KOHYA_PREFIXES.items():
        if stem.startswith(prefix):
            return component, stem.removeprefix(prefix)
    path = stem.removeprefix(_PEFT_PREFIX)
    component = next((known for known in _COMPONENTS if path.startswith(f"{known}.")), "")
    path = path.removeprefix(f"{component}.").removeprefix(_PEFT_PREFIX)
    if not component:
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
