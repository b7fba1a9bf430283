"""Models with a Fuser, and random networks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lib_accel.lora.formats import Network, read_network
from lib_accel.lora.fusion import Fused, Fuser, Wanted
from tests.lora import models as make
from tests.lora import networks as spell

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


class Parts:
    """A UNet and a text encoder of SD1's kind."""

    def __init__(self) -> None:
        self.unet, self.encoder = make.sd1_unet(), make.text_encoder()
        self.models: dict[str, nn.Module] = {"unet": self.unet, "text_encoder": self.encoder}
        self.fuser = Fuser(self.models)

    def network(self, seed: int = 0, **options: Any) -> Network:
        return read_network(spell.network(self.models, seed=seed, **options), name=f"style {seed}")

    def fuse(self, *networks: Network, scale: float = 1.0) -> Fused:
        return self.fuser.fuse([Wanted(network, scale, scale) for network in networks])

    def bits(self) -> list[Tensor]:
        return make.bits(*self.models.values())

    def have(self, bits: Sequence[Tensor]) -> bool:
        return make.same_bits(list(bits), *self.models.values())

    @property
    def weight(self) -> nn.Parameter:
        """One that every network here changes."""
        return self.unet.get_submodule(Q).weight


def writes(model: nn.Module) -> list[int]:
    """How often each weight was written to."""
    return [weight._version for weight in model.parameters()]
