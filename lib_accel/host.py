"""What the engine needs of the program it runs in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lib_accel.options import Options


class Host(Protocol):
    """The program around the models. The files of hosts/ implement it, and the fake of the tests."""

    # Attribute that the host sets on a layer whose weights carry networks, or None if it sets none.
    network_mark: str | None

    # Whether somebody calls Engine.begin_generation for each of its pictures.
    tells_generations: bool

    def owns(self, module: nn.Module) -> bool:
        """Whether this module is one of the host's, so that its calls are ours to take."""

    def options(self) -> Options:
        """What the user asks for now."""

    def stand_aside_reasons(self) -> Sequence[str]:
        """Why nothing may leave the host's modules now; empty if all may."""

    def attention_reasons(self) -> Sequence[str]:
        """Why attention may not leave the host's modules now; empty if it may."""

    def trusts(self, method: Callable[..., Any]) -> bool:
        """Whether a replaced method of the host's own computes what the class's original does."""

    def wanted_networks(self) -> tuple[Hashable, ...]:
        """Which networks (LoRA and its kin) the weights should carry now, with their scales; () for none."""

    def apply_networks(self, layers: Sequence[nn.Module], merging: Any = None) -> None:
        """Makes the weights of these layers carry the wanted networks, under the host's own bookkeeping.

        Idempotent. merging: an operator.Tuned, what was chosen for merges; None for plain torch.
        """

    def before_call(self, model: nn.Module) -> None:
        """Waits for what this whole model must carry before it is called; what it raises, the call raises.

        Called for models that the host's own code walks, whether or not acceleration is on.
        """

    def is_busy(self) -> bool:
        """Whether a picture is being made, even if no model is called right now."""

    def cache_folder(self) -> Path:
        """Where what was measured on this machine is kept."""

    def models(self) -> Sequence[tuple[str, nn.Module]]:
        """The live UNet and control models by name, for the report."""
