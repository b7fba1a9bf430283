"""What a request did on one server, and what it had to do there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


@dataclass(frozen=True)
class Blocks:
    """How often blocks of UNet and ControlNets ran in a generation, at which speed, and why not directly."""

    direct: int
    host: int
    reasons: dict[str, int] = field(default_factory=dict)
    networks: int = 0
    replayed: int = 0  # of them by a recording

    @classmethod
    def of_status(cls, status: dict[str, Any]) -> Blocks:
        """Read the part of the extension's status on the latest generation."""
        generation = status["generation"]
        blocks = generation["blocks"]
        fast = blocks["direct"] + blocks["compiled"]
        return cls(
            fast, blocks["host"], generation["reasons"], generation["networks"], generation["replayed"]
        )


@dataclass(frozen=True)
class Speed:
    """The speed that the blocks of a picture must have: a key of JUDGES, and what a reason must say."""

    kind: str
    reason: str = ""

    def problems(self, blocks: Blocks) -> list[str]:
        """What is wrong with these blocks; empty if nothing is."""
        return JUDGES[self.kind](blocks, self.reason)


def _clean(blocks: Blocks, _: str) -> list[str]:
    problems = [] if blocks.direct else ["no block ran directly"]
    return problems + ([f"{blocks.host} blocks at host speed: {_most(blocks)}"] if blocks.host else [])


def _part(blocks: Blocks, reason: str) -> list[str]:
    return ([] if blocks.direct else ["no block ran directly"]) + _with_reason(blocks, reason)


def _host(blocks: Blocks, reason: str) -> list[str]:
    return ([f"{blocks.direct} blocks ran directly"] if blocks.direct else []) + _with_reason(blocks, reason)


def _off(blocks: Blocks, _: str) -> list[str]:
    return [f"{blocks.direct} blocks ran directly"] if blocks.direct else []


def _any(_blocks: Blocks, _reason: str) -> list[str]:
    return []


def _with_reason(blocks: Blocks, reason: str) -> list[str]:
    if not blocks.host:
        return ["no block ran at host speed"]
    if any(re.search(reason, given, re.IGNORECASE) for given in blocks.reasons):
        return []
    return [f"no reason matches /{reason}/: {_most(blocks)}"]


def _most(blocks: Blocks) -> str:
    ranked = sorted(blocks.reasons.items(), key=lambda item: -item[1])
    return "; ".join(f"{count}x {reason}" for reason, count in ranked[:3]) or "without a reason"


JUDGES: dict[str, Callable[[Blocks, str], list[str]]] = {
    "clean": _clean,  # every block directly
    "part": _part,  # some at host speed, with that reason
    "host": _host,  # all at host speed, with that reason
    "off": _off,  # none directly; reasons do not matter
    "any": _any,
}
CLEAN, OFF, ANY = Speed("clean"), Speed("off"), Speed("any")


def part(reason: str) -> Speed:
    """Some blocks at host speed, with a reason that matches."""
    return Speed("part", reason)


def host(reason: str) -> Speed:
    """All blocks at host speed, with a reason that matches."""
    return Speed("host", reason)


@dataclass
class Outcome:
    """What one step of a row did on one server."""

    label: str
    images: list[Image.Image] = field(default_factory=list)
    text: str = ""  # must be equal on both servers
    values: NDArray[np.float32] | None = None  # must be equal but for rounding
    blocks: Blocks | None = None
    speed: Speed = ANY
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)  # seen without the other server
