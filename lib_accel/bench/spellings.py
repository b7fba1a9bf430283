"""What trainers call the layers and the tensors of a network, written down apart from our reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_PEFT_ROLES = {
    "lora_up.weight": "lora_B.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_up.bias": "lora_B.bias",
}
_OLD_ROLES = {"lora_up.weight": "lora.up.weight", "lora_down.weight": "lora.down.weight"}


@dataclass(frozen=True)
class Spelling:
    """One way to name a network's tensors.

    stem: the layer's name, from its component and its dotted path. roles: what tensors are called where it is
    not kohya's or LyCORIS's name. has_alpha: whether files hold a layer's alpha. text: whether text encoders
    go into the same file.
    """

    stem: Callable[[str, str], str]
    roles: Mapping[str, str] = field(default_factory=dict)
    has_alpha: bool = True
    text: bool = True

    def key(self, component: str, path: str, role: str) -> str:
        """The name of one tensor of one layer."""
        return f"{self.stem(component, path)}.{self.roles.get(role, role)}"


def _text_path(component: str, path: str) -> str:
    """The path that files have: transformers leaves `text_model` out since 5, files keep it."""
    is_bare = component != "unet" and not path.startswith("text_model.")
    return f"text_model.{path}" if is_bare else path


def _flat(component: str, path: str) -> str:
    prefix = "lora_unet_" if component == "unet" else "lora_te_"
    return prefix + _text_path(component, path).replace(".", "_")


def _lycoris(component: str, path: str) -> str:
    return f"lycoris_{path.replace('.', '_')}"


def _one_trainer(component: str, path: str) -> str:
    """Names of the original, in which all blocks of a side are counted through."""
    if component != "unet":
        return f"clip_l.{_text_path(component, path)}"
    path = path.replace("mid_block.attentions.0.", "middle_block.1.")
    return "unet." + re.sub(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.", _counted, path)


def _counted(found: re.Match[str]) -> str:
    """3 a level: on the way down two and a downsampler, with one before all; on the way up three."""
    number = 3 * int(found[2]) + int(found[3])
    return f"input_blocks.{number + 1}.1." if found[1] == "down" else f"output_blocks.{number}.1."


def _dotted(component: str, path: str) -> str:
    return f"{component}.{_text_path(component, path)}"


def _peft(component: str, path: str) -> str:
    return f"base_model.model.{path}"


SPELLINGS: dict[str, Spelling] = {
    "kohya": Spelling(_flat),
    "LyCORIS": Spelling(_lycoris, text=False),
    "OneTrainer": Spelling(_one_trainer),
    "diffusers": Spelling(_dotted, _PEFT_ROLES, has_alpha=False),
    "diffusers, old": Spelling(_dotted, _OLD_ROLES, has_alpha=False),
    "peft": Spelling(_peft, _PEFT_ROLES, has_alpha=False, text=False),
}

# Which kinds occur in which spelling. OneTrainer writes kohya's too, if it is told to.
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("LoRA", ("kohya", "LyCORIS", "OneTrainer", "diffusers", "diffusers, old", "peft")),
    ("LoRA with a bias", ("diffusers", "peft")),
    ("LoCon", ("kohya", "LyCORIS", "diffusers", "peft")),
    ("LoCon with mid", ("kohya", "LyCORIS")),
    ("LoHa", ("kohya", "LyCORIS", "OneTrainer", "peft")),
    ("LoHa with mid", ("kohya", "LyCORIS", "peft")),
    ("LoKr", ("kohya", "LyCORIS", "peft")),
    ("LoKr with mid", ("kohya", "LyCORIS", "peft")),
    ("DoRA by input", ("kohya", "LyCORIS", "OneTrainer")),
    ("DoRA by output", ("kohya", "LyCORIS", "OneTrainer")),
    ("DoRA of peft", ("diffusers", "peft")),
    ("(IA)3", ("kohya", "LyCORIS")),
    ("(IA)3 of peft", ("peft",)),
    ("OFT", ("kohya", "LyCORIS")),
    ("OFT rescaled", ("kohya", "LyCORIS")),
    ("OFT of peft", ("OneTrainer", "peft")),
    ("OFT, old", ("kohya", "LyCORIS")),
    ("BOFT", ("kohya", "LyCORIS")),
    ("BOFT of peft", ("peft",)),
    ("GLoRA", ("kohya", "LyCORIS")),
    ("GLoRA of LyCORIS 2", ("kohya", "LyCORIS")),
    ("full", ("kohya", "LyCORIS")),
    ("norm", ("kohya", "LyCORIS")),
)
